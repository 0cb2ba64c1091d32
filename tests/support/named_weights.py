"""Weights that depend on the names of their tensors alone: they are the same here and in PyTorch, without a file."""

import zlib
from collections.abc import Mapping

import numpy as np


def images(size: int) -> np.ndarray:
    """Two standardised images float32 [2, size, size, 3]."""
    return np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A tensor for each name, of its shape."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('num_batches_tracked'):
        return np.array(7, np.int64)
    if name.endswith(('running_var', 'gamma')) or (name.endswith('weight') and len(shape) == 1):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    fan_in = np.prod(shape[1:]) if len(shape) > 1 and name.endswith('weight') else 100
    return (rng.normal(size=shape) * np.sqrt(1 / fan_in)).astype(np.float32)
