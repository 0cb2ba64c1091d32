"""The source of an encoder that is evaluated: a run, or an exported file."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dualcl_jax.data import Source, data_config
from dualcl_jax.data.text.tokens import FILE as TOKENIZER
from dualcl_jax.data.text.tokens import Tokenizer
from dualcl_jax.evaluators.derived import Derived
from dualcl_jax.evaluators.embed import Blocks, Embedder, Features
from dualcl_jax.method import randomness
from dualcl_jax.method.state import create_train_state, state_specs
from dualcl_jax.method.views import Views
from dualcl_jax.method.views.images import ImageViews, resolve_views
from dualcl_jax.method.views.text import TextViews, resolve_text_views
from dualcl_jax.models.encoder import Variables
from dualcl_jax.models.exports import Description, TextDescription, load
from dualcl_jax.system.config import from_json
from dualcl_jax.system.devices import AXIS, place
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import reachable
from dualcl_jax.system.kinds import IMAGES, TEXT
from dualcl_jax.workdir.checksum import state_sha256
from dualcl_jax.workdir.init_from import with_encoder
from dualcl_jax.workdir.saved_run import SavedRun, open_saved_run

LAYERS = Features._fields
RANDOM, START = 'random', 'start'
"""The names of baselines."""


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """Encoders that can be evaluated, all of one architecture.

    Attributes:
      name: the user's name for it, for messages.
      config: config of the run it comes from; its data and views are used for evaluation.
      kind: kind of the examples that it takes.
      views: views of these examples.
      step: training steps of the encoders; None if unknown.
      encoders: their variables by name: query, momentum, or both.
      layers: which of `LAYERS` it provides.
      blocks: maps variables and examples [n, ...] to a tuple of features [n, F], one for each layer.
      view_blocks: likewise maps variables and (examples, keys) to features [n, V, F] of their random views.
      data_fingerprint: fingerprint of the split that it was trained on.
      test_fingerprint: fingerprint of the test split of its run, empty if that has none; None if it is not known.
      provenance: facts about its origin, written beside its results.
      tokenizer: tokenizer of an encoder of text; None for others.
      run: the run itself, for protocols that need more than features; None for an exported encoder.
    """

    name: str
    config: ConfigDict
    kind: str
    views: Views
    step: int | None
    encoders: Mapping[str, Variables]
    layers: tuple[str, ...]
    blocks: Blocks
    view_blocks: Blocks
    data_fingerprint: str
    test_fingerprint: str | None
    provenance: Mapping[str, Any]
    tokenizer: Tokenizer | None = None
    run: SavedRun | None = None

    @functools.cached_property
    def baselines(self) -> 'Baselines':
        """The encoders to compare with; none without a run."""
        return Baselines({}) if self.run is None else _baselines(self.run)

    def data_config(self, data: ConfigDict) -> ConfigDict:
        """The config with which `dualcl_jax.data.load` reads a set for these encoders: text with their tokenizer.

        Args:
          data: the `data` part of a config.
        """
        definition = self.tokenizer.definition if self.tokenizer else ''
        folder = self.run.folder if self.run else None
        return data_config(self.config, folder, data=data, definition=definition)

    def embed(
        self, encoder: str, examples: Source, rows: np.ndarray, advance: Callable[[], None]
    ) -> dict[str, np.ndarray]:
        """Features float32 [N, F] by layer of the examples at `rows` [N]; `advance` is called after each block.

        The encoder is one of `encoders` or of those in `baselines`.
        """
        variables = self.encoders[encoder] if encoder in self.encoders else self.baselines.encoders[encoder]
        found = self.blocks(variables, examples, rows, advance)
        return dict(zip(self.layers, found, strict=True))

    def embed_views(
        self, encoder: str, examples: Source, rows: np.ndarray, seed: int, advance: Callable[[], None]
    ) -> dict[str, np.ndarray]:
        """Features float32 [N, V, F] by layer of random views of the examples at `rows` [N].

        The views of an example depend only on the seed and its row. `advance` is called after each block.
        """

        def with_keys(examples: Any, rows: np.ndarray) -> tuple[Any, np.ndarray]:
            at = jnp.asarray(rows, jnp.int32)
            keys = randomness.example_keys(seed, randomness.PAIRS, jnp.int32(0), at)
            return examples, np.asarray(jax.random.key_data(keys))

        pairs = Derived(examples, rows, with_keys)
        found = self.view_blocks(self.encoders[encoder], pairs, np.arange(len(rows)), advance)
        return dict(zip(self.layers, found, strict=True))


class Baselines(NamedTuple):
    """Encoders before training, to compare with.

    Attributes:
      encoders: variables by name: `random`, with the values that the run draws from its seed; `start`, the encoder that
        the run started from, if it is another one.
      left_out: why there is no `start`, although the run started from another encoder; empty otherwise.
    """

    encoders: Mapping[str, Variables]
    left_out: str = ''


def _baselines(run: SavedRun) -> Baselines:
    """The encoders of a run before training."""
    drawn = jax.jit(lambda: create_train_state(run.method))()
    state = place(drawn, run.mesh, state_specs(run.method))
    if not run.config.init_from:
        return Baselines({RANDOM: state.variables})
    try:
        started = with_encoder(run.method, state, run.config.init_from, run.mesh)
    except UserError as error:
        return Baselines({RANDOM: state.variables}, f'the encoder before training ({error})')
    return Baselines({RANDOM: state.variables, START: started.variables})


def from_workdir(workdir: str, step: str) -> EncoderSource:
    """Both encoders of a run after a step (see `open_saved_run`)."""
    run = open_saved_run(workdir, step)
    views = run.method.views

    def encode(variables: Variables, view: Any) -> tuple[jax.Array, ...]:
        return Features(*run.method.encoder.apply(variables, view, train=False))

    return EncoderSource(
        name=f'--workdir={workdir}',
        config=run.config,
        kind=run.kind,
        views=views,
        step=run.step,
        encoders={'query': run.state.variables, 'momentum': run.state.momentum_variables},
        layers=LAYERS,
        blocks=Embedder(run.method, run.mesh),
        view_blocks=_view_blocks(views, encode, run.mesh),
        data_fingerprint=run.data_fingerprint,
        test_fingerprint=run.test_fingerprint,
        provenance={'step': run.step, 'state_sha256': state_sha256(run.state)} | _choice(run.chosen_by),
        tokenizer=Tokenizer.read(str(run.folder / TOKENIZER), run.config.text.length) if run.kind == TEXT else None,
        run=run,
    )


def _choice(chosen_by: Mapping[str, str] | None) -> dict[str, Any]:
    """How the step was chosen, for the provenance of an encoder; nothing if its score played no part."""
    return {} if chosen_by is None else {'step_chosen_by': dict(chosen_by)}


def _view_blocks(
    views: Views, encode: Callable[[Variables, Any], tuple[jax.Array, ...]], mesh: Mesh, *, as_pixels: bool = False
) -> Blocks:
    """Features of the random views of examples.

    Args:
      views: views of the examples.
      encode: a function of variables and one view [n, ...] to a tuple of features [n, F].
      mesh: the devices.
      as_pixels: whether the views are of images and `encode` takes them as pixels in [0, 1].
    """

    def function(variables: Variables, inputs: tuple[Any, jax.Array]) -> tuple[jax.Array, ...]:
        examples, keys = inputs[0], randomness.from_data(inputs[1])
        if isinstance(views, ImageViews):
            made: Any = views.augment(keys, examples)
            if not views.value_range:  # pictures have 8 bits
                made = jnp.round(made * 255) / 255.0
            made = made if as_pixels else views.standardize(made)
        else:
            made = views.make(keys, examples)
        count = jax.tree.leaves(made)[0].shape[0]
        found = [encode(variables, jax.tree.map(lambda leaf, view=view: leaf[view], made)) for view in range(count)]
        return tuple(jnp.stack(layer, axis=1) for layer in zip(*found, strict=True))

    return Blocks(function, mesh)


def from_export(path: str, flag: str = '--exported') -> EncoderSource:
    """The encoder in a file of `python -m dualcl_jax.export`, with the data and views of its run.

    The file does not contain the location of the data: `data.data_dir` and `data.path` are empty, and `data.labels` is
    auto.

    Messages refer to the path by `flag`.

    Raises:
      UserError: the file does not exist, is damaged or is of another kind.
    """
    encoder = load(path)
    described, origin = encoder.description, encoder.description.provenance
    try:
        config = from_json(json.dumps(origin['config']))
        config.data.labels = config.data.labels or 'auto'
        views = _views_of(described, config)
        step, data_fingerprint = origin['step'], origin['data_fingerprint']
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'{flag}={path}: this version cannot read the description of its run ({error})') from error
    mesh = Mesh(np.asarray(jax.local_devices()[:1]), (AXIS,))  # an exported program is for one device
    function, is_images = encoder.function, isinstance(views, ImageViews)
    prepare: Callable[[Any], Any] = views.pixels if isinstance(views, ImageViews) else views.plain
    return EncoderSource(
        name=f'{flag}={path}',
        config=config,
        kind=IMAGES if is_images else TEXT,
        views=views,
        step=step,
        encoders={described.encoder: {}},
        layers=(described.output,),
        blocks=Blocks(lambda _, examples: (function(prepare(examples)),), mesh),
        view_blocks=_view_blocks(views, lambda _, view: (function(_inputs(view)),), mesh, as_pixels=is_images),
        data_fingerprint=data_fingerprint,
        test_fingerprint=origin.get('test_fingerprint'),
        provenance={'step': step, 'file_sha256': hashlib.sha256(reachable(path, flag).read_bytes()).hexdigest()}
        | _choice(origin.get('step_chosen_by')),
        tokenizer=Tokenizer(described.tokenizer, described.length) if isinstance(described, TextDescription) else None,
    )


def _views_of(described: Description | TextDescription, config: ConfigDict) -> ImageViews | TextViews:
    """The views of the run of an exported encoder."""
    if isinstance(described, TextDescription):
        return TextViews(resolve_text_views(config.views), described.length)
    return ImageViews(**dataclasses.asdict(described.images), specs=resolve_views(config.views))


def _inputs(view: Any) -> Any:
    """The part of a view that an exported encoder takes: pixels as they are, sentences without the key of dropout."""
    return {name: view[name] for name in ('tokens', 'length')} if isinstance(view, dict) else view
