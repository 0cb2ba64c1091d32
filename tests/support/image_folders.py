"""Folders of small images for tests, whose bytes depend on no encoder, and configs to read them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tests.support.bad_files import encode, photo
from tests.support.config_parts import data_config


def ppm(seed: int, side: int = 24) -> bytes:
    """The content of a PPM file, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return b'P6 %d %d 255\n' % (side, side) + pixels.tobytes()


def write_images(root: Path, names: Iterable[str], first: int = 0) -> None:
    """Writes a different image for each name, with folders; seeds from `first` on."""
    for seed, name in enumerate(names, first):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ppm(seed))


def write_classes(root: Path, classes: Iterable[str] = ('bee', 'ant'), count: int = 10) -> None:
    """Writes a folder of photographs for each class."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f'{i}.png').write_bytes(encode(photo(100 * number + i), 'PNG'))


def make_old(root: Path | str) -> None:
    """Dates a folder, and the folders below it, as if they had not changed for long."""
    for folder in Path(root).rglob(''):
        os.utime(folder, (1, 1))


def named(folders: Iterable[str], count: int) -> list[str]:
    """The names of `count` images in each folder."""
    return [f'{folder}/{number}.ppm' for folder in folders for number in range(count)]


def folder_config(path: Path | str, **changes: Any) -> ConfigDict:
    """The data part of a config that reads a folder at 16 pixels."""
    fields = {'name': 'folder', 'path': str(path), 'image_size': 16, 'test_fraction': 0.2}
    return data_config(**fields | changes)
