"""Splits whose images are decoded when they are read: any number of images of any size."""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np

from dualcl_jax.data.images.crops import CropRecipe, central_square, crop_rng, draw_boxes
from dualcl_jax.data.images.decode import Place, cut
from dualcl_jax.data.source import ArraySource, Splits
from dualcl_jax.data.workers import available_cores
from dualcl_jax.system.errors import UserError


class Files(Protocol):
    """Encoded images by number. Goes to worker processes by pickle."""

    def __len__(self) -> int: ...
    def read(self, index: int) -> bytes:
        """The content of a file. Raises UserError where it cannot be read or is not what it was."""
        ...

    def where(self, index: int) -> str:
        """How a file is named to the user."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSource:
    """A split of encoded images; a `Source` that can also cut crops from whole images.

    Args:
      name: the name of the set.
      files: the encoded images.
      labels: int32 [N], -1 where unknown.
      stored_size: side S of what `examples` returns.
      class_names: the names of the classes, or None without labels.
      fingerprint: SHA-256 hex digest of what determines examples and order.
      report: what `data_report.json` says of the files.
    """

    name: str
    files: Files = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    stored_size: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    report: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)

    @property
    def example_shape(self) -> tuple[int, int, int]:
        return self.stored_size, self.stored_size, 3

    def __len__(self) -> int:
        return len(self.labels)

    def examples(self, indices: np.ndarray) -> np.ndarray:
        """The central squares at `indices`, resized: uint8 [n, S, S, 3]. Decoded in threads."""
        stored = np.empty((len(indices), *self.example_shape), np.uint8)

        def store(row: int) -> None:
            stored[row] = self._cut(int(indices[row]), central_square, self.stored_size)[0]

        with ThreadPoolExecutor(available_cores()) as threads:
            for _ in threads.map(store, range(len(indices))):
                pass
        return stored

    def crops(
        self,
        indices: np.ndarray,
        positions: np.ndarray,
        recipe: CropRecipe,
        seed: int,
        step: int,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Random crops of whole images: uint8 [n, V, size, size, 3], of the examples at `positions` of a batch.

        They are written into `out` where it is given.
        """
        cuts = np.empty((len(indices), *recipe.shape), np.uint8) if out is None else out
        for row, (index, position) in enumerate(zip(indices.tolist(), positions.tolist(), strict=True)):
            cuts[row] = self._cut(index, partial(draw_boxes, crop_rng(seed, step, position), recipe), recipe.size)
        return cuts

    def _cut(self, index: int, place: Place, size: int) -> np.ndarray:
        encoded = self.files.read(index)
        try:
            return cut(encoded, place, size)
        except Exception as error:  # it could be decoded when it was examined: any of a decoder's errors
            raise UserError(
                f'{self.files.where(index)}: cannot be decoded ({error}); remove it or restore it, then run again'
            ) from error

    def in_memory(self) -> ArraySource:
        """The same split with every image decoded."""
        pixels = self.examples(np.arange(len(self)))
        return ArraySource(self.name, pixels, self.labels, self.class_names, self.fingerprint, self.report)


def place(data: Any, train: EncodedSource, test: EncodedSource | None) -> Splits:
    """Both splits in memory where they fit into `data.memory_bytes` together, else as they are."""
    needed = (len(train) + (len(test) if test else 0)) * int(np.prod(train.example_shape))
    if needed > data.memory_bytes:
        return Splits(train, test)
    return Splits(train.in_memory(), test.in_memory() if test else None)


def stored_size(data: Any) -> int:
    """The side of the squares that are kept, in pixels: `data.stored_size`, or 8/7 of `data.image_size` (224: 256)."""
    return data.stored_size or -(-data.image_size * 8 // 7)
