"""Vision transformer (arXiv 2010.11929) as MoCo v3 trains it (arXiv 2104.02057, §5 and its published code).

It has fixed two-dimensional sine-cosine positions or learned ones, a class token as the feature, layer norm before each
branch, and a patch projection that may keep its initial values (§4.2: learning it makes training unstable). MoCo v3's
ViT-S has 12 heads.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dualcl_jax.models.layers import Dense, add_bias, layer_norm, normal, patches

SINE_COSINE, LEARNED = POSITIONS = ('sine_cosine', 'learned')
"""The values of `model.positions`."""
EPSILON = 1e-6
"""The ε of every layer norm."""


def uniform(bound: float) -> nn.initializers.Initializer:
    """Initialiser with values uniform over [-bound, bound], drawn flat like `layers.normal`."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


def _dense(inputs: int, outputs: int, *, name: str, dtype: Any, parts: int = 1) -> Dense:
    """Dense layer with Glorot uniform weights; each of the `parts` of its outputs is drawn as a separate layer."""
    bound = math.sqrt(6 / (inputs + outputs // parts))
    return Dense(outputs, dtype=dtype, kernel_init=uniform(bound), name=name)


def sine_cosine_positions(height: int, width: int, dim: int, temperature: float = 10_000.0) -> np.ndarray:
    """Position embedding of a grid of patches, row by row: float32 [height * width, dim] (2104.02057, §5).

    The columns are four quarters: sine and cosine of the row, sine and cosine of the column, at the frequencies
    temperature^(-i / (dim/4)). `dim` must be a multiple of 4.
    """
    frequencies = temperature ** -(np.arange(dim // 4) / (dim // 4))
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = [np.outer(place, frequencies) for place in (rows, columns)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each around a shortcut: [N, T, D] to [N, T, D] in `dtype`.

    Attributes:
      heads: attention heads; their number divides D.
      dtype: the dtype of the computation, except the softmax, which is float32.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        count, tokens, dim = x.shape
        qkv = _dense(dim, 3 * dim, name='qkv', dtype=self.dtype, parts=3)(layer_norm(x, EPSILON, name='norm1'))
        q, k, v = jnp.moveaxis(qkv.reshape(count, tokens, 3, self.heads, dim // self.heads), 2, 0)
        logits = jnp.einsum('nqhd,nkhd->nhqk', q, k).astype(jnp.float32) / math.sqrt(dim // self.heads)
        attention = nn.softmax(logits).astype(self.dtype)
        mixed = jnp.einsum('nhqk,nkhd->nqhd', attention, v).reshape(count, tokens, dim)
        x = x + _dense(dim, dim, name='proj', dtype=self.dtype)(mixed)
        hidden = _dense(dim, 4 * dim, name='fc1', dtype=self.dtype)(layer_norm(x, EPSILON, name='norm2'))
        return x + _dense(4 * dim, dim, name='fc2', dtype=self.dtype)(nn.gelu(hidden, approximate=False))


class VisionTransformer(nn.Module):
    """Images float32 [N, H, W, C] to features float32 [N, dim]; examples never interact, not even in training.

    Attributes:
      patch: side of a patch in pixels; divides H and W.
      dim: D, width of every token; a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: attention heads.
      norm, stem, width: not used: there are no batch statistics, no stem, and `dim` is the width.
      freeze_patches: no gradient reaches the patch projection, so an optimizer without weight decay does not change it.
      positions: 'sine_cosine' (fixed, for the patches alone) or 'learned' (for the class token, too; 2010.11929).
      remat: store only the inputs of blocks for the backward pass and recompute the rest.
      dtype: the dtype of the computation; parameters and features are float32.
    """

    patch: int
    dim: int
    depth: int
    heads: int
    norm: Callable[..., nn.Module]
    stem: str = 'imagenet'
    width: int = 64
    freeze_patches: bool = True
    positions: str = SINE_COSINE
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        cut = patches(images, self.patch)
        count, rows, columns, inputs = cut.shape
        x = _dense(inputs, self.dim, name='patch_embed', dtype=self.dtype)(cut.reshape(count, rows * columns, inputs))
        if self.freeze_patches:
            x = jax.lax.stop_gradient(x)
        if self.positions == SINE_COSINE:
            x = x + jnp.asarray(sine_cosine_positions(rows, columns, self.dim), self.dtype)[None]
        token = self.param('cls_token', nn.initializers.normal(1e-6), (self.dim,), jnp.float32)
        first = jnp.broadcast_to(token, (count, 1, self.dim)).astype(self.dtype)
        x = jnp.concatenate([first, x], axis=1)
        if self.positions == LEARNED:
            places = self.param('pos_embed', normal(0.02), (1 + rows * columns, self.dim), jnp.float32)
            x = add_bias(x, places)
        block = nn.remat(Block) if self.remat else Block
        for index in range(self.depth):
            x = block(self.heads, self.dtype, name=f'blocks_{index}')(x)
        # Converted before it is sliced: else XLA:CPU (jaxlib 0.12.0.1) calls oneDNN with bfloat16 and fails to compile.
        return layer_norm(x.astype(jnp.float32)[:, 0], EPSILON, name='norm')


VITS = {
    'vit_s16': partial(VisionTransformer, patch=16, dim=384, depth=12, heads=12),
    'vit_s16_h6': partial(VisionTransformer, patch=16, dim=384, depth=12, heads=6),  # as in DINO and timm
    'vit_b16': partial(VisionTransformer, patch=16, dim=768, depth=12, heads=12),
    'vit_l16': partial(VisionTransformer, patch=16, dim=1024, depth=24, heads=16),
    'vit_tiny': partial(VisionTransformer, patch=4, dim=64, depth=2, heads=4),
}
PATCHES: dict[str, int] = {name: vit.keywords['patch'] for name, vit in VITS.items()}
"""Side of the patches of each ViT; `data.image_size` must be a multiple of it."""
