"""Data sets, the order of their examples, and the loader. NumPy only: nothing here starts a JAX backend."""

from collections.abc import Callable
from functools import partial
from typing import Any

from dualcl_jax.data.images import folder, npz, photo_patches, tfds
from dualcl_jax.data.loader import Batch, Loader, batch_spec
from dualcl_jax.data.source import ArraySource, HostViews, Source, Splits, example_spec, hold_out, limit_train
from dualcl_jax.system.errors import UserError

__all__ = [
    'SOURCES',
    'ArraySource',
    'Batch',
    'HostViews',
    'Loader',
    'Source',
    'Splits',
    'batch_spec',
    'example_spec',
    'load',
]

# To add a data set: a function from the data config to its splits, and a line here. Any other name is a TFDS set.
SOURCES: dict[str, Callable[[Any], Splits]] = {
    'folder': folder.load,
    'npz': npz.load,
    'photo_patches': photo_patches.load,
}


def load(data: Any, *, validate: bool = False) -> Splits:
    """The splits that a data config asks for.

    Args:
      data: the `data` part of the config; `num_examples` 0 takes whatever is found.
      validate: return the examples that `validation_fraction` holds out, if any, in place of the test split: choices
        are made by them, and a run that trains sees no others.

    Raises:
      UserError: the set is missing or malformed, or does not have `data.num_examples` training examples,
        or they cannot be divided.
    """
    if not data.name:
        raise UserError(f'data.name is empty: use one of {", ".join(sorted(SOURCES))}, or a TFDS name')
    read = SOURCES.get(data.name, partial(tfds.load, others=tuple(SOURCES)))
    train, test = read(data)
    train = limit_train(train, data.limit)
    if data.num_examples and data.num_examples != len(train):
        raise UserError(
            f'data.num_examples={data.num_examples}, but data.name={data.name} has {len(train)} training examples '
            'after data.limit: correct it, or set it to 0'
        )
    if not data.validation_fraction:
        return Splits(train, test)
    train, validation = hold_out(train, data.validation_fraction, data.hold_out)
    return Splits(train, validation if validate else test)
