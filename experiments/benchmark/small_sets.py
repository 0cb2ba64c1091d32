"""Writes small labelled folders of images, to try a first run as a new user would.

    python -m experiments.benchmark.small_sets --set=cifar10 --train=3000 --test=1000 --data_dir=TFDS --output=DIR

Each folder has `train/CLASS` and `test/CLASS` with PNG files of the images' own size, equally many of each class, drawn
with seed 0 from the two splits of the set. They have ten classes: those of `cifar100` from `--first_class` on, and the
first ten photographs of the quick start for `photo_patches`; the other sets have no more.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dualcl_jax.data.images import photo_patches
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import UserError, exits_cleanly

CLASSES = 10
SETS = ('cifar10', 'cifar100', 'fashion_mnist', 'photo_patches')


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser('python -m experiments.benchmark.small_sets', __doc__)
    parser.add_argument('--set', choices=SETS, required=True)
    parser.add_argument('--train', type=int, default=3000, help='images for training')
    parser.add_argument('--test', type=int, default=1000, help='images for testing')
    parser.add_argument('--first_class', type=int, default=0, help='number of the first of the ten classes')
    parser.add_argument('--data_dir', default='', help='TFDS directory, except for photo_patches')
    parser.add_argument('--output', type=Path, required=True)
    return parser.parse_args(arguments)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    for split, count in (('train', flags.train), ('test', flags.test)):
        images, labels, names = _split(flags.set, split, flags.data_dir)
        for index in choose(labels, count // CLASSES, flags.first_class):
            folder = flags.output / split / names[labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index].squeeze()).save(folder / f'{index:05}.png')
    return 0


def choose(labels: np.ndarray, each: int, first: int = 0) -> np.ndarray:
    """Indices of `each` examples of each of `CLASSES` classes from the class `first` on, drawn with seed 0.

    Raises:
      UserError: a class has fewer.
    """
    rng = np.random.default_rng(0)
    found = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in range(first, first + CLASSES)]
    if min(map(len, found)) < each:
        raise UserError(f'a class has {min(map(len, found))} images, fewer than {each}; ask for fewer')
    return np.concatenate(found)


def _split(name: str, split: str, data_dir: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images uint8 [N, H, W, C], labels [N] and the names of the classes."""
    if name == 'photo_patches':
        patches = photo_patches.cut_all()[split == 'test']
        return patches.images, patches.labels, [Path(photo.file).stem for photo in photo_patches.PHOTOS]
    builder = tfds.builder(name, data_dir=data_dir)
    records = builder.as_data_source(split=split)
    examples = [records[index] for index in range(len(records))]
    labels = np.array([example['label'] for example in examples])
    return np.stack([example['image'] for example in examples]), labels, builder.info.features['label'].names


if __name__ == '__main__':
    sys.exit(main())
