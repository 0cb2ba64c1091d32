"""Splits whose images are decoded when they are read: any number of images of any size."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from dualcl_jax.data.images import decode, stored
from dualcl_jax.data.images.crops import CropRecipe, central_square, crop_rng, draw_boxes
from dualcl_jax.data.images.decode import Place
from dualcl_jax.data.images.source import image_shape, image_source, image_type
from dualcl_jax.data.source import ArraySource, Splits
from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.kinds import IMAGES
from dualcl_jax.system.machine import available_cores

READS = 8
"""Files that a process reads at a time."""


class Files(Protocol):
    """Encoded images by number. Sent to worker processes by pickle."""

    def __len__(self) -> int: ...
    def prepare(self) -> None:
        """Imports and reads what every process that reads files needs. It must not start a thread."""
        ...

    def read(self, index: int) -> bytes:
        """The content of a file; may be called by several threads at once.

        Raises:
          UserError: the file cannot be read, or has changed.
          RestartError: it cannot be read now.
          MemoryError: there is not enough memory for it.
        """
        ...

    def where(self, index: int) -> str:
        """The name of a file for the user."""
        ...

    def names(self, indices: np.ndarray) -> list[str] | None:
        """The paths of the files at `indices` in their folder; None if they are records of a set."""
        ...


class Pixels(NamedTuple):
    """How the pixels of files are read.

    Attributes:
      channels: C.
      dtype: one of `source.TYPES`.
      as_stored: whether they are read without conversion, see `stored`; otherwise as 8-bit RGB, see `decode`.
    """

    channels: int = 3
    dtype: str = 'uint8'
    as_stored: bool = False

    def empty(self, *shape: int) -> np.ndarray:
        """Uninitialised images [*shape, C]."""
        return np.empty((*shape, self.channels), self.dtype)

    def cut(self, encoded: bytes, place: Place, size: int) -> np.ndarray:
        """Cuts the boxes of `place` from an image, each resized to a square: [n, size, size, C]."""
        if self.as_stored:
            return stored.cut(encoded, place, size, self.channels)
        return decode.cut(encoded, place, size)


RGB = Pixels()


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedSource:
    """A split of encoded images, each decoded at every access; the host can cut random crops from them.

    Args:
      name: the name of the set.
      files: the encoded images.
      labels: int32 [N], -1 where unknown.
      stored_size: side S of what `examples` returns.
      class_names: the names of the classes, or None without labels.
      fingerprint: SHA-256 hex digest of what determines examples and order.
      report: describes the files for `data_report.json`.
      pixels: how the pixels are read.
    """

    name: str
    files: Files = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    stored_size: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    report: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)
    pixels: Pixels = RGB

    @property
    def kind(self) -> str:
        return IMAGES

    @property
    def in_memory(self) -> bool:
        return False

    @functools.cached_property
    def ids(self) -> np.ndarray:
        return np.arange(len(self), dtype=np.int32)

    @property
    def kept_files(self) -> Mapping[str, bytes]:
        return {}

    def __len__(self) -> int:
        return len(self.labels)

    def examples(self, indices: np.ndarray) -> np.ndarray:
        """Decodes the central squares at `indices` in threads, resized: [n, S, S, C]."""
        squares = self.pixels.empty(len(indices), self.stored_size, self.stored_size)

        def store(row: int) -> None:
            index = int(indices[row])
            encoded = _read(self.files, index)
            squares[row] = _cut(self.files, index, encoded, central_square, self.stored_size, self.pixels)[0]

        with ThreadPoolExecutor(available_cores()) as threads:
            for _ in threads.map(store, range(len(indices))):
                pass
        return squares

    def display(self, indices: np.ndarray) -> list[str] | None:
        return self.files.names(indices)

    def host_views(self, recipe: CropRecipe | None) -> 'Crops | None':
        """Random crops of whole images by a recipe."""
        return None if recipe is None else Crops(self.files, recipe, self.pixels)

    def decoded(self) -> ArraySource:
        """Decodes every image of the split, and returns it as a split in memory."""
        rows = np.arange(len(self))
        pixels, files = self.examples(rows), self.display(rows)
        return image_source(self.name, pixels, self.labels, self.class_names, self.fingerprint, self.report, files)


@dataclasses.dataclass(frozen=True, eq=False)
class Crops:
    """Random crops that the host cuts from whole images, the `HostViews` of an `EncodedSource`.

    Args:
      files: the encoded images.
      recipe: the recipe of the V crops of an image, resized to `size` pixels a side.
      pixels: how images are read.
    """

    files: Files
    recipe: CropRecipe
    pixels: Pixels = RGB

    def prepare(self) -> None:
        self.files.prepare()
        Image.init()  # Pillow imports its decoders when they are first needed

    def blank(self, count: int) -> np.ndarray:
        """[count, V, size, size, C], uninitialised."""
        return self.pixels.empty(count, len(self.recipe.scales), self.recipe.size, self.recipe.size)

    def make(self, indices: np.ndarray, positions: np.ndarray, seed: int, step: int, out: np.ndarray) -> None:
        """Writes the crops of the images at `indices` [n] into `out`: [n, V, size, size, C].

        Files are read ahead, `READS` at a time: reading a file over a network takes as long as decoding it, or longer.
        """
        rows = zip(indices.tolist(), positions.tolist(), strict=True)
        with ThreadPoolExecutor(READS) as threads:
            contents = threads.map(partial(_read, self.files), indices.tolist())
            for row, ((index, position), encoded) in enumerate(zip(rows, contents, strict=True)):
                place = partial(draw_boxes, crop_rng(seed, step, position), self.recipe)
                out[row] = _cut(self.files, index, encoded, place, self.recipe.size, self.pixels)


def _read(files: Files, index: int) -> bytes:
    """The content of a file. Raises RestartError if there is not enough memory for it, and as `Files.read` does."""
    try:
        return files.read(index)
    except MemoryError as error:
        raise _short_of_memory(files, index) from error


def _short_of_memory(files: Files, index: int) -> RestartError:
    return RestartError(
        f'{files.where(index)}: not enough memory to decode it; free some, and run the same command again'
    )


def _cut(files: Files, index: int, encoded: bytes, place: Place, size: int, pixels: Pixels) -> np.ndarray:
    """Cuts the boxes of `place` from an image, resized: [V, size, size, C].

    Raises:
      RestartError: there is not enough memory for it.
      UserError: it cannot be decoded.
    """
    try:
        return pixels.cut(encoded, place, size)
    except MemoryError as error:
        raise _short_of_memory(files, index) from error
    except Exception as error:  # any error of a decoder; the image could be decoded when it was examined
        raise UserError(
            f'{files.where(index)}: cannot be decoded ({error}); remove it or restore it, then run again'
        ) from error


def in_memory_if_small(data: Any, train: EncodedSource, test: EncodedSource | None) -> Splits:
    """Decodes both splits into memory if they fit into `data.memory_bytes` together; else returns them unchanged."""
    needed = (len(train) + (len(test) if test else 0)) * math.prod(image_shape(train))
    needed *= np.dtype(image_type(train)).itemsize
    if needed > data.memory_bytes:
        return Splits(train, test)
    return Splits(train.decoded(), test.decoded() if test else None)


def stored_size(data: Any) -> int:
    """The side of the squares that are kept, in pixels: `data.stored_size`, or 8/7 of `data.image_size` (224: 256)."""
    return data.stored_size or -(-data.image_size * 8 // 7)
