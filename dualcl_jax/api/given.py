"""The data given to `dualcl_jax.train`: files, or arrays and sentences to store in a file of the workdir."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualcl_jax.system.errors import UserError

Images = np.ndarray | tuple[np.ndarray, np.ndarray] | Mapping[str, np.ndarray]
Sentences = Sequence[str] | Sequence[tuple[str, str]]
Data = str | os.PathLike[str] | Images | Sentences

TEXT = 'text'
PAIR = ('first', 'second')
"""The columns of the file that stores sentences, or pairs of them."""


def fields(data: Data, workdir: str, *, of_text: bool) -> dict[str, Any]:
    """Fields of the config with the location of the data; arrays and sentences are first written into the workdir.

    Args:
      data: see `dualcl_jax.train`.
      workdir: folder of the run; local, unless the data is a path.
      of_text: whether the config trains on sentences (`data.name=text`).

    Returns:
      `data.name` and `data.path`; `data.columns` for sentences; `data.channels` for images if it must be stated.

    Raises:
      UserError: the data is none of these; the message says what to give.
    """
    if isinstance(data, str | os.PathLike):
        path = os.fspath(data)
        arrays = path.endswith('.npz') and not os.path.isdir(path)
        return {'data.name': 'text' if of_text else 'npz' if arrays else 'folder', 'data.path': path}
    if '://' in workdir:
        kind = 'sentences' if of_text else 'arrays'
        raise UserError(f'workdir={workdir}: {kind} are stored in the workdir, which must be local; or give a file')
    return _sentences(data, workdir) if of_text else _images(data, workdir)


def _sentences(data: Any, workdir: str) -> dict[str, Any]:
    from dualcl_jax.system.files import write_text
    from dualcl_jax.workdir.folder import open_workdir

    rows: list[Any] = list(data) if isinstance(data, Sequence) else [None]
    columns: tuple[str, ...] = (TEXT,) if all(isinstance(row, str) for row in rows) else PAIR
    if len(columns) == 2 and not all(_is_pair(row) for row in rows):
        raise UserError(
            'data: the config trains on sentences; give a file, a list of strings, or a list of pairs of strings'
        )
    lines = [json.dumps(dict(zip(columns, (row,) if isinstance(row, str) else row, strict=True))) for row in rows]
    path = open_workdir(workdir) / 'data.jsonl'
    write_text(path, ''.join(f'{line}\n' for line in lines))
    return {'data.name': 'text', 'data.path': str(path), 'data.columns': ','.join(columns)}


def _is_pair(row: Any) -> bool:
    return isinstance(row, Sequence) and len(row) == 2 and all(isinstance(value, str) for value in row)


def _images(data: Any, workdir: str) -> dict[str, Any]:
    from dualcl_jax.data.images.npz import ALIASES
    from dualcl_jax.data.images.source import is_photographic
    from dualcl_jax.workdir.folder import open_workdir

    if isinstance(data, Mapping):
        arrays = dict(data)
    elif isinstance(data, tuple):
        if len(data) != 2:
            raise UserError(f'data: a tuple of {len(data)} items; give (images, labels)')
        arrays = {'train_images': data[0], 'train_labels': data[1]}
    else:
        arrays = {'train_images': data}
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    if any(array.dtype.kind in 'OU' for array in named.values()):
        raise UserError(
            f'data: {type(data).__name__}; give a path, an array of images, (images, labels) or a mapping of arrays; '
            "sentences need a text config, such as config='sentences'"
        )
    path = os.path.join(open_workdir(workdir), 'data.npz')
    partial = f'{path}.new.npz'  # written from the arrays: a copy of them may not fit into memory
    np.savez(partial, **named)
    os.replace(partial, path)
    found: dict[str, Any] = {'data.name': 'npz', 'data.path': path}
    ours = {ALIASES.get(name.lower(), name): array for name, array in named.items()}
    images = ours.get('train_images', ours.get('images', np.empty(0)))
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.ndim in (3, 4) and not is_photographic(images.dtype.name, channels):
        found['data.channels'] = channels
    return found
