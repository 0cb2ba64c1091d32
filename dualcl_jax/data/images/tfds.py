"""TFDS image classification sets that are prepared as array_record, read without TensorFlow."""

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath
from PIL import Image

from dualcl_jax.data.images.decode import FORMATS
from dualcl_jax.data.images.encoded import EncodedSource, in_memory_if_small, stored_size
from dualcl_jax.data.images.source import image_shape, image_source
from dualcl_jax.data.images.tfds_records import read_split
from dualcl_jax.data.run_cache import run_cache_of
from dualcl_jax.data.source import ArraySource, Splits, described_split, fingerprint, limit_indices
from dualcl_jax.data.tfds_folder import TEST_SPLITS, class_names_of, in_chunks, open_folder, records_of, unreadable
from dualcl_jax.system.errors import UserError, first_line
from dualcl_jax.system.files import reachable

RESIZE = 'resize them to one and use data.name=npz, or choose another set'

S = TypeVar('S', ArraySource, EncodedSource)


def load(data: Any, others: Sequence[str] = ()) -> Splits:
    """Reads the set `data.name` ('name', 'name/config' or 'name:version') from `data.data_dir` into memory.

    An empty `data.data_dir` means the default folder of TFDS. The split 'train' is for training, and 'test' for
    testing, or 'validation' if there is no 'test', or if only 'validation' has labels, as in ImageNet. Only the
    examples that `data.limit` keeps are decoded. A set that declares no image size is decoded like a folder of images.

    Images are always decoded by Pillow, and the fingerprint is computed over the encoded bytes, so it does not depend
    on the version of a decoder. Nothing in the folder is executed: see `dualcl_jax.data.tfds_folder`.

    Args:
      data: the `data` part of the config.
      others: names of sets that need no TFDS folder, for the error message if the set is missing.

    Raises:
      UserError: the set is missing, damaged or not stored as array_record, its images are not uint8 of one size, or it
        has features that are not part of TFDS.
      RestartError: its records cannot be read now.
    """
    builder = _open(data, others)
    _check_image_feature(data, builder)
    splits = list(builder.info.splits)
    if 'train' not in splits:
        raise UserError(f"{_where(data)} has no split 'train', only {splits}; choose another set")
    tests = [split for split in TEST_SPLITS if split in splits]
    height, width, channels = dict(builder.info.features.items())['image'].shape
    if channels == 3 and None in (height, width):
        size, run_cache = stored_size(data), run_cache_of(data)
        encoded = read_split(builder, 'train', data.limit, size, run_cache)
        name, held_out = _preferred((split, read_split(builder, split, 0, size, run_cache)) for split in tests)
        return in_memory_if_small(data, *_reported(splits, encoded, name, held_out))
    train = _read_split(data, builder, 'train', data.limit)
    name, test = _preferred((split, _read_split(data, builder, split, 0)) for split in tests)
    if test is not None and image_shape(train) != image_shape(test):
        shapes = f'{list(image_shape(train)[:2])} and {list(image_shape(test)[:2])}'
        raise UserError(f'{_where(data)}: images of train and test differ in size, {shapes}; {RESIZE}')
    return Splits(*_reported(splits, train, name, test))


def _preferred(splits: Iterable[tuple[str, S]]) -> tuple[str, S | None]:
    """The first split with a label, after its name; if none has one, the first. '' and None if there are no splits.

    Of a set without classes, no more than the first split is read.
    """
    first: tuple[str, S] | None = None
    for name, source in splits:
        if source.class_names is None or (source.labels >= 0).any():
            return name, source
        first = first or (name, source)
    return first or ('', None)


def _reported(splits: Sequence[str], train: S, name: str, test: S | None) -> tuple[S, S | None]:
    """The two splits with a report of what they are: `test` is the split `name` of all `splits`."""
    about = {'train': described_split('train', train.labels)}
    if test is not None:
        about['test'] = described_split(name, test.labels)
    report = {'splits': about | {'left_out': [split for split in splits if split not in ('train', name)]}}
    tested = None if test is None else dataclasses.replace(test, report=report)
    return dataclasses.replace(train, report=report), tested


def _where(data: Any) -> str:
    folder = data.data_dir or "'' (the default: $TFDS_DATA_DIR or ~/tensorflow_datasets)"
    return f'data.name={data.name} in data.data_dir={folder}'


