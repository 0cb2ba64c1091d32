"""Sources made of other sources: some of the examples, and examples that were changed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dualcl_jax.data import Source
from dualcl_jax.data.source import first_equal
from dualcl_jax.system.tree import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Derived:
    """The examples of a source at `rows` [N], each changed by a function of n examples and their rows [n].

    The fingerprint remains that of the source.
    """

    source: Source
    rows: np.ndarray = dataclasses.field(repr=False)
    change: Callable[[Tree, np.ndarray], Tree] = lambda examples, rows: examples

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def kind(self) -> str:
        return self.source.kind

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
    def in_memory(self) -> bool:
        return self.source.in_memory

    @property
    def report(self) -> Mapping[str, Any] | None:
        return None

    @property
    def ids(self) -> np.ndarray:
        return first_equal(self.source.ids[self.rows])

    @property
    def kept_files(self) -> Mapping[str, bytes]:
        return self.source.kept_files

    def __len__(self) -> int:
        return len(self.rows)

    def examples(self, indices: np.ndarray) -> Tree:
        rows = self.rows[indices]
        return self.change(self.source.examples(rows), rows)

    def display(self, indices: np.ndarray) -> list[str] | None:
        return self.source.display(self.rows[indices])

    def host_views(self, recipe: Any) -> None:
        del recipe  # changed examples are loaded whole
