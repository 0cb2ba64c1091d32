"""Learning rates that fall from a network's last layer to its first, for fine-tuning."""

import re
from typing import Any

import jax
import optax

from dualcl_jax.method.optim import POSITIONS_PARAMETER

_DEPTH = re.compile(r'(?:layer(\d+)|blocks|stages_(\d+)_(blocks|downsample))_(\d+)')
"""The name of a block of a ResNet, a ViT or a ConvNeXt, or of a layer between two stages of a ConvNeXt."""
_FIRST = ('conv1', 'bn1', 'patch_embed', 'cls_token', POSITIONS_PARAMETER, 'stem_0', 'stem_1')


def layer_rates(params: optax.Params, decay: float) -> optax.Params:
    """Computes learning rate factors for fine-tuning, in the structure of `params` (1905.12174; 2106.08254, §A).

    The factor, a float, is decay^(L + 1 - l) for block l = 1 ... L of a ResNet, ViT or ConvNeXt. Layers before the
    blocks (the stem, the patch projection, the class token, learned positions) have l = 0. Layers after them (the last
    norm, heads) have the factor 1. The layers between two stages of a ConvNeXt belong to the block after them, as in
    its published code (2201.03545), which for classification puts up to three blocks into one layer; here, each is one.

    If no block is known by its name, as in a network of one's own, every factor is 1 (`has_known_blocks`).
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    blocks = sorted({place for path, _ in leaves if (place := _block(path)) is not None})

    def rate(path: tuple[Any, ...]) -> float:
        place = _block(path)
        if place is not None:
            return float(decay ** (len(blocks) - blocks.index(place)))
        before = any(getattr(entry, 'key', None) in _FIRST for entry in path)
        return float(decay ** (len(blocks) + 1)) if blocks and before else 1.0

    return jax.tree.unflatten(structure, [rate(path) for path, _ in leaves])


def has_known_blocks(params: optax.Params) -> bool:
    """Whether `layer_rates` knows the blocks of a network by the names of its parameters."""
    return any(_block(path) is not None for path, _ in jax.tree_util.tree_leaves_with_path(params))


def _block(path: tuple[Any, ...]) -> tuple[int, int] | None:
    """The stage of the block at a path, and its place there; None outside the known blocks."""
    found = [match for entry in path if (match := _DEPTH.fullmatch(str(getattr(entry, 'key', ''))))]
    if not found:
        return None
    layer, stage, part, place = found[0].groups()
    return int(layer or stage or 0), 0 if part == 'downsample' else int(place)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Multiplies updates by their `layer_rates`; chain it after an optimizer."""

    def scale(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree.map(lambda rate, update: rate * update, layer_rates(updates, decay), updates)

    return optax.stateless(scale)
