"""Gradient accumulation: processes a batch in several parts to save memory, for one step of the optimizer.

Row i of a device belongs to part i modulo the number of parts. Each device holds consecutive positions of the global
batch, and their number is a multiple of the number of parts. So a part holds the same examples on any number of
devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dualcl_jax.system.tree import Tree


def split(rows: Tree, parts: int, axis: int = 0) -> Tree:
    """Splits leaves [..., b, ...] into [parts, ..., b / parts, ...]; b is the length of `axis`."""

    def one(leaf: jax.Array) -> jax.Array:
        shape = (*leaf.shape[:axis], leaf.shape[axis] // parts, parts, *leaf.shape[axis + 1 :])
        return jnp.moveaxis(leaf.reshape(shape), axis + 1, 0)

    return jax.tree.map(one, rows)


def join(stacked: Tree, axis: int = 0) -> Tree:
    """The inverse of `split`."""

    def one(leaf: jax.Array) -> jax.Array:
        rows = jnp.moveaxis(leaf, 0, axis + 1)
        return rows.reshape(*rows.shape[:axis], -1, *rows.shape[axis + 2 :])

    return jax.tree.map(one, stacked)


def average_gradient(
    loss_fn: Callable[[Tree, Tree, Tree], tuple[jax.Array, tuple[Tree, Tree]]], params: Tree, carry: Tree, parts: Tree
) -> tuple[Tree, Tree, Tree]:
    """Averages the gradient of a mean loss over parts.

    Args:
      loss_fn: (params, carry, part) -> loss, (next carry, output).
      params: the parameters to differentiate by.
      carry: the values that one part passes to the next, such as running statistics.
      parts: a tree of arrays whose first axis counts the parts.

    Returns:
      The gradient, the last carry, and the outputs stacked over parts.
    """
    count = jax.tree.leaves(parts)[0].shape[0]

    def add(state: tuple[Tree, Tree], part: Tree) -> tuple[tuple[Tree, Tree], Tree]:
        total, carry = state
        (_, (carry, output)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, part)
        return (jax.tree.map(lambda sum_, new: sum_ + new / count, total, gradient), carry), output

    (gradient, carry), outputs = jax.lax.scan(add, (jax.tree.map(jnp.zeros_like, params), carry), parts)
    return gradient, carry, outputs
