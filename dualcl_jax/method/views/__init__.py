"""Views: what a method shows its encoders of an example, for each kind of example.

An example is a pytree of arrays; a batch of n examples has a leading axis n on every leaf, and V views of them
have [V, n]. A kind is one function and one line of `VIEWS`. A source says of which kind its examples are.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from dualcl_jax.method.views.images import image_views

Tree = Any


class Views(Protocol):
    """How views are made of the examples of one kind. Hashable and static: part of the method."""

    @property
    def host_recipe(self) -> Any:
        """What the host prepares of each example, for `Source.host_views`; None where it passes on whole examples."""
        ...

    def make(self, keys: jax.Array, examples: Tree) -> Tree:
        """Random views, ready for the encoder: a tree [V, n, ...] of examples [n, ...].

        View v of an example depends on its key (keys [n]), on v and on the example, not on the rest of the batch.
        """
        ...

    def plain(self, examples: Tree) -> Tree:
        """The examples [n, ...] without augmentation, ready for the encoder: for evaluation."""
        ...

    def raw(self, examples: Tree) -> jax.Array | None:
        """The examples as vectors [n, F] float32, to compare features with; None where that makes no sense."""
        ...

    def blank(self) -> Tree:
        """One view [1, ...] ready for the encoder, of any content: the shapes that parameters are initialised for."""
        ...


VIEWS: dict[str, Callable[[Any, Tree], Views]] = {'images': image_views}
"""By the kind of examples: a function of a config and of a batch of examples, whose shapes and dtypes alone count."""
