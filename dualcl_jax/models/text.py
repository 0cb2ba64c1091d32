"""Encoders of sentences: their geometry, the pooling of token vectors, and the bag of words.

Their input is a tree. With n sentences of at most L tokens:

    tokens   int32 [n, L], rows of the token embedding: the tokenizer adds the first and the last one to a sentence,
             [CLS] and [SEP] in BERT; tokens after the last one are not read
    length   int32 [n], the number of tokens of each sentence, including the first and the last one
    dropout  uint32 [n, 2], the data of one PRNG key for each sentence; absent: no dropout
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualcl_jax.models.layers import normal
from dualcl_jax.system.tree import Tree


@dataclasses.dataclass(frozen=True)
class TextGeometry:
    """The sizes of a sentence encoder besides its width; each is the field of this name in a model config.

    Attributes:
      vocabulary: rows of the token embedding, at least 1.
      layers: number of blocks. This and all following fields apply to a transformer alone.
      heads: attention heads; divides the width.
      mlp_width: width of the inner layer of each block.
      max_positions: rows of the position embedding.
      position_offset: the row of the first token; 0 in BERT, 2 in RoBERTa.
      token_types: rows of the embedding of token types, of which row 0 is used; 0 for none.
      norm_epsilon: the ε of every layer norm.
      pooling: a key of `POOLINGS`.
      dropout: the share of entries that dropout sets to 0, in [0, 1).
    """

    vocabulary: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    position_offset: int
    token_types: int
    norm_epsilon: float
    pooling: str
    dropout: float

    @classmethod
    def of(cls, model_config: Any) -> Self:
        """The geometry that a model config describes."""
        return cls(**{name: getattr(model_config, name) for name in FIELDS})

    @property
    def longest(self) -> int:
        """The largest number of tokens that a transformer with these positions takes."""
        return self.max_positions - self.position_offset


FIELDS = tuple(field.name for field in dataclasses.fields(TextGeometry))


def describe_sizes(model: Mapping[str, Any]) -> str:
    """The sizes of a transformer in words.

    Args:
      model: the fields of a model config; `pooling` may be missing.
    """
    pooling = f', pooling {model["pooling"]}' if 'pooling' in model else ''
    return (
        f'{model["layers"]} layers of {model["width"]}, {model["heads"]} heads, {model["vocabulary"]:,} tokens, '
        f'{model["max_positions"] - model["position_offset"]:,} positions{pooling}'
    )


@jax.custom_vjp
def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Looks up the rows of a table [V, D] at tokens int32 [n, L], which are below V: [n, L, D].

    The gradient adds rows. Accelerators would add them in a new order each time, so there it sorts them first.
    """
    return jnp.take(table, tokens, axis=0, mode='clip')


def _look_up(table: jax.Array, tokens: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return look_up(table, tokens), (table, tokens)


def _gradient_of_table(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = saved
    rows, places = gradient.reshape(-1, table.shape[1]), tokens.reshape(-1)
    size = table.shape[0]
    added = jax.lax.platform_dependent(
        rows, places, cpu=partial(add_rows, size=size), default=partial(add_sorted_rows, size=size)
    )
    return added, None


look_up.defvjp(_look_up, _gradient_of_table)


def add_rows(rows: jax.Array, places: jax.Array, *, size: int) -> jax.Array:
    """Sums the rows [N, D] that have the same place, int32 [N] in [0, size): [size, D].

    The sums are float32. In bfloat16, which rounds each addition, those of frequent tokens would stop growing.
    """
    sums = jnp.zeros((size, rows.shape[1]), jnp.float32).at[places].add(rows.astype(jnp.float32))
    return sums.astype(rows.dtype)


def add_sorted_rows(rows: jax.Array, places: jax.Array, *, size: int) -> jax.Array:
    """Computes `add_rows`, within rounding, in an order that is always the same."""
    order = jnp.argsort(places)
    places, rows = places[order], rows[order]
    changes = places[1:] != places[:-1]
    edge = jnp.ones(1, bool)

    def combine(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return left[0] | right[0], jnp.where(right[0][:, None], right[1], left[1] + right[1])

    _, sums = jax.lax.associative_scan(combine, (jnp.concatenate([edge, changes]), rows))
    outside = size + jnp.arange(len(places), dtype=places.dtype)  # partial sums of a place go there and are dropped
    targets = jnp.where(jnp.concatenate([changes, edge]), places, outside)
    return jnp.zeros((size, rows.shape[1]), rows.dtype).at[targets].set(sums, mode='drop', unique_indices=True)


def masked_mean(vectors: jax.Array, length: jax.Array) -> jax.Array:
    """Mean over the tokens of each sentence: [n, L, D] of any float dtype and int32 [n] to float32 [n, D].

    A sentence without tokens has the mean 0.
    """
    inside = jnp.arange(vectors.shape[1])[None] < length[:, None]
    weights = inside.astype(jnp.float32) / jnp.maximum(length, 1).astype(jnp.float32)[:, None]
    return jnp.einsum('nl,nld->nd', weights, vectors.astype(jnp.float32))


def first_token(vectors: jax.Array, length: jax.Array) -> jax.Array:
    """The vector of the first token, [CLS] in BERT: [n, L, D] of any float dtype to float32 [n, D]."""
    del length
    return vectors[:, 0].astype(jnp.float32)


POOLINGS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {'mean': masked_mean, 'cls': first_token}
"""Functions that reduce token vectors [n, L, D] and lengths [n] to one vector for each sentence [n, D]."""


class Bag(nn.Module):
    """The mean of the embeddings of a sentence's tokens (1511.08198): a tree of n sentences to float32 [n, width].

    The first and the last token, which are the same in all sentences, do not count; the mean of no tokens is 0. There
    is no dropout, so two views of a sentence must differ in their words.

    Attributes:
      geometry: the sizes, of which only the vocabulary is used.
      norm, stem: not used.
      width: D.
      dtype: the dtype of the embeddings that are averaged.
    """

    geometry: TextGeometry
    norm: Callable[..., nn.Module]
    stem: str
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, sentences: Tree, *, train: bool) -> jax.Array:
        shape = self.geometry.vocabulary, self.width
        table = self.param('words', normal(1 / math.sqrt(self.width)), shape, jnp.float32)
        words, count = sentences['tokens'][:, 1:-1], sentences['length'] - 2
        return masked_mean(look_up(table.astype(self.dtype), words), count)
