"""Finds the splits of a folder of images by the names of its folders."""

import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np

from dualcl_jax.data.images.display import shown

TRAIN, TEST, BESIDE, ABOVE = range(4)
"""The role of the images of a folder: training, testing, or left out beside the split folders or above them."""
TRAIN_NAMES = ('train', 'training')
TEST_NAMES = ('test', 'val', 'valid', 'validation', 'testing', 'eval', 'evaluation', 'dev')
"""In the order of preference, if a set has several and all of them or none have labels."""
UNLABELLED_NAMES = ('unlabeled', 'unlabelled', 'unsup', 'unsupervised')
"""Folders that are not classes."""
MAX_WRAPPERS = 2
"""The most nested folders above the splits that contain everything else."""

_NAME = re.compile(r'([a-z]+?)(?:[ _-]?(?:set|data|images|imgs|split))?(?:[ _-]?(?:19|20)\d\d)?')


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The splits of a folder of images.

    Attributes:
      train, test: the folders of the splits, relative to the root, '' for the root itself; test is None without one.
      depths: the number of folders in the paths of the two.
      beside: folders with images that are neither.
      roles: int8 [F], the role of each folder of the index.
      below_classes: without splits, a folder named like one for testing, if every class has such a folder; else ''.
    """

    train: str
    test: str | None
    depths: tuple[int, int]
    beside: tuple[str, ...]
    roles: np.ndarray
    below_classes: str = ''


def split_name(folder: str) -> str:
    """'train', one of `TEST_NAMES`, or '' for the name of a folder, in any case, as in Train, val2017 or test_set."""
    found = _NAME.fullmatch(folder.lower())
    word = found[1] if found else ''
    return 'train' if word in TRAIN_NAMES else word if word in TEST_NAMES else ''


def find_layout(folders: Sequence[str], counts: np.ndarray, labelled: np.ndarray | None) -> Layout:
    """Finds the splits by the names of folders, in the root or below single folders that wrap everything.

    A folder for training and at least one other folder of a split are the splits. A folder for training is also a split
    alone, or with folders that hold images without classes, if it has class folders itself. Of several folders for
    testing, one with labels is preferred. Without split folders, all images are for training.

    Args:
      folders: relative paths of all folders; '' is the root.
      counts: int [F], images directly in each.
      labelled: bool [F], whether images in it have labels by other means than the names of folders; None if the
        names of folders are the labels.
    """
    tree = _Tree(folders, counts, labelled)
    prefix: tuple[str, ...] = ()
    for _ in range(MAX_WRAPPERS + 1):
        found = _splits_in(tree, prefix)
        if found:
            return _layout(tree, prefix, *found)
        below = tree.below(prefix)
        if len(below) != 1:
            break
        prefix = (*prefix, below[0])
    return Layout('', None, (0, 0), (), np.full(len(folders), TRAIN, np.int8), _below_classes(tree, prefix))


class _Tree:
    """Folders with images in or below them."""

    def __init__(self, folders: Sequence[str], counts: np.ndarray, labelled: np.ndarray | None) -> None:
        self.parts = [tuple(folder.split(os.sep)) if folder else () for folder in folders]
        self.by_name = labelled is None
        self.direct: dict[tuple[str, ...], int] = {}
        self.labelled: set[tuple[str, ...]] = set()
        self._below: dict[tuple[str, ...], list[str]] = {}
        for number in np.flatnonzero(counts).tolist():
            path = self.parts[number]
            self.direct[path] = int(counts[number])
            for depth in range(len(path), 0, -1):
                names = self._below.setdefault(path[: depth - 1], [])
                if path[depth - 1] in names[-1:]:  # folders come in the order of a walk
                    break
                names.append(path[depth - 1])
            if labelled is not None and labelled[number]:
                self.labelled |= {path[:depth] for depth in range(len(path) + 1)}

    def below(self, prefix: tuple[str, ...]) -> list[str]:
        """The names of the folders with images in a folder."""
        return self._below.get(prefix, [])

    def classes(self, prefix: tuple[str, ...]) -> list[str]:
        """The names of the class folders in a folder."""
        return [name for name in self.below(prefix) if name.lower() not in UNLABELLED_NAMES]

    def inner(self, prefix: tuple[str, ...]) -> tuple[str, ...]:
        """The folder of a split, one level deeper if it holds nothing but a folder of the same name."""
        below = self.below(prefix)
        repeated = len(below) == 1 and not self.direct.get(prefix) and split_name(below[0]) == split_name(prefix[-1])
        return (*prefix, below[0]) if repeated else prefix

    def has_labels(self, split: tuple[str, ...], train: tuple[str, ...]) -> bool:
        """Whether a split for testing has labels."""
        if not self.by_name:
            return split in self.labelled
        return not set(self.classes(split)).isdisjoint(self.classes(train))


def _splits_in(tree: _Tree, prefix: tuple[str, ...]) -> tuple[str, str | None] | None:
    """The names of the folders for training and for testing in a folder; None if these are not splits."""
    below = tree.below(prefix)
    trains = [name for name in below if split_name(name) == 'train']
    tests = [name for name in below if split_name(name) in TEST_NAMES]
    if not trains:
        return None
    train = min(trains, key=lambda name: (name.lower() not in TRAIN_NAMES, TRAIN_NAMES[0] != name.lower(), name))
    inside = tree.inner((*prefix, train))
    if tests:

        def rank(name: str) -> tuple[bool, int, str]:
            has_labels = tree.has_labels(tree.inner((*prefix, name)), inside)
            return not has_labels, TEST_NAMES.index(split_name(name)), name

        return train, min(tests, key=rank)
    others = [name for name in below if name != train and name.lower() not in UNLABELLED_NAMES]
    flat = not any(tree.below((*prefix, name)) for name in others)
    return (train, None) if len(tree.classes(inside)) > 1 and not tree.direct.get(inside) and flat else None


def _below_classes(tree: _Tree, prefix: tuple[str, ...]) -> str:
    """A folder for testing, if every folder in a folder has one for training and one for testing; else ''."""
    found = ''
    for name in tree.below(prefix):
        inside = {split_name(folder): folder for folder in tree.below((*prefix, name))}
        tests = [os.path.join(*prefix, name, inside[test]) for test in TEST_NAMES if test in inside]
        if 'train' not in inside or not tests:
            return ''
        found = found or tests[0]
    return found


def _layout(tree: _Tree, prefix: tuple[str, ...], train: str, test: str | None) -> Layout:
    depth = len(prefix)
    roles = {train: TRAIN} | ({} if test is None else {test: TEST})
    role_of = np.array(
        [
            roles.get(path[depth], BESIDE) if len(path) > depth and path[:depth] == prefix else ABOVE
            for path in tree.parts
        ],
        np.int8,
    )
    inside = tree.inner((*prefix, train))
    tested = tree.inner((*prefix, test)) if test is not None else inside
    beside = tuple(os.path.join(*prefix, name) for name in tree.below(prefix) if name not in roles)
    folder = os.path.join(*tested) if test is not None else None
    return Layout(os.path.join(*inside), folder, (len(inside), len(tested)), beside, role_of)


def described(folder: str) -> str:
    """A folder of a split as it is shown."""
    return f'{shown(folder)}/' if folder else 'the whole folder'
