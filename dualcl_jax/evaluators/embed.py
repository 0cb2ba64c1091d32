"""Features of whole data sets: the encoder in evaluation mode, over all devices of all processes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dualcl_jax.data import Source
from dualcl_jax.method.build import Method
from dualcl_jax.system.devices import AXIS

BLOCK = 256
"""Images that a device encodes at a time."""
RAW_BLOCK = 1024


class Features(NamedTuple):
    """Features of N images: `backbone` [N, F] and `projection` [N, D], float32."""

    backbone: Any
    projection: Any


class Blocks:
    """Runs a function of images over a source, block by block, on all devices of a mesh.

    Every process must call it, and gets everything.

    Args:
      function: of variables and a batch of examples [n, ...] as their source gives them, to a tuple of arrays [n, ...].
      mesh: the devices.
    """

    def __init__(self, function: Callable[[Any, Any], Any], mesh: Mesh) -> None:
        self._rows = NamedSharding(mesh, PartitionSpec(AXIS))
        self._block = BLOCK * mesh.devices.size
        self._run = jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def num_blocks(self, count: int) -> int:
        """In how many blocks `count` images are taken."""
        return -(-count // self._block)

    def _put(self, leaf: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, self._rows, leaf.__getitem__)

    def __call__(
        self, variables: Any, source: Source, indices: np.ndarray, advance: Callable[[], None] = lambda: None
    ) -> Any:
        """The function's results of the images at `indices` [N], NumPy; `advance` is called after each block."""
        block = min(self._block, -(-len(indices) // self._rows.mesh.size) * self._rows.mesh.size)
        parts = []
        for start in range(0, len(indices), block):
            chosen = indices[start : start + block]
            examples = source.examples(np.pad(chosen, (0, block - len(chosen)), mode='edge'))
            on_devices = jax.tree.map(self._put, examples)
            parts.append(jax.tree.map(np.asarray, self._run(variables, on_devices)))
            advance()
        return jax.tree.map(lambda *columns: np.concatenate(columns)[: len(indices)], *parts)


class Embedder(Blocks):
    """`Features` of the images of a source by the method's encoder in evaluation mode; it changes nothing.

    Args:
      method: whose encoder and normalisation to use.
      mesh: all devices.
    """

    def __init__(self, method: Method, mesh: Mesh) -> None:
        def encode(variables: Any, examples: Any) -> Features:
            return Features(*method.encoder.apply(variables, method.views.plain(examples), train=False))

        super().__init__(encode, mesh)
        self._views = method.views

    def raw(self, source: Source, indices: np.ndarray) -> np.ndarray | None:
        """The examples at `indices` [N] themselves as vectors [N, F] float32, to compare features with.

        None where the views of their kind give none.
        """
        rows = range(0, max(len(indices), 1), RAW_BLOCK)
        parts = [self._views.raw(source.examples(indices[start : start + RAW_BLOCK])) for start in rows]
        return None if parts[0] is None else np.concatenate([np.asarray(part) for part in parts])
