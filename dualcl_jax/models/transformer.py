"""Transformer encoder of sentences with the geometry of BERT (1810.04805) and RoBERTa (1907.11692).

It has layer norm after each branch, exact GELU, learned positions, and attention to the tokens of the sentence only.
With the weights of a model of Hugging Face's `transformers` it computes the same vectors, see
`dualcl_jax.models.huggingface`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.dropout import dropout
from dualcl_jax.models.layers import add_bias, layer_norm, normal
from dualcl_jax.models.text import POOLINGS, TextGeometry, look_up
from dualcl_jax.system.tree import Tree

DEVIATION = 0.02
"""Standard deviation of initial weights and embeddings, BERT's."""


class Dense(nn.Module):
    """Dense layer with BERT's initial weights, [n, L, I] to [n, L, features]; computes in and returns `dtype`.

    Attributes:
      features: length of the result.
      dtype: the dtype of the computation; the parameters are float32.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1], self.features
        kernel = self.param('kernel', normal(DEVIATION), shape, jnp.float32).astype(self.dtype)
        bias = self.param('bias', nn.initializers.zeros_init(), (self.features,), jnp.float32)
        precision = jax.config.jax_default_matmul_precision  # it may differ where the backward pass is traced
        out = product(x.astype(self.dtype).reshape(-1, shape[0]), kernel, precision)
        return add_bias(out, bias).reshape(*x.shape[:-1], self.features)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, precision: str | None) -> jax.Array:
    """Computes the product of x [N, I] and a kernel [I, O]. Its gradient is two products without copies on a CPU.

    JAX writes the gradient of the kernel as that of its transpose. For this, XLA:CPU first copies transposed arrays
    and recomputes the values in them.

    Args:
      x: an array of any float dtype.
      kernel: an array of the dtype of x.
      precision: the precision of all three products, as for `jax.default_matmul_precision`.
    """
    return jnp.matmul(x, kernel, precision=precision)


def _forward(x: jax.Array, kernel: jax.Array, precision: str | None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel, precision), (x, kernel)


def _backward(
    precision: str | None, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    gradient = jax.lax.optimization_barrier(gradient)  # computed once for both products
    of_x = jax.lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ())), precision=precision)
    of_kernel = jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), precision=precision)
    return of_x, of_kernel


product.defvjp(_forward, _backward)


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function at x (1606.08415), exact, in the dtype of x."""
    exact = x.astype(jnp.float32)
    return (0.5 * exact * (1.0 + jax.lax.erf(exact * math.sqrt(0.5)))).astype(x.dtype)


class Block(nn.Module):
    """Self-attention and a two-layer perceptron, each followed by a shortcut and layer norm: [n, L, D] in `dtype`.

    Attributes:
      geometry: the sizes.
      index: the number of the block, from 0.
      dtype: the dtype of the computation, except softmax and layer norm, which are float32.
    """

    geometry: TextGeometry
    index: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Computes the block; `bias` float32 [n, 1, 1, L] is added to the scores of each token as a key."""
        sizes, width = self.geometry, x.shape[-1]
        drop = partial(dropout, keys=keys, rate=sizes.dropout)
        first = 1 + 3 * self.index  # number of this block's first mask; 0 is that of the embeddings
        query, key, value = (Dense(width, self.dtype, name=name)(x) for name in ('query', 'key', 'value'))
        mixed = attend(query, key, value, bias, sizes.heads, partial(drop, layer=first))
        branch = drop(Dense(width, self.dtype, name='proj')(mixed), layer=first + 1)
        x = layer_norm(x + branch, sizes.norm_epsilon, name='norm1')
        hidden = gelu(Dense(sizes.mlp_width, self.dtype, name='fc1')(x))
        branch = drop(Dense(width, self.dtype, name='fc2')(hidden), layer=first + 2)
        return layer_norm(x + branch, sizes.norm_epsilon, name='norm2')


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    heads: int,
    drop: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Multi-head attention (1706.03762) with dropout of the attention weights.

    Args:
      query, key, value: [n, L, D].
      bias: float32 [n, 1, 1, L], added to the scores.
      heads: the number of heads, which divides D.
      drop: applies dropout to weights [n, heads, L, L].

    Returns:
      [n, L, D] in the dtype of the query.
    """
    split = (*query.shape[:2], heads, query.shape[2] // heads)
    scores = jnp.einsum('nqhd,nkhd->nhqk', query.reshape(split), key.reshape(split)).astype(jnp.float32)
    weights = drop(nn.softmax(scores / math.sqrt(split[-1]) + bias)).astype(query.dtype)
    return jnp.einsum('nhqk,nkhd->nqhd', weights, value.reshape(split)).reshape(query.shape)


class Transformer(nn.Module):
    """A tree of n sentences (see `dualcl_jax.models.text`) to float32 [n, width]; sentences never interact.

    Attributes:
      geometry: the sizes.
      norm, stem: not used.
      width: D, a multiple of `geometry.heads`.
      remat: store only the inputs of blocks for the backward pass and recompute the rest.
      dtype: the dtype of the computation; parameters and the result are float32.
    """

    geometry: TextGeometry
    norm: Callable[..., nn.Module]
    stem: str
    width: int
    remat: bool = False
    dtype: Any = jnp.float32

    def __call__(self, sentences: Tree, *, train: bool) -> jax.Array:
        return POOLINGS[self.geometry.pooling](self.token_vectors(sentences), sentences['length'])

    @nn.compact
    def token_vectors(self, sentences: Tree) -> jax.Array:
        """The vectors of all tokens [n, L, D] after the last block, in `dtype`; meaningless after a sentence's end."""
        sizes, tokens, keys = self.geometry, sentences['tokens'], sentences.get('dropout')
        x = Embeddings(sizes, self.width, name='embeddings')(tokens)
        x = dropout(x, keys, 0, sizes.dropout).astype(self.dtype)
        inside = jnp.arange(tokens.shape[1])[None] < sentences['length'][:, None]
        bias = jnp.where(inside, 0.0, jnp.finfo(jnp.float32).min)[:, None, None]
        block = nn.remat(Block) if self.remat else Block
        for index in range(sizes.layers):
            x = block(sizes, index, self.dtype, name=f'blocks_{index}')(x, bias, keys)
        return x


class Embeddings(nn.Module):
    """Layer norm of the sum of the embeddings of token, position and token type: int32 [n, L] to float32 [n, L, D].

    Attributes:
      geometry: the sizes.
      width: D.
    """

    geometry: TextGeometry
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        sizes, init = self.geometry, normal(DEVIATION)
        words = self.param('words', init, (sizes.vocabulary, self.width), jnp.float32)
        positions = self.param('positions', init, (sizes.max_positions, self.width), jnp.float32)
        x = look_up(words, tokens) + positions[sizes.position_offset :][: tokens.shape[1]][None]
        if sizes.token_types:
            x = x + self.param('types', init, (sizes.token_types, self.width), jnp.float32)[0][None, None]
        return layer_norm(x, sizes.norm_epsilon, name='norm')
