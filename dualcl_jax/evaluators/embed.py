"""Features of whole data sets: the encoder in evaluation mode, over all devices of all processes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dualcl_jax.data import Source
from dualcl_jax.method import AXIS, Method
from dualcl_jax.models import Encoded
from dualcl_jax.step import standardize

BLOCK = 256
"""Images that a device encodes at a time."""
PIXELS_SIDE = 32
PIXELS_BLOCK = 1024


class Features(NamedTuple):
    """Features of N images: `backbone` [N, F] and `projection` [N, D], float32."""

    backbone: np.ndarray
    projection: np.ndarray


class Embedder:
    """Encodes the images of a source as they are, resized to the method's image size where they differ.

    It reads variables and changes nothing. Every process must call it, and gets all features.

    Args:
      method: whose encoder and normalisation to use.
      mesh: all devices.
    """

    def __init__(self, method: Method, mesh: Mesh) -> None:
        replicated = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(AXIS))
        self._block = BLOCK * mesh.devices.size
        self._method = method

        def encode(variables: Any, images: jax.Array) -> Any:
            pixels = images.astype(jnp.float32) / 255.0
            shape = (images.shape[0], method.image_size, method.image_size, images.shape[3])
            if pixels.shape != shape:
                pixels = jax.image.resize(pixels, shape, 'linear')
            return method.encoder.apply(variables, standardize(pixels, method), train=False)

        self._encode: Callable[[Any, jax.Array], Encoded] = jax.jit(encode, out_shardings=replicated)

    def num_blocks(self, count: int) -> int:
        """In how many blocks `count` images are encoded."""
        return -(-count // self._block)

    def __call__(
        self, variables: Any, source: Source, indices: np.ndarray, advance: Callable[[], None] = lambda: None
    ) -> Features:
        """The features of the images at `indices` [N]; `advance` is called after each block."""
        block = min(self._block, -(-len(indices) // self._rows.mesh.size) * self._rows.mesh.size)
        parts = []
        for start in range(0, len(indices), block):
            chosen = indices[start : start + block]
            images = source.images(np.pad(chosen, (0, block - len(chosen)), mode='edge'))
            on_devices = jax.make_array_from_callback(images.shape, self._rows, images.__getitem__)
            encoded = self._encode(variables, on_devices)
            parts.append([np.asarray(column)[: len(chosen)] for column in encoded])
            advance()
        return Features(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def pixels(self, source: Source, indices: np.ndarray) -> np.ndarray:
        """The images at `indices` [N] themselves, standardised as for the encoder: [N, H * W * C] float32.

        A side longer than `PIXELS_SIDE` is reduced to it: no bank of whole photographs fits in memory.
        """
        height, width, channels = source.image_shape
        shape = min(height, PIXELS_SIDE), min(width, PIXELS_SIDE), channels
        parts = [np.empty((0, np.prod(shape)), np.float32)]
        for start in range(0, len(indices), PIXELS_BLOCK):
            images = jnp.asarray(source.images(indices[start : start + PIXELS_BLOCK]), jnp.float32) / 255.0
            if images.shape[1:] != shape:
                images = jax.image.resize(images, (len(images), *shape), 'linear')
            parts.append(np.asarray(standardize(images, self._method)).reshape(len(images), -1))
        return np.concatenate(parts)
