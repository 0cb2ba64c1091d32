"""Reads one .npz file: train_images and, each optional, train_labels, test_images, test_labels; or x_train, …"""

import math
from typing import Any

import numpy as np

from dualcl_jax.data.images.decode import MIN_SIDE
from dualcl_jax.data.images.source import image_source
from dualcl_jax.data.images.stored import TYPES, as_kept, npy_header
from dualcl_jax.data.source import Splits, described_split
from dualcl_jax.system.errors import UserError, first_line, reason_of
from dualcl_jax.system.files import BROKEN, reachable

MAX_CLASSES = 65_536
IMAGES = ('images', 'train_images', 'test_images')
LABELS = ('labels', 'train_labels', 'test_labels')
ALIASES = {'x_train': 'train_images', 'y_train': 'train_labels', 'x_test': 'test_images', 'y_test': 'test_labels'}
"""The names that Keras gives to the arrays of its sets, in any case, and ours."""


def load(data: Any) -> Splits:
    """Reads the file at `data.path` (local or gs://), with arrays named train_images, images or x_train.

    Images are uint8 [N, H, W] or [N, H, W, C] with C 1 or 3, or with `data.channels` this many channels of a type
    in `stored.TYPES`. They have one shape and type in both splits. Labels are integers [N] or [N, 1], -1 where unknown.
    Other arrays in the file are left out; nothing in it is unpickled.

    Raises:
      UserError: anything is wrong with the file. The message names the file and the array.
    """
    arrays, stored, unused = _read(data.path, data.memory_bytes)
    if 'images' in arrays and 'train_images' in arrays:
        raise UserError(f"data.path={data.path}: has both 'train_images' and 'images'; keep one of them")
    prefix = '' if 'images' in arrays else 'train_'
    for labels_name, images_name in ((f'{prefix}labels', f'{prefix}images'), ('test_labels', 'test_images')):
        if images_name not in arrays and (labels_name in arrays or images_name != 'test_images'):
            found = sorted({*stored.values(), *unused})
            raise UserError(f'data.path={data.path}: has no array {images_name!r}, only {found}; add it')
    stray = 'labels' if prefix else 'train_labels'
    if stray in arrays:
        raise UserError(
            f"data.path={data.path}: {stray!r} does not match '{prefix}images'; rename it to '{prefix}labels'"
        )

    splits = {}
    for split, start in (('train', prefix), ('test', 'test_')):
        if f'{start}images' in arrays:
            images = _checked_images(data, stored[f'{start}images'], arrays[f'{start}images'])
            labels = np.full(len(images), -1, np.int32)
            if f'{start}labels' in arrays:
                labels = _checked_labels(data.path, stored[f'{start}labels'], arrays[f'{start}labels'], len(images))
            splits[split] = images, labels
    for what, of in (('shape', lambda images: images.shape[1:]), ('type', lambda images: images.dtype)):
        found = [str(of(images)) for images, _ in splits.values()]
        if len(set(found)) > 1:
            raise UserError(
                f'data.path={data.path}: images of train and test differ in {what}, {" and ".join(found)}; '
                'make them the same'
            )

    num_classes = 1 + int(np.concatenate([labels for _, labels in splits.values()]).max())
    class_names = tuple(str(label) for label in range(num_classes)) or None
    report = {
        'splits': {
            split: described_split(stored[f'{start}images'], splits[split][1])
            for split, start in (('train', prefix), ('test', 'test_'))
            if split in splits
        }
        | {'left_out': unused},
        'left_out': {'other arrays': {'count': len(unused), 'names': unused[:3]}} if unused else {},
    }
    if data.channels:
        report['pixels'] = f'as stored, {data.channels} channels of {splits["train"][0].dtype}'
    sources = {
        split: image_source('npz', images, labels, class_names, report=report)
        for split, (images, labels) in splits.items()
    }
    return Splits(sources['train'], sources.get('test'))


