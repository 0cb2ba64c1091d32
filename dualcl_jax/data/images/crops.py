"""Crops that the host makes, as pure functions of (seed, step, position in the global batch). NumPy only."""

import math
from typing import NamedTuple

import numpy as np

from dualcl_jax.data.images.decode import Box

TRIES = 10
PURPOSE = 1  # in Philox's counter; the data order draws with the same key and 0


class CropRecipe(NamedTuple):
    """The crops that the host cuts from each image: one for each view, resized to `size` pixels a side.

    scales, ratios: for each view the (least, largest) share of the area, and width / height.
    """

    scales: tuple[tuple[float, float], ...]
    ratios: tuple[tuple[float, float], ...]
    size: int


def crop_rng(seed: int, step: int, position: int) -> np.random.Generator:
    """The generator of one example's crops, the same in every process."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, position, 0, PURPOSE]))


def draw_boxes(rng: np.random.Generator, recipe: CropRecipe, height: int, width: int) -> list[Box]:
    """Draws a box for each view of a [height, width] image, in their order."""
    pairs = zip(recipe.scales, recipe.ratios, strict=True)
    return [draw_box(rng.random(2 * TRIES + 2), height, width, scale, ratio) for scale, ratio in pairs]


def draw_box(draws: np.ndarray, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """Draws a box as `views.image_draws.draw_crop` does, distributed as in torchvision's `RandomResizedCrop`.

    `draws`: float64 [22], uniform in [0, 1).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw in zip(draws[:TRIES], draws[TRIES : 2 * TRIES], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(low + (high - low) * ratio_draw)
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draws[-2] * (height - box_height + 1))
            left = int(draws[-1] * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def central_square(height: int, width: int) -> list[Box]:
    """The largest central square of a [height, width] image."""
    side = min(height, width)
    return [Box((height - side) // 2, (width - side) // 2, side, side)]
