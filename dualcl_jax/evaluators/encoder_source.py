"""Where an encoder that is evaluated comes from: a run, or whatever else gives features of pixels."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dualcl_jax.checkpoint import state_sha256
from dualcl_jax.data import Source
from dualcl_jax.evaluators.embed import Blocks, Embedder, Features
from dualcl_jax.finished import Finished, channels_of, open_finished
from dualcl_jax.state import Variables

ENCODERS, LAYERS = ('query', 'momentum'), Features._fields


@dataclasses.dataclass(frozen=True)
class EncoderSource:
    """Encoders that can be evaluated, all of one architecture.

    Attributes:
      name: how the user named it, for messages.
      config: of the run it comes from; its data and views are the ones to evaluate with.
      channels: of the images that it takes.
      step: training steps behind it; None where not known.
      encoders: their variables by name, of `ENCODERS`.
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
    run: Finished | None = None

    def embed(
        self, encoder: str, images: Source, rows: np.ndarray, advance: Callable[[], None]
    ) -> dict[str, np.ndarray]:
        """Features float32 [N, F] by layer of the images at `rows` [N]; `advance` is called after each block."""
        found = self.blocks(self.encoders[encoder], images, rows, advance)
        return dict(zip(self.layers, found, strict=True))


def from_workdir(workdir: str, step: str) -> EncoderSource:
    """Both encoders of a run after a step (see `open_finished`)."""
    run = open_finished(workdir, step)
    return EncoderSource(
        name=f'--workdir={workdir}',
        config=run.config,
        channels=channels_of(run.state.params),
        step=run.step,
        encoders={'query': run.state.variables, 'momentum': run.state.momentum_variables},
        layers=LAYERS,
        blocks=Embedder(run.method, run.mesh),
        data_fingerprint=run.data_fingerprint,
        provenance={'step': run.step, 'state_sha256': state_sha256(run.state)},
        run=run,
    )
