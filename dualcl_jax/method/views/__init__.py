"""Views: the inputs of the encoders for an example, for each kind of example.

An example is a pytree of arrays; in a batch of n examples every leaf has a leading axis n, and in V views of them
the leading axes [V, n]. A kind is one function and one line of `VIEWS`. A source specifies the kind of its examples.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from dualcl_jax.method.views.images import image_views
from dualcl_jax.method.views.text import text_views
from dualcl_jax.system.tree import Tree


class Views(Protocol):
    """Makes views of examples of one kind. Hashable and static: part of the method."""

    @property
    def host_recipe(self) -> Any:
        """The recipe of what the host prepares, for `Source.host_views`; None if it passes on whole examples."""
        ...

    def make(self, keys: jax.Array, examples: Tree) -> Tree:
        """Makes random views of examples [n, ...], ready for the encoder: a tree [V, n, ...].

        View v of an example depends on its key (keys [n]), on v and on the example, not on the rest of the batch.
        """
        ...

    def plain(self, examples: Tree) -> Tree:
        """Prepares examples [n, ...] for the encoder without augmentation, for evaluation."""
        ...

    def raw(self, examples: Tree) -> jax.Array | None:
        """Converts examples to vectors float32 [n, F], a baseline for features; None if that is not meaningful."""
        ...

    def blank(self) -> Tree:
        """Makes a view [1, ...] for the encoder, with arbitrary content; its shapes initialise the parameters."""
        ...


VIEWS: dict[str, Callable[[Any, Tree], Views]] = {'images': image_views, 'text': text_views}
"""For each kind of example, the function that makes its `Views` from a config and a batch of examples.

Only the shapes and dtypes of the batch are used."""
