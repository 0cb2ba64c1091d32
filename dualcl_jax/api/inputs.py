"""The data given to `dualcl_jax.train`: files, or arrays and sentences to store in a file of the workdir."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.files import replacing

Images = np.ndarray | tuple[np.ndarray, np.ndarray | None] | Mapping[str, np.ndarray]
Sentences = Sequence[str] | Sequence[tuple[str, str]]
Data = str | os.PathLike[str] | Images | Sentences
Write = Callable[[IO[bytes]], object]

TEXT = 'text'
PAIR = ('first', 'second')
"""The columns of the file that stores sentences, or pairs of them."""


class HeldOut(NamedTuple):
    """How test images are chosen among labelled images that come without any: `data.test_fraction`, `data.hold_out`."""

    fraction: float
    how: str


class Input(NamedTuple):
    """Data as fields of a config.

    Attributes:
      fields: `data.name` and `data.path`; `data.columns` for sentences.
      channels: `data.channels` for images if it must be stated; 0 otherwise.
      write: writes the file at `data.path`, which is then in the workdir; None for the user's own files.
      note: what is printed when the file is written; empty for nothing.
    """

    fields: Mapping[str, Any] = {}
    channels: int = 0
    write: Write | None = None
    note: str = ''


def describe(data: Data, workdir: str, *, of_text: bool, held_out: HeldOut | None = None) -> Input:
    """Describes data. Nothing is written yet.

    The name of a file in the workdir has a digest of its content: it never replaces the data of a run.

    Args:
      data: see `dualcl_jax.train`.
      workdir: folder of the run; local, unless the data is a path.
      of_text: whether the config trains on sentences (`data.name=text`).
      held_out: how test images are chosen; None for none.

    Raises:
      UserError: the data is none of these; the message says what to give.
    """
    if isinstance(data, str | os.PathLike):
        path = os.fspath(data)
        return Input({'data.name': source_of(path, of_text=of_text), 'data.path': path})
    if '://' in workdir:
        kind = 'sentences' if of_text else 'arrays'
        raise UserError(f'workdir={workdir}: {kind} are stored in the workdir, which must be local; or give a file')
    return _sentences(data, workdir) if of_text else _images(data, workdir, held_out)


def source_of(path: str, *, of_text: bool) -> str:
    """The `data.name` of the data at a path."""
    arrays = path.lower().endswith('.npz') and not os.path.isdir(os.path.expanduser(path))
    return 'text' if of_text else 'npz' if arrays else 'folder'


@contextlib.contextmanager
def stored(given: Input, workdir: str) -> Iterator[None]:
    """A context in which the data are in their file.

    At its end, a file that it has written is removed if no run in the workdir uses it, such as after a mistake. Every
    process of a run may enter it.

    Raises:
      UserError: the file cannot be written.
    """
    from dualcl_jax.workdir.folder import existing_or_new, open_workdir, stored_config

    path = given.fields.get('data.path', '')
    writes = given.write is not None and not os.path.exists(path)
    if writes:
        assert given.write is not None
        open_workdir(workdir)
        write(path, given.write)
        if given.note:
            print(given.note)
    try:
        with without_path(path) if writes else contextlib.nullcontext():
            yield
    finally:
        if writes:
            # Errors of a folder that is away are suppressed: the error that ended the run counts.
            with contextlib.suppress(OSError, UserError):
                config = stored_config(existing_or_new(workdir))
                if config is None or config.data.path != path:
                    os.unlink(path)


@contextlib.contextmanager
def without_path(path: str) -> Iterator[None]:
    """A context whose errors name data that were given in memory as 'data', not by the path of their file."""
    try:
        yield
    except UserError as error:
        error.args = (re.sub(rf'(config\.)?data\.path={re.escape(path)}', 'data', str(error)),)
        raise


def write(path: str, function: Write) -> None:
    """Writes a file atomically by the function. Raises UserError if that fails."""
    try:
        with replacing(Path(path), shared=True) as partial, partial.open('wb') as file:
            function(file)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({reason_of(error)}); choose another workdir') from error


def _place(workdir: str, digest: str, ending: str) -> str:
    """The path in the workdir of a file with a content."""
    from dualcl_jax.data.workdir_data import kept_name
    from dualcl_jax.workdir.folder import existing_or_new

    return str(existing_or_new(workdir) / kept_name(digest, ending))


def _sentences(data: Any, workdir: str) -> Input:
    if isinstance(data, np.ndarray) and data.dtype.kind in 'OTU':
        data = data.tolist()
    rows: list[Any] = list(data) if isinstance(data, Sequence) else [None]
    columns: tuple[str, ...] = (TEXT,) if all(isinstance(row, str) for row in rows) else PAIR
    if len(columns) == 2 and not all(_is_pair(row) for row in rows):
        raise UserError('data: sentences are needed: a file, a list of strings, or a list of pairs of strings')
    lines = [json.dumps(dict(zip(columns, (row,) if isinstance(row, str) else row, strict=True))) for row in rows]
    content = ''.join(f'{line}\n' for line in lines).encode()
    path = _place(workdir, hashlib.sha256(content).hexdigest(), '.jsonl')
    fields = {'data.name': 'text', 'data.path': path, 'data.columns': ','.join(columns)}
    return Input(fields, write=lambda file: file.write(content))


def _is_pair(row: Any) -> bool:
    return isinstance(row, Sequence) and len(row) == 2 and all(isinstance(value, str) for value in row)


def _images(data: Any, workdir: str, held_out: HeldOut | None) -> Input:
    from dualcl_jax.data.images.npz import ALIASES, IMAGES, LABELS, check_layout
    from dualcl_jax.data.images.source import is_photographic

    if isinstance(data, Mapping):
        arrays = {str(name): values for name, values in data.items()}
    elif isinstance(data, tuple):
        if len(data) != 2:
            raise UserError(f'data: a tuple of {len(data)} items; give (images, labels)')
        arrays = {'train_images': data[0], 'train_labels': data[1]}
    else:
        arrays = {'train_images': data}
    named: dict[str, Any] = {name: _array(name, values) for name, values in arrays.items() if values is not None}
    ours: dict[str, Any] = {}
    for name, array in named.items():
        known = ALIASES.get(name.lower(), name)
        ours[known] = array
        if known in IMAGES:
            if array.dtype.kind in 'OSTU':
                raise UserError(
                    f'data: {type(data).__name__}; give a path, an array of images, (images, labels) or a mapping of '
                    "arrays; sentences need a config or an encoder of text, such as config='simcse'"
                )
            check_layout(f'data: {name}', array)
        elif known in LABELS and array.dtype.kind not in 'iu':
            raise UserError(
                f'data: {name} are {array.dtype}; labels must be integers: np.unique(labels, return_inverse=True)[1]'
            )
        elif array.dtype.hasobject:
            raise UserError(f'data: {name} holds Python objects, which are not stored; leave it out')
    images = ours.get('train_images', ours.get('images', np.empty(0)))
    channels = images.shape[3] if images.ndim == 4 else 1
    stated = images.ndim in (3, 4) and not is_photographic(images.dtype.name, channels)
    digest, in_test, note = _digest(named), None, ''
    path = _place(workdir, digest, '.npz')
    if held_out is not None and not os.path.exists(path):  # a run of version 0.1.0 has no test images
        in_test = _in_test(ours, held_out)
    if held_out is not None and in_test is not None:
        path = _place(workdir, hashlib.sha256(digest.encode() + in_test.tobytes()).hexdigest(), '.npz')
        note = (
            f'{np.count_nonzero(in_test):,} of the {len(in_test):,} images are held out for testing, chosen by their '
            f'content (data.test_fraction={held_out.fraction:g})'
        )
    return Input(
        {'data.name': 'npz', 'data.path': path},
        channels if stated else 0,
        lambda file: np.savez(file, **(named if in_test is None else _divided(named, in_test))),
        note,
    )


def _in_test(arrays: Mapping[str, np.ndarray], held_out: HeldOut) -> np.ndarray | None:
    """Which images are for testing, bool [N]; None if there are test images, or no labels, or too few, or one class.

    Labels that will be refused when the file is read hold out none.
    """
    from dualcl_jax.data.images.npz import MAX_CLASSES
    from dualcl_jax.data.source import held_out_by_content

    prefix = '' if 'images' in arrays else 'train_'
    images, labels = arrays.get(f'{prefix}images'), arrays.get(f'{prefix}labels')
    if images is None or labels is None or {'test_images', 'test_labels'} & arrays.keys() or not images.ndim:
        return None
    labels = labels.reshape(-1)
    if not len(images) == len(labels) > 0 or labels.min() < -1 or labels.max() >= MAX_CLASSES:
        return None
    if len(np.unique(labels[labels >= 0])) < 2:  # every prediction would be right
        return None
    digests = np.array([np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8) for image in images])
    found = held_out_by_content(digests, labels.astype(np.int32), held_out.fraction, held_out.how)
    if found.all():
        raise UserError(f'data.test_fraction={held_out.fraction:g}: no image is left for training; lower it')
    return found if found.any() else None


def _divided(arrays: Mapping[str, np.ndarray], in_test: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays, with the images for testing and their labels in arrays of their own."""
    from dualcl_jax.data.images.npz import ALIASES, IMAGES, LABELS

    found = dict(arrays)
    for name, array in arrays.items():
        known = ALIASES.get(name.lower(), name)
        if known in (*IMAGES, *LABELS):
            found[name] = array[~in_test]
            found['test_images' if known in IMAGES else 'test_labels'] = array[in_test]
    return found


def _array(name: str, values: Any) -> np.ndarray:
    """The array of a name. Raises UserError if its items have different shapes."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UserError(
            f'data: the items of {name} have different shapes; make them the same, or give a folder of images'
        ) from error


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 hex digest of arrays and their names."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        for row in array if array.ndim > 1 else (array,):
            digest.update(row.tobytes())
    return digest.hexdigest()
