"""What the protocols share: encoders, data, and features that are computed once."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dualcl_jax.data import Source, Splits
from dualcl_jax.evaluators.derived import Derived
from dualcl_jax.evaluators.encoder_source import EncoderSource
from dualcl_jax.evaluators.measures.linear import Choice, choose_probe
from dualcl_jax.system.console import progress
from dualcl_jax.system.errors import UserError

NAMED = 3
"""The most classes that are named of those left out."""
Place = tuple[str, str]
"""An encoder and a layer of it."""


@dataclasses.dataclass(eq=False)
class Task:
    """One evaluation.

    Attributes:
      source: the encoders.
      splits: the data; None if all protocols have files of their own and the data are not available.
      settings: the settings of `dualcl_jax.evaluators.settings`.
      encoders, layers: the ones to evaluate.
      benchmarks: the content of the files of a protocol, by its name.
    """

    source: EncoderSource
    splits: Splits | None
    settings: ConfigDict
    encoders: tuple[str, ...]
    layers: tuple[str, ...]
    benchmarks: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._features: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        self._probes: dict[Place, Choice] = {}

    @property
    def seed(self) -> int:
        """The seed of everything that is drawn."""
        return self.settings.seed

    @property
    def places(self) -> list[Place]:
        """Every encoder with every layer."""
        return [(encoder, layer) for encoder in self.encoders for layer in self.layers]

    def split(self, name: str) -> Source:
        """The split 'train' or 'test', which must exist."""
        split = getattr(self.splits, name, None)
        assert split is not None
        return split

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Indices of the labelled examples of each split, int64; of all examples if none has a label."""
        found = {}
        for name, split in self.splits._asdict().items() if self.splits else ():
            if split is not None:
                labelled = np.flatnonzero(split.labels >= 0)
                found[name] = labelled if len(labelled) else np.arange(len(split))
        return found

    def labels(self, split: str) -> np.ndarray:
        """Labels of the examples at `rows`, int32 [N]."""
        return self.split(split).labels[self.rows[split]]

    @functools.cached_property
    def known(self) -> np.ndarray:
        """Positions, among the `rows` for testing, of images whose class has training images: int64 [Q]."""
        return np.flatnonzero(np.isin(self.labels('test'), self.labels('train')))

    @property
    def query_labels(self) -> np.ndarray:
        """Labels of the images at `known`, int32 [Q]."""
        return self.labels('test')[self.known]

    def queries(self, encoder: str, layer: str) -> np.ndarray:
        """Features of the images at `known`, float32 [Q, F]."""
        return self.features('test', encoder, layer)[self.known]

    @functools.cached_property
    def left_out(self) -> dict[str, Any]:
        """Test images that cannot be classified, by the reason: how many, and up to `NAMED` of their classes."""
        strange = np.delete(self.labels('test'), self.known)
        if not len(strange):
            return {}
        return {'test images of classes without training images': self.described(strange)}

    def described(self, labels: np.ndarray) -> dict[str, Any]:
        """How many labels, of how many classes, and the names of up to `NAMED` of these."""
        classes, names = np.unique(labels), self.split('train').class_names
        shown = [names[label] if names else str(label) for label in classes[:NAMED].tolist()]
        return {'count': len(labels), 'classes': len(classes), 'names': shown}

    @functools.cached_property
    def num_classes(self) -> int:
        """The number of classes: labels lie in [0, num_classes) in both splits."""
        return 1 + int(max(np.max(self.labels(split)) for split in self.rows))

    def features(self, split: str, encoder: str, layer: str) -> np.ndarray:
        """Features of the examples at `rows`, float32 [N, F]."""
        key = split, encoder
        if key not in self._features:
            what = f'{split} examples, {encoder}'
            self._features[key] = self.embed(encoder, self.split(split), self.rows[split], what)
        return self._features[key][layer]

    def embed(self, encoder: str, examples: Source, rows: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """Features [N, F] by layer of some examples, with progress, not kept.

        Raises:
          UserError: they are not finite.
        """
        with progress(self.source.blocks.num_blocks(len(rows)), what) as advance:
            return self._finite(encoder, self.source.embed(encoder, examples, rows, advance))

    def embed_views(self, encoder: str, examples: Source, rows: np.ndarray, what: str) -> dict[str, np.ndarray]:
        """Features [N, V, F] by layer of random views of some examples, with progress, not kept.

        Raises:
          UserError: they are not finite.
        """
        with progress(self.source.view_blocks.num_blocks(len(rows)), what) as advance:
            return self._finite(encoder, self.source.embed_views(encoder, examples, rows, self.seed, advance))

    def _finite(self, encoder: str, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the features. Raises UserError if they are not finite."""
        for layer, features in found.items():
            if not np.isfinite(features).all():
                raise UserError(
                    f'{self.source.name}: features of the {encoder} encoder ({layer}) are not finite: it has diverged; '
                    'evaluate an earlier --step'
                )
        return found

    def probe(self, encoder: str, layer: str) -> Choice:
        """The linear probe of a layer, trained once."""
        place = encoder, layer
        if place not in self._probes:
            features, settings = self.features('train', *place), self.settings.linear
            with progress(2 * settings.epochs, f'linear probe, {encoder}, {layer}') as advance:
                self._probes[place] = choose_probe(
                    features,
                    self.labels('train'),
                    self.num_classes,
                    learning_rates=settings.learning_rates,
                    weight_decays=settings.weight_decays,
                    validation=settings.validation,
                    epochs=settings.epochs,
                    batch_size=settings.batch_size,
                    seed=self.seed,
                    advance=advance,
                )
        return self._probes[place]

    def labelled(self, split: str, chosen: np.ndarray) -> Source:
        """Some of the labelled examples of a split: positions among `rows`."""
        return Derived(self.split(split), self.rows[split][chosen])
