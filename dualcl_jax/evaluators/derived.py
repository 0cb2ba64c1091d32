"""Sources made of other sources: some of the images, and images that were changed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dualcl_jax.data import Source


@dataclasses.dataclass(frozen=True, eq=False)
class Derived:
    """The images of a source at `rows` [N], each changed by a function of images uint8 [n, H, W, C] and their rows [n].

    The fingerprint stays that of the source.
    """

    source: Source
    rows: np.ndarray = dataclasses.field(repr=False)
    change: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda images, rows: images

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def example_shape(self) -> tuple[int, int, int]:
        return self.source.example_shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.rows]

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def report(self) -> Mapping[str, Any] | None:
        return None

    def __len__(self) -> int:
        return len(self.rows)

    def examples(self, indices: np.ndarray) -> np.ndarray:
        rows = self.rows[indices]
        return self.change(self.source.examples(rows), rows)
