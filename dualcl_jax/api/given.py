"""The data that a call of `dualcl_jax.train` names: files, or arrays and sentences for a file of the workdir."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np

from dualcl_jax.data.images.npz import ALIASES
from dualcl_jax.data.images.source import is_photographic
from dualcl_jax.system.errors import UserError

Images = np.ndarray | tuple[np.ndarray, np.ndarray] | Mapping[str, np.ndarray]
Sentences = Sequence[str] | Sequence[tuple[str, str]]
Data = str | os.PathLike[str] | Images | Sentences

TEXT = 'text'
PAIR = ('first', 'second')
"""The columns of the file that keeps sentences, and pairs of them."""


def fields(data: Data, workdir: str, *, of_text: bool) -> dict[str, Any]:
    """Fields of the config that say where the data is; arrays and sentences are first written into the workdir.

    Args:
      data: see `dualcl_jax.train`.
      workdir: folder of the run; local, unless the data is a path.
      of_text: whether the config trains on sentences (`data.name=text`).

    Returns:
      `data.name` and `data.path`; `data.columns` of sentences; `data.channels` of images for which it must be stated.

    Raises:
      UserError: the data is neither; the line says what to give.
    """
    if isinstance(data, str | os.PathLike):
        path = os.fspath(data)
        arrays = path.endswith('.npz') and not os.path.isdir(path)
        return {'data.name': 'text' if of_text else 'npz' if arrays else 'folder', 'data.path': path}
    if '://' in workdir:
        kind = 'sentences' if of_text else 'arrays'
        raise UserError(f'workdir={workdir}: {kind} are stored in the workdir, which must be local; or name a file')
    return _sentences(data, workdir) if of_text else _images(data, workdir)


def _sentences(data: Any, workdir: str) -> dict[str, Any]:
    rows: list[Any] = list(data) if isinstance(data, Sequence) else [None]
    columns: tuple[str, ...] = (TEXT,) if all(isinstance(row, str) for row in rows) else PAIR
    if len(columns) == 2 and not all(_is_pair(row) for row in rows):
        raise UserError(
            'data: the config trains on sentences; give a file, a list of strings, or one of pairs of strings'
        )

    def write(file: IO[bytes]) -> None:
        for row in rows:
            values = (row,) if isinstance(row, str) else row
            file.write(json.dumps(dict(zip(columns, values, strict=True))).encode() + b'\n')

    path = _store(workdir, 'data.jsonl', write)
    return {'data.name': 'text', 'data.path': path, 'data.columns': ','.join(columns)}


def _is_pair(row: Any) -> bool:
    return isinstance(row, Sequence) and len(row) == 2 and all(isinstance(value, str) for value in row)


def _images(data: Any, workdir: str) -> dict[str, Any]:
    if isinstance(data, Mapping):
        arrays = dict(data)
    elif isinstance(data, tuple):
        if len(data) != 2:
            raise UserError(f'data: a tuple of {len(data)}; give (images, labels)')
        arrays = {'train_images': data[0], 'train_labels': data[1]}
    elif isinstance(data, np.ndarray):
        arrays = {'train_images': data}
    else:
        raise UserError(
            f'data: {type(data).__name__}; give a path, an array of images, (images, labels) or a mapping of arrays; '
            "sentences need a config of text, such as config='sentences'"
        )
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    path = _store(workdir, 'data.npz', lambda file: np.savez(file, **named))
    found: dict[str, Any] = {'data.name': 'npz', 'data.path': path}
    ours = {ALIASES.get(name.lower(), name): array for name, array in named.items()}
    images = ours.get('train_images', ours.get('images', np.empty(0)))
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.ndim in (3, 4) and not is_photographic(images.dtype.name, channels):
        found['data.channels'] = channels
    return found


def _store(workdir: str, name: str, write: Callable[[IO[bytes]], None]) -> str:
    """Writes a file of the workdir whole or not at all, and returns its path."""
    from dualcl_jax.workdir.folder import open_workdir

    path = os.path.join(open_workdir(workdir), name)
    with open(f'{path}.new', 'wb') as file:
        write(file)
    os.replace(f'{path}.new', path)
    return path
