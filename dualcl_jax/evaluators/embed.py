"""Features of whole data sets: the encoder in evaluation mode, over all devices of all processes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dualcl_jax.data import Source
from dualcl_jax.method.build import Method
from dualcl_jax.system.devices import AXIS, fetched, process_rows

BLOCK = 256
"""How many examples a device encodes at a time."""
RAW_BLOCK = 1024


class Features(NamedTuple):
    """Features of N examples: `backbone` [N, F] and `projection` [N, D], float32."""

    backbone: Any
    projection: Any


class Blocks:
    """Applies a function to the examples of a source, block by block, on all devices of a mesh.

    Every process must call it, and gets all results. Each process reads only the examples of its own devices, and reads
    those of the next block while the devices work.

    Args:
      function: maps variables and a batch of examples [n, ...] from their source to a tuple of arrays [n, ...].
      mesh: the devices.
    """

    def __init__(self, function: Callable[[Any, Any], Any], mesh: Mesh) -> None:
        self._mesh = mesh
        self._rows = NamedSharding(mesh, PartitionSpec(AXIS))
        self._block = BLOCK * mesh.devices.size
        replicated = NamedSharding(mesh, PartitionSpec())
        self._run = jax.jit(function, out_shardings=replicated)
        self._gather = jax.jit(lambda rows: rows, out_shardings=replicated)

    def num_blocks(self, count: int) -> int:
        """The number of blocks for `count` examples."""
        return -(-count // self._block)

    def _own(self, source: Source, chosen: np.ndarray, block: int) -> Any:
        """The examples at `chosen` that this process reads; the last one is repeated to fill the block."""
        rows = np.minimum(process_rows(self._mesh, block), len(chosen) - 1)
        return source.examples(chosen[rows])

    def _put(self, leaf: np.ndarray, block: int) -> jax.Array:
        return jax.make_array_from_process_local_data(self._rows, leaf, (block, *leaf.shape[1:]))

    def __call__(
        self, variables: Any, source: Source, indices: np.ndarray, advance: Callable[[], None] = lambda: None
    ) -> Any:
        """The results for the examples at `indices` [N], as NumPy arrays; `advance` is called after each block."""
        devices = self._mesh.size
        block = min(self._block, -(-len(indices) // devices) * devices)

        def load(start: int) -> Any:
            examples = self._own(source, indices[start : start + block], block)
            return jax.tree.map(lambda leaf: self._put(leaf, block), examples)

        def results() -> Iterator[Any]:
            with ThreadPoolExecutor(1) as ahead:
                loading = ahead.submit(load, 0)
                for start in range(0, len(indices), block):
                    on_devices = loading.result()
                    if start + block < len(indices):
                        loading = ahead.submit(load, start + block)
                    yield self._run(variables, on_devices)

        parts = []
        for part in fetched(results()):
            parts.append(part)
            advance()
        return jax.tree.map(lambda *columns: np.concatenate(columns)[: len(indices)], *parts)


class Embedder(Blocks):
    """Computes `Features` of the examples of a source with the method's encoder in evaluation mode; it changes nothing.

    Args:
      method: the method whose encoder and normalisation to use.
      mesh: all devices.
    """

    def __init__(self, method: Method, mesh: Mesh) -> None:
        def encode(variables: Any, examples: Any) -> Features:
            return Features(*method.encoder.apply(variables, method.views.plain(examples), train=False))

        super().__init__(encode, mesh)
        self._views = method.views

    def raw(self, source: Source, indices: np.ndarray) -> np.ndarray | None:
        """The examples at `indices` [N] themselves as vectors [N, F] float32, for comparison with features.

        None if the views of their kind provide no vectors.
        """
        starts = range(0, max(len(indices), 1), RAW_BLOCK)
        parts = [self._raw(source, indices[start : start + RAW_BLOCK]) for start in starts]
        return None if parts[0] is None else np.concatenate([part for part in parts if part is not None])

    def _raw(self, source: Source, chosen: np.ndarray) -> np.ndarray | None:
        """The vectors of the examples at `chosen` [n]. With several processes, each one reads its part of them."""
        if jax.process_count() == 1 or not len(chosen):
            found = self._views.raw(source.examples(chosen))
            return None if found is None else np.asarray(found)
        devices = self._mesh.size
        block = -(-len(chosen) // devices) * devices
        own = self._views.raw(self._own(source, chosen, block))
        return None if own is None else np.asarray(self._gather(self._put(np.asarray(own), block)))[: len(chosen)]