def _remedy(data: Any) -> str:
    command = f'prepare it with: dualcl prepare --dataset={data.name} --data_dir='
    return f'{command}{data.data_dir}' if data.data_dir else f'{command}DIR and set --config.data.data_dir=DIR'


def _open(data: Any, others: Sequence[str]) -> Any:
    """Opens the TFDS builder of the prepared folder from its files alone, without the set's code or the network."""
    from tensorflow_datasets.core import file_adapters, read_only_builder, registered  # half a second: only when used
    from tensorflow_datasets.core.utils import error_utils

    folder = reachable(data.data_dir, f'data.data_dir={data.data_dir}') if data.data_dir else None
    if folder is not None and not folder.is_dir():
        raise UserError(f'{_where(data)}: no such folder; {_remedy(data)}')
    try:
        with error_utils.reraise_with_context(registered.DatasetNotFoundError):  # TFDS collects explanations there
            version = read_only_builder._find_builder_dir(data.name, data_dir=folder)
        if version is None:
            raise UserError(_not_found(data, folder, others))
        builder = open_folder(version)
    except UserError:
        raise
    except Exception as error:  # TFDS does not document what a bad name or a damaged folder raises
        raise UserError(f'{_where(data)} cannot be opened ({first_line(error)}); {_remedy(data)}') from error
    formats = {format_.value for format_ in builder.info.available_file_formats()}
    if file_adapters.FileFormat.ARRAY_RECORD.value not in formats:
        raise UserError(f'{_where(data)} is stored as {sorted(formats)}, not array_record; {_remedy(data)}')
    return builder


def _not_found(data: Any, folder: epath.Path | None, others: Sequence[str]) -> str:
    base = data.name.split(':')[0].split('/')[0]
    message = f'{_where(data)} does not exist'
    if folder is not None and (folder / base).is_dir():
        message += f' (of {base}: {sorted(path.name for path in (folder / base).iterdir())})'
    return f'{message}; {_remedy(data)}\nsets that need no TFDS folder: {", ".join(sorted(others))}'


def _check_image_feature(data: Any, builder: Any) -> None:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    feature = features.get('image')
    if not isinstance(feature, tfds.features.Image):
        names = sorted(features)
        raise UserError(f"{_where(data)} has no image feature 'image', its features are {names}; choose an image set")
    if feature.np_dtype != np.uint8 or feature.shape[-1] not in (1, 3):
        what = f'{np.dtype(feature.np_dtype)} with {feature.shape[-1]} channels'
        raise UserError(f'{_where(data)}: images are {what}; only uint8 with 1 or 3 channels can be used')


def _read_split(data: Any, builder: Any, split: str, limit: int) -> ArraySource:
    """Decodes a split into memory."""
    class_names = class_names_of(builder)
    mode = 'L' if builder.info.features['image'].shape[-1] == 1 else 'RGB'
    encoded_digest = hashlib.sha256()
    pixels, labels = np.empty((0, 0, 0, 0), np.uint8), np.empty(0, np.int32)
    try:
        records = records_of(builder, split, 'image')
        indices = limit_indices(len(records), limit)
        for row, record in enumerate(in_chunks(records, indices.tolist())):
            image = _decode(record['image'], mode)
            if row == 0:
                pixels = np.empty((len(indices), *image.shape), np.uint8)
                labels = np.full(len(indices), -1, np.int32)
            if image.shape != pixels.shape[1:]:
                shapes = f'{list(pixels.shape[1:3])} and {list(image.shape[:2])}'
                raise UserError(
                    f'{_where(data)}: images of {split!r} have several sizes, {shapes} among them; {RESIZE}'
                )
            pixels[row] = image
            if class_names is not None:
                labels[row] = record['label']
            encoded_digest.update(record['image'])
    except (UserError, MemoryError):
        raise
    except Exception as error:  # array_record raises a bare RuntimeError, Pillow several kinds
        raise unreadable(f'{_where(data)}: split {split!r}', error, _remedy(data)) from error
    if not len(pixels):
        raise UserError(f'{_where(data)}: split {split!r} is empty; {_remedy(data)}')
    name = builder.info.full_name
    digest = fingerprint(name, pixels.shape[1:], class_names, labels, encoded_digest.digest())
    return image_source(name, pixels, labels, class_names, digest)


def _decode(encoded: bytes, mode: str) -> np.ndarray:
    """Decodes an image file into uint8 [H, W, C]; `mode` is 'L' for one channel and 'RGB' for three."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if mode == 'L' else pixels