def _read(path: str, memory_bytes: int) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Reads every array of interest, if together they take at most `memory_bytes`.

    Returns:
      The arrays by our names, their names in the file by our names, and the names of the other arrays.
    """
    if not path:
        raise UserError('data.path is empty: with data.name=npz, set it to an .npz file')
    name = None
    try:
        with reachable(path, f'data.path={path}').open('rb') as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise UserError(f'data.path={path}: is a single array, not an .npz file; write it with np.savez')
            stored: dict[str, str] = {}
            for name in archive.files:
                ours = ALIASES.get(name.lower(), name)
                if ours in IMAGES + LABELS and stored.setdefault(ours, name) != name:
                    raise UserError(f'data.path={path}: has both {stored[ours]!r} and {name!r}; keep one of them')
            claimed = 0
            for name in stored.values():
                claimed += _claimed_bytes(archive, name)
            if claimed > memory_bytes:
                raise UserError(
                    f'data.path={path}: its arrays would take {claimed:,} bytes of memory; '
                    f'if that is right, raise config.data.memory_bytes={memory_bytes}'
                )
            arrays = {}
            for ours, name in stored.items():
                arrays[ours] = archive[name]
            return arrays, stored, sorted(set(archive.files) - set(stored.values()))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f'data.path={path}: {reason_of(error)}; give the path of an .npz file') from error
    except BROKEN as error:
        what = f'array {name!r} ' if name else ''
        reason = first_line(error)
        if 'allow_pickle' in reason:
            reason = 'it holds Python objects, which are never unpickled'
        raise UserError(f'data.path={path}: {what}cannot be read ({reason}); write it again with np.savez') from error


def _claimed_bytes(archive: Any, name: str) -> int:
    """The bytes that an array will take by its header, before it is made; a small file can claim any size."""
    if f'{name}.npy' not in archive.zip.namelist():
        raise ValueError(f'{name} is not an array')
    with archive.zip.open(f'{name}.npy') as member:
        shape, dtype = npy_header(member)
    return abs(math.prod(shape)) * max(dtype.itemsize, 1)


def _checked_images(data: Any, name: str, images: np.ndarray) -> np.ndarray:
    """Checks an array of the file, and returns it as [N, H, W, C] of one of the types that are kept."""
    stated, channels = f'data.path={data.path}: array {name!r}', data.channels
    check_layout(stated, images)
    if images.ndim == 3:
        images = images[..., None]
    types, allowed = (TYPES, (channels,)) if channels else ({'uint8': 'uint8'}, (1, 3))
    if images.dtype.name not in types or images.ndim != 4 or images.shape[-1] not in allowed or 0 in images.shape:
        remedy = f'C {channels}, as set by data.channels,' if channels else 'C 1 or 3,'
        hint = '' if channels or images.ndim != 4 else '; data.channels=C reads other channels and types'
        raise UserError(
            f'{stated} is {images.dtype} {list(images.shape)}; it must be {", ".join(types)} [N, H, W] or [N, H, W, C] '
            f'with {remedy} and not empty{hint}'
        )
    images = as_kept(images)
    if images.dtype.kind == 'f':
        strange = int((~np.isfinite(images).all(axis=(1, 2, 3))).sum())
        if strange:
            raise UserError(
                f'{stated}: {strange:,} of its {len(images):,} images have NaN or infinite values; repair them'
            )
    return images


def check_layout(named: str, images: np.ndarray) -> None:
    """Checks that images do not have their channels first, as those of PyTorch have.

    Images [N, H, W, C] of fewer than `MIN_SIDE` rows are accepted, unless both other axes would do as sides.

    Args:
      named: the array, as the error message names it.
      images: the array, of any shape.

    Raises:
      UserError: the array looks like [N, C, H, W].
    """
    if images.ndim == 4 and 0 < images.shape[1] < MIN_SIDE <= min(images.shape[2:]):
        raise UserError(
            f'{named} is {images.dtype} {list(images.shape)}, with the channels before the sides; '
            'they come last: use x.transpose(0, 2, 3, 1)'
        )


def _checked_labels(path: str, name: str, labels: np.ndarray, num_images: int) -> np.ndarray:
    """Checks an array of the file, and returns it as int32 [N]."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((num_images,), (num_images, 1)):
        raise UserError(
            f'data.path={path}: array {name!r} is {labels.dtype} {list(labels.shape)}; '
            f'it must be integers [{num_images}], one for each image'
        )
    if labels.min() < -1 or labels.max() >= MAX_CLASSES:
        raise UserError(
            f'data.path={path}: array {name!r} ranges over {labels.min()}..{labels.max()}; '
            f'labels must lie in 0..{MAX_CLASSES - 1}, or be -1 where unknown'
        )
    return labels.reshape(-1).astype(np.int32)
