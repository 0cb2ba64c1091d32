"""Packs many small images into one picture inside a page, which stores each image once and shows it anywhere."""

import math

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.data import Source
from dualcl_jax.reports.figures import fit_within
from dualcl_jax.reports.html import jpeg_uri
from dualcl_jax.reports.visible import visible

LARGEST = 64
"""The most pixels of the longer side of an image."""
QUALITY = 88
GRAY = 128


class Sprite:
    """Collects images from sources, each image once, and packs them into one JPEG."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], int] = {}
        self._images: list[NDArray] = []
        self.side = 1

    def add(self, source: Source, indices: NDArray) -> list[int]:
        """Adds the images at `indices` [n] of a source, unless they are here already. Returns their tiles."""
        keys = [(id(source), int(index)) for index in indices]
        new = [key for key in dict.fromkeys(keys) if key not in self._places]
        if new:
            for key, image in zip(new, source.examples(np.array([index for _, index in new])), strict=True):
                self._places[key] = len(self._images)
                self._images.append(fit_within(visible(image), LARGEST))
                self.side = max(self.side, *self._images[-1].shape[:2])
        return [self._places[key] for key in keys]

    @property
    def pitch(self) -> int:
        """The pixels from one tile to the next: whole JPEG blocks, so that no tile affects another."""
        return -(-self.side // 8) * 8

    @property
    def columns(self) -> int:
        """The number of tiles in a row."""
        return max(1, math.ceil(math.sqrt(len(self._images))))

    def data_uri(self) -> str:
        """The picture as a data URI: rows of square tiles, each with its image in the middle."""
        side, pitch, columns = self.side, self.pitch, self.columns
        rows = max(1, math.ceil(len(self._images) / columns))
        sheet = np.full((rows * pitch, columns * pitch, 3), GRAY, np.uint8)
        for place, image in enumerate(self._images):
            height, width, _ = image.shape
            top, left = (
                pitch * at + (side - length) // 2
                for at, length in zip(divmod(place, columns), (height, width), strict=True)
            )
            sheet[top : top + height, left : left + width] = image
        return jpeg_uri(sheet, quality=QUALITY, subsampling=0)
