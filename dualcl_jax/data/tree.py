"""Pytrees of NumPy arrays, for processes that do not import JAX: an array, or dicts, lists and tuples of trees."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dualcl_jax.system.tree import Tree


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array; a leaf of a tree, also for JAX."""

    shape: tuple[int, ...]
    dtype: np.dtype


def leaves(tree: Tree) -> Iterator[Any]:
    """The leaves of a tree, in the order of `jax.tree.leaves`: dicts by their sorted keys."""
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from leaves(tree[key])
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from leaves(part)
    else:
        yield tree


def map_tree(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Applies a function to the leaves at the same place in each tree, and returns a tree like the first."""
    if isinstance(tree, dict):
        return {key: map_tree(function, tree[key], *(other[key] for other in others)) for key in sorted(tree)}
    if isinstance(tree, list | tuple):
        parts = [map_tree(function, *group) for group in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, '_fields') else type(tree)(parts)
    return function(tree, *others)


def num_rows(tree: Tree) -> int:
    """The number of examples in a batch, the length of the leading axis of every leaf.

    Raises:
      ValueError: the leaves have no such axis in common.
    """
    shapes = [np.shape(leaf) for leaf in leaves(tree)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f'expected arrays with one leading axis in common, got {shapes}')
    return shapes[0][0]


def row_spec(tree: Tree) -> Tree:
    """Shapes and dtypes of one example of a batch: an `ArraySpec` for each leaf, without the leading axis."""
    return map_tree(lambda leaf: ArraySpec(leaf.shape[1:], leaf.dtype), tree)


def batch_of(example: Tree, count: int) -> Tree:
    """Shapes and dtypes of `count` examples: a tree of `ArraySpec` with a leading axis."""
    return map_tree(lambda leaf: ArraySpec((count, *leaf.shape), leaf.dtype), example)


def empty(spec: Tree) -> Tree:
    """Uninitialised arrays of the shapes and dtypes of a tree of `ArraySpec`."""
    return map_tree(lambda leaf: np.empty(leaf.shape, leaf.dtype), spec)


def describe(spec: Tree) -> Any:
    """Converts a tree of `ArraySpec` to JSON values; one uint8 array to its shape alone, such as [32, 32, 3]."""
    if isinstance(spec, ArraySpec) and spec.dtype == np.uint8:
        return list(spec.shape)
    return _describe(spec)


def _describe(spec: Tree) -> Any:
    if isinstance(spec, dict):
        return {key: _describe(spec[key]) for key in sorted(spec)}
    if isinstance(spec, list | tuple):
        return [_describe(part) for part in spec]
    return {'shape': list(spec.shape), 'dtype': spec.dtype.name}


def parse(described: Any) -> Tree:
    """The inverse of `describe`; lists become tuples. Raises ValueError or TypeError for other values."""
    if isinstance(described, dict):
        if described.keys() == {'shape', 'dtype'} and isinstance(described['dtype'], str):
            return ArraySpec(tuple(map(int, described['shape'])), np.dtype(described['dtype']))
        return {key: parse(part) for key, part in described.items()}
    if not isinstance(described, list):
        raise TypeError(f'{described!r} describes no array')
    if all(isinstance(part, int) for part in described):
        return ArraySpec(tuple(described), np.dtype(np.uint8))
    return tuple(parse(part) for part in described)
