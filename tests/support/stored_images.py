"""Folders of images with any number of channels and any type, for the tests of `data.channels`."""

from pathlib import Path

import numpy as np
import tifffile

CLASSES = ('lake', 'forest')


def scene(seed: int, channels: int = 5, dtype: str = 'uint16', side: int = 20) -> np.ndarray:
    """An image [side, side, C] of one of two classes, which differ in the ratio of their channels."""
    rng = np.random.default_rng(seed)
    means = np.linspace(0.2, 0.8, channels)[:: 1 if seed % 2 else -1]
    values = np.clip(means + 0.15 * rng.standard_normal((side, side, channels)), 0, 1)
    if np.dtype(dtype).kind == 'f':
        return (40 * values - 30).astype(dtype)  # such as decibels
    return (values * (4095 if dtype == 'uint16' else 255)).astype(dtype)


def write_scenes(root: Path, suffix: str, count: int = 24, **kind: object) -> Path:
    """Writes images of both classes: '.npy', or '.tif' with a page for each channel."""
    for seed in range(count):
        folder = root / CLASSES[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = scene(seed, **kind)  # type: ignore[arg-type]
        if suffix == '.npy':
            np.save(folder / f'{seed}.npy', pixels)
        else:
            tifffile.imwrite(folder / f'{seed}.tif', np.moveaxis(pixels, -1, 0), photometric='minisblack')
    return root
