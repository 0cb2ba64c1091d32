"""What a data set is here: uint8 images of one size, integer labels or none, and a fingerprint. NumPy only."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from dualcl_jax.system.errors import UserError

LIMIT_SEED = (
    0  # of the subset that data.limit keeps; never the run's seed, so that runs with other seeds see the same images
)
VALIDATION_SEED = 1  # of the images that data.validation_fraction holds out; likewise


class Source(Protocol):
    """A split: N images of one size with their labels, read by index.

    `labels` is int32 [N], -1 where unknown; `class_names[label]` is the name of a class, None where the set has no
    labels. `fingerprint` is the SHA-256 hex digest of whatever determines the examples and their order. `report` is
    what `data_report.json` says of the files behind the set, None where there is nothing to say.
    """

    @property
    def name(self) -> str: ...
    @property
    def example_shape(self) -> tuple[int, int, int]: ...
    @property
    def class_names(self) -> tuple[str, ...] | None: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def report(self) -> Mapping[str, Any] | None: ...
    def __len__(self) -> int: ...
    def examples(self, indices: np.ndarray) -> np.ndarray:
        """The images at `indices` (integers [n]): uint8 [n, H, W, C], C 1 or 3."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A split in memory.

    Args:
      name: the name of the set.
      pixels: uint8 [N, H, W, C].
      labels: int32 [N], -1 where unknown.
      class_names: the names of the classes, or None without labels.
      fingerprint: SHA-256 hex digest; computed from everything above where left empty.
      report: of the files behind it.
    """

    name: str
    pixels: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    class_names: tuple[str, ...] | None = None
    fingerprint: str = ''
    report: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4:
            raise ValueError(f'pixels: expected uint8 [N, H, W, C], got {self.pixels.dtype} {self.pixels.shape}')
        if self.labels.dtype != np.int32 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(f'labels: expected int32 [{len(self)}], got {self.labels.dtype} {self.labels.shape}')
        if not self.fingerprint:
            digest = fingerprint(self.name, self.example_shape, self.class_names, self.labels, self.pixels)
            object.__setattr__(self, 'fingerprint', digest)

    @property
    def example_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.pixels.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.pixels)

    def examples(self, indices: np.ndarray) -> np.ndarray:
        return np.take(self.pixels, indices, axis=0)


class Splits(NamedTuple):
    """What a run trains on and what it is measured on; `test` is None where the set has no such split."""

    train: Source
    test: Source | None


def fingerprint(
    name: str,
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...] | None,
    labels: np.ndarray,
    *content: np.ndarray | bytes,
) -> str:
    """SHA-256 hex digest of a split: its name, shapes, class names, labels and, in order, the bytes of its images."""
    digest = hashlib.sha256(json.dumps([name, image_shape, class_names, len(labels)]).encode())
    for part in (labels, *content):
        digest.update(memoryview(np.ascontiguousarray(part)) if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()


def limit_indices(num_examples: int, limit: int) -> np.ndarray:
    """The examples that `data.limit` keeps, in the order in which they are kept: int64 [min(limit, N)].

    A fixed random subset, the same in every run; limit 0, or one that the set does not reach, keeps all of it as it is.

    Raises:
      UserError: limit is negative.
    """
    if limit < 0:
        raise UserError(f'data.limit={limit}: use 0 for all examples, or how many to keep')
    if limit == 0 or limit >= num_examples:
        return np.arange(num_examples)
    return np.random.default_rng(LIMIT_SEED).permutation(num_examples)[:limit]


def limit_train(train: Source, limit: int) -> Source:
    """The first `limit` examples of a fixed random order of the training split (see `limit_indices`), in memory."""
    indices = limit_indices(len(train), limit)
    if len(indices) == len(train):
        return train
    return ArraySource(train.name, train.examples(indices), train.labels[indices], train.class_names)


def hold_out(train: Source, fraction: float) -> tuple[Source, Source | None]:
    """Parts a fixed random share of the training images off, for validation; both parts in memory.

    Args:
      train: N images.
      fraction: share in [0, 1); 0 for none.

    Returns:
      The remaining images, and those held out, round(fraction · N) of them.

    Raises:
      UserError: one of the parts would be empty.
    """
    if not fraction:
        return train, None
    count = round(fraction * len(train))
    if not 0 < count < len(train):
        raise UserError(
            f'data.validation_fraction={fraction}: holds out {count} of the {len(train)} training images of '
            f'{train.name}; choose a share that leaves some in both parts'
        )
    order = np.random.default_rng(VALIDATION_SEED).permutation(len(train))

    def part(rows: np.ndarray, name: str) -> ArraySource:
        return ArraySource(name, train.examples(rows), train.labels[rows], train.class_names, report=train.report)

    return part(np.sort(order[count:]), train.name), part(np.sort(order[:count]), f'{train.name} (validation)')
