"""Features of whole data sets: the encoder in evaluation mode, over all devices of all processes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dualcl_jax.data import Source
from dualcl_jax.data.images.source import image_shape
from dualcl_jax.method.build import Method
from dualcl_jax.method.views.images import standardize
from dualcl_jax.system.devices import AXIS

BLOCK = 256
"""Images that a device encodes at a time."""
PIXELS_SIDE = 32
PIXELS_BLOCK = 1024


class Features(NamedTuple):
    """Features of N images: `backbone` [N, F] and `projection` [N, D], float32."""

    backbone: Any
    projection: Any


class Blocks:
    """Runs a function of images over a source, block by block, on all devices of a mesh.

    Images are taken as they are, resized where they have another size. Every process must call it, and gets everything.

    Args:
      function: of variables and pixels float32 [n, S, S, C] in [0, 1], to a tuple of arrays [n, ...].
      image_size: S.
      mesh: the devices.
    """

    def __init__(self, function: Callable[[Any, jax.Array], Any], image_size: int, mesh: Mesh) -> None:
        self._rows = NamedSharding(mesh, PartitionSpec(AXIS))
        self._block = BLOCK * mesh.devices.size

        def run(variables: Any, images: jax.Array) -> Any:
            pixels = images.astype(jnp.float32) / 255.0
            shape = (images.shape[0], image_size, image_size, images.shape[3])
            if pixels.shape != shape:
                pixels = jax.image.resize(pixels, shape, 'linear')
            return function(variables, pixels)

        self._run = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def num_blocks(self, count: int) -> int:
        """In how many blocks `count` images are taken."""
        return -(-count // self._block)

    def __call__(
        self, variables: Any, source: Source, indices: np.ndarray, advance: Callable[[], None] = lambda: None
    ) -> Any:
        """The function's results of the images at `indices` [N], NumPy; `advance` is called after each block."""
        block = min(self._block, -(-len(indices) // self._rows.mesh.size) * self._rows.mesh.size)
        parts = []
        for start in range(0, len(indices), block):
            chosen = indices[start : start + block]
            images = source.examples(np.pad(chosen, (0, block - len(chosen)), mode='edge'))
            on_devices = jax.make_array_from_callback(images.shape, self._rows, images.__getitem__)
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
        def encode(variables: Any, pixels: jax.Array) -> Features:
            return Features(*method.encoder.apply(variables, standardize(pixels, method.mean, method.std), train=False))

        super().__init__(encode, method.image_size, mesh)
        self._mean, self._std = method.mean, method.std

    def pixels(self, source: Source, indices: np.ndarray) -> np.ndarray:
        """The images at `indices` [N] themselves, standardised as for the encoder: [N, H * W * C] float32.

        A side longer than `PIXELS_SIDE` is reduced to it: no bank of whole photographs fits in memory.
        """
        height, width, channels = image_shape(source)
        shape = min(height, PIXELS_SIDE), min(width, PIXELS_SIDE), channels
        parts = [np.empty((0, np.prod(shape)), np.float32)]
        for start in range(0, len(indices), PIXELS_BLOCK):
            images = jnp.asarray(source.examples(indices[start : start + PIXELS_BLOCK]), jnp.float32) / 255.0
            if images.shape[1:] != shape:
                images = jax.image.resize(images, (len(images), *shape), 'linear')
            parts.append(np.asarray(standardize(images, self._mean, self._std)).reshape(len(images), -1))
        return np.concatenate(parts)
