"""The features of every example of a set, part by part: finished parts are kept, so an interrupted command resumes."""

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualcl_jax.data import Source
from dualcl_jax.data.tree import map_tree
from dualcl_jax.evaluators.encoder_source import EncoderSource
from dualcl_jax.system.console import progress
from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.files import write_bytes, write_json

PART = 4096
"""Examples in a part; an interruption loses at most this many."""


class Embedding(NamedTuple):
    """Features of N examples.

    Attributes:
      features: float32 [N, F], not normalised.
      files: a name for each example.
      labels: int32 [N], -1 where unknown.
      class_names: names of the labels; empty without classes.
    """

    features: np.ndarray
    files: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]


class Examples(NamedTuple):
    """The examples to embed: one or several sources, one after the other, and a name for each example."""

    sources: Sequence[Source]
    names: list[str]

    @property
    def labels(self) -> np.ndarray:
        """The labels, int32 [N], -1 where unknown."""
        return np.concatenate([source.labels for source in self.sources])

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.sources[0].class_names or ()

    def at(self, rows: np.ndarray) -> Any:
        """The examples at `rows` [n] over all sources: arrays [n, ...]."""
        starts = np.cumsum([0, *map(len, self.sources)])
        found: list[tuple[np.ndarray, Any]] = []
        for source, start, end in zip(self.sources, starts[:-1], starts[1:], strict=True):
            places = np.flatnonzero((rows >= start) & (rows < end))
            if len(places) or not len(rows):
                found.append((places, source.examples(rows[places] - start)))
        order = np.argsort(np.concatenate([places for places, _ in found]), kind='stable')
        return map_tree(lambda *parts: np.concatenate(parts)[order], *(tree for _, tree in found))


def parts_of(
    encoder: EncoderSource, name: str, layer: str, examples: Examples, folder: Path | None
) -> Iterator[np.ndarray]:
    """Yields features [n, F] of each part in order; parts that are already in `folder` are read, others are kept in it.

    Args:
      encoder: where the encoder comes from.
      name: which of its encoders.
      layer: which of its layers.
      examples: what to embed.
      folder: folder for the parts; if its parts are of other examples or another encoder, it is emptied first. None:
        no parts are kept.

    Raises:
      UserError: the features are not finite, or the folder cannot be written.
    """
    if folder is not None:
        try:
            _open(folder, _identity(encoder, name, layer, examples))
        except OSError as error:
            raise UserError(f'{folder}: cannot be written ({reason_of(error)}); choose another --output') from error
    starts = [(source, start) for source in examples.sources for start in range(0, len(source), PART)]
    paths = [None if folder is None else folder / f'{number:06d}.npy' for number in range(len(starts))]
    blocks = sum(encoder.blocks.num_blocks(min(PART, len(source) - start)) for source, start in starts)
    done = sum(path is not None and path.exists() for path in paths)
    if done:
        print(f'{done} of {len(starts)} parts are done already')
    with progress(blocks, 'examples embedded') as advance:
        for (source, start), path in zip(starts, paths, strict=True):
            rows = np.arange(start, min(start + PART, len(source)))
            features = None if path is None else _read(path, len(rows))
            if features is None:
                features = encoder.embed(name, source, rows, advance)[layer]
                if not np.isfinite(features).all():
                    raise UserError(f'{encoder.name}: its features are not finite: it has diverged; choose another')
                if path is not None:
                    _keep(path, features)
            yield features


def gathered(parts: Iterable[np.ndarray], features: np.ndarray) -> Iterator[np.ndarray]:
    """Yields parts [n, F] and writes them into `features` [N, F], one after the other."""
    start = 0
    for part in parts:
        features[start : start + len(part)] = part
        start += len(part)
        yield part


def _identity(encoder: EncoderSource, name: str, layer: str, examples: Examples) -> dict[str, Any]:
    """What the parts of a folder have in common."""
    names = hashlib.sha256('\n'.join(examples.names).encode()).hexdigest()
    fingerprints = [source.fingerprint for source in examples.sources]
    return {
        'encoder_of': dict(encoder.provenance),
        'encoder': name,
        'layer': layer,
        'data': fingerprints,
        'names': names,
        'part': PART,
    }


def _open(folder: Path, identity: dict[str, Any]) -> None:
    """Creates the folder, or empties it if its parts are of something else. Raises OSError."""
    known = folder / 'parts.json'
    with contextlib.suppress(OSError, ValueError):
        if json.loads(known.read_text()) == identity:
            return
    if folder.exists():
        print(f'{folder}: parts of another encoder or of other data; starting again')
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(known, identity)


def _read(path: Path, count: int) -> np.ndarray | None:
    """The features of a part; None if it has not been written, or not completely."""
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == count and features.dtype == np.float32 else None


def _keep(path: Path, features: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, features, allow_pickle=False)
    try:
        write_bytes(path, file.getvalue())
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({reason_of(error)}); free some space, and run again') from error
