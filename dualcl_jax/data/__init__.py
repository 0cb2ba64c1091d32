"""Data sets, the order of their examples, and the loader. NumPy only: nothing here starts a JAX backend."""

from collections.abc import Callable
from functools import partial
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dualcl_jax.data.images import folder, npz, photo_patches, tfds
from dualcl_jax.data.images.source import image_shape
from dualcl_jax.data.loader import Batch, Loader, batch_spec
from dualcl_jax.data.source import ArraySource, HostViews, Source, Splits, example_spec, hold_out, limit_train
from dualcl_jax.data.text import source as text
from dualcl_jax.data.text.tokens import kept_tokenizer
from dualcl_jax.data.workdir_data import kept_data
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import reachable
from dualcl_jax.system.kinds import IMAGES, TEXT

__all__ = [
    'SOURCES',
    'ArraySource',
    'Batch',
    'HostViews',
    'Loader',
    'Source',
    'Splits',
    'batch_spec',
    'data_config',
    'example_spec',
    'load',
]

# To add a data set, write a function from the data config to its splits and add a line here. Other names are TFDS sets.
SOURCES: dict[str, Callable[[Any], Splits]] = {
    'folder': folder.load,
    'npz': npz.load,
    'photo_patches': photo_patches.load,
    'text': text.load,
}


def data_config(
    config: Any, workdir: epath.Path | None = None, *, data: Any = None, definition: str = ''
) -> ConfigDict:
    """Makes the argument of `load`: the `data` part of a config, and under `text` the other settings of text examples.

    `text.tokenizer` is the path of the tokenizer in the workdir of a run. Without one there, it is that of the config,
    or else the one in the folder of `init_from`, whose encoder needs it. It is empty for a tokenizer that is trained on
    the corpus. `text.pretrained` is `init_from`. `path` is in the workdir if the data are kept there. `workdir` is that
    workdir.

    Args:
      config: a whole config; it is not changed.
      workdir: the workdir of the run, if it has started before.
      data: replaces the `data` part of the config.
      definition: the content of a `tokenizer.json` that an encoder needs; it replaces all of these paths.
    """
    found = ConfigDict((data or config.data).to_dict())
    kept = kept_tokenizer(workdir) if workdir is not None else ''
    if workdir is not None:
        found.path = kept_data(workdir, found.path)
    found.workdir = str(workdir or '')
    given = config.text.tokenizer
    if not given and config.init_from and found.name == TEXT:
        given = kept_tokenizer(reachable(config.init_from, f'--init_from={config.init_from}'))
    found.text = ConfigDict(
        {
            'tokenizer': kept or given,
            'definition': definition,
            'length': config.text.length,
            'vocabulary': config.model.vocabulary,
            'pretrained': config.init_from,
        }
    )
    return found


def load(data: Any, *, validate: bool = False) -> Splits:
    """Loads the splits that a data config describes.

    Args:
      data: the `data` part of the config, for text from `data_config`; `num_examples` 0 accepts any number. It may
        have a field `workdir`, a run whose cache of findings about its data is used (`dualcl_jax.data.run_cache`), or
        `shared`, the run that is training, which also writes it. Every process of that run must then load the data;
        process 0 examines the images and reads the labels for all processes with the same files.
      validate: return the examples that `validation_fraction` holds out, if any, in place of the test split. Choices
        are made on them, and a training run is measured on no others.

    Raises:
      UserError: the set is missing or malformed, does not have `data.num_examples` training examples, or cannot be
        divided.
    """
    if not data.name:
        raise UserError(f'data.name is empty: use one of {", ".join(sorted(SOURCES))}, or a TFDS name')
    read = SOURCES.get(data.name, partial(tfds.load, others=tuple(SOURCES)))
    train, test = read(data)
    _check_channels(data, train)
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


def _check_channels(data: Any, train: Source) -> None:
    """Raises UserError if the examples do not have the channels that the config states."""
    if not data.channels:
        return
    if train.kind != IMAGES:
        raise UserError(f'data.channels={data.channels}: {train.name} holds {train.kind}; use 0')
    found = image_shape(train)[2]
    if found != data.channels:
        raise UserError(f'data.channels={data.channels}: the images of {train.name} have {found}; use {found}, or 0')
