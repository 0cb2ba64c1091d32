"""Where an encoder that is evaluated comes from: a run, or an exported file."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dualcl_jax.data import Source
from dualcl_jax.evaluators.embed import Blocks, Embedder, Features
from dualcl_jax.method.state import Variables
from dualcl_jax.method.views.images import resized, resolve_views
from dualcl_jax.models.encoder import channels_of
from dualcl_jax.models.exports import load
from dualcl_jax.system.config import from_json
from dualcl_jax.system.devices import AXIS
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.checksum import state_sha256
from dualcl_jax.workdir.saved_run import SavedRun, open_saved_run

LAYERS = Features._fields


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """Encoders that can be evaluated, all of one architecture.

    Attributes:
      name: how the user named it, for messages.
      config: of the run it comes from; its data and views are the ones to evaluate with.
      channels: of the images that it takes.
      step: training steps behind it; None where not known.
      encoders: their variables by name: query, momentum, or both.
      layers: which of `LAYERS` it gives.
      blocks: a function of variables and pixels to a tuple of features, one a layer.
      data_fingerprint: of the training split behind it.
      provenance: what is written beside its results.
      run: the run itself, for what needs more than features; None for an exported encoder.
    """

    name: str
    config: ConfigDict
    channels: int
    step: int | None
    encoders: Mapping[str, Variables]
    layers: tuple[str, ...]
    blocks: Blocks
    data_fingerprint: str
    provenance: Mapping[str, Any]
    run: SavedRun | None = None

    def embed(
        self, encoder: str, images: Source, rows: np.ndarray, advance: Callable[[], None]
    ) -> dict[str, np.ndarray]:
        """Features float32 [N, F] by layer of the images at `rows` [N]; `advance` is called after each block."""
        found = self.blocks(self.encoders[encoder], images, rows, advance)
        return dict(zip(self.layers, found, strict=True))


def from_workdir(workdir: str, step: str) -> EncoderSource:
    """Both encoders of a run after a step (see `open_saved_run`)."""
    run = open_saved_run(workdir, step)
    return EncoderSource(
        name=f'--workdir={workdir}',
        config=run.config,
        channels=channels_of(run.state.params, run.config.model.name),
        step=run.step,
        encoders={'query': run.state.variables, 'momentum': run.state.momentum_variables},
        layers=LAYERS,
        blocks=Embedder(run.method, run.mesh),
        data_fingerprint=run.data_fingerprint,
        provenance={'step': run.step, 'state_sha256': state_sha256(run.state)},
        run=run,
    )


def from_export(path: str) -> EncoderSource:
    """The encoder in a file of `python -m dualcl_jax.export`, with the data and views of its run.

    The file does not say where the data lie: `data.data_dir` and `data.path` are empty, and `data.labels` is auto.

    Raises:
      UserError: no such file, or one that is damaged or of another kind.
    """
    encoder = load(path)
    described, origin = encoder.description, encoder.description.provenance
    try:
        config = from_json(json.dumps(origin['config']))
        config.data.labels = config.data.labels or 'auto'
        resolve_views(config.views)
        step, data_fingerprint = origin['step'], origin['data_fingerprint']
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'--exported={path}: its run is not described by this version ({error})') from error
    mesh = Mesh(np.asarray(jax.local_devices()[:1]), (AXIS,))  # an exported program is for one device
    return EncoderSource(
        name=f'--exported={path}',
        config=config,
        channels=described.channels,
        step=step,
        encoders={described.encoder: {}},
        layers=(described.output,),
        blocks=Blocks(lambda _, images: (encoder.function(resized(images, described.image_size)),), mesh),
        data_fingerprint=data_fingerprint,
        provenance={'step': step, 'file_sha256': hashlib.sha256(epath.Path(path).read_bytes()).hexdigest()},
    )
