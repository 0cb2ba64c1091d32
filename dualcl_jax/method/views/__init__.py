"""Views: the inputs that the encoders get for an example, for each kind of example.

An example is a pytree of arrays; in a batch of n examples every leaf has a leading axis n, and in V views of them the
leading axes [V, n]. A kind is one function and one line of `VIEWS`. A source specifies the kind of its examples.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from dualcl_jax.method.views.images import image_views
from dualcl_jax.method.views.text import text_views

Tree = Any


class Views(Protocol):
    """Makes views of examples of one kind. Hashable and static: part of the method."""

    @property
    def host_recipe(self) -> Any:
        """What the host prepares of each example, for `Source.host_views`; None if it passes on whole examples."""
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
        """The examples as vectors float32 [n, F], as a baseline for features; None if that is not meaningful."""
        ...

    def blank(self) -> Tree:
        """One view [1, ...] ready for the encoder, with arbitrary content: its shapes initialise the parameters."""
        ...


VIEWS: dict[str, Callable[[Any, Tree], Views]] = {'images': image_views, 'text': text_views}
"""By kind of example: a function of a config and of a batch of examples, of which only shapes and dtypes are used."""
