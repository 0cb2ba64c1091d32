"""Every usable image of a folder, copies included, with its class: for features, not for training."""

import os
from typing import Any, NamedTuple

import numpy as np

from dualcl_jax.data.images.encoded import EncodedSource, stored_size
from dualcl_jax.data.images.folder import IndexedFiles, check_usable, pixels_of, splits_and_labels
from dualcl_jax.data.images.index_cache import open_index
from dualcl_jax.data.images.labels import displayed
from dualcl_jax.data.images.scan import SKIPPED
from dualcl_jax.data.source import fingerprint
from dualcl_jax.system.errors import UserError


class Everything(NamedTuple):
    """Examples; and `skipped`, the names of the files that cannot be read as images, with the reason."""

    source: EncodedSource
    skipped: list[str]


def every_image(data: Any) -> Everything:
    """Lists the usable images of the folder `data.path` in the order of their paths, with labels, without splits.

    Args:
      data: the `data` part of a config, of which `path`, `labels`, the columns of a table, `image_size`,
        `stored_size` and `channels` are used.

    Raises:
      UserError: there is no such folder, it has no images, or the labels do not fit.
    """
    if '://' in data.path:
        raise UserError(f'{data.path}: must be a local folder; copy it, or mount it')
    index = open_index(os.path.expanduser(data.path), data.channels)
    check_usable(data.path, index, max_skipped=1.0, channels=data.channels)
    rows = index.usable()
    labels = splits_and_labels(data, index, rows)[1]
    size, class_names = stored_size(data), displayed(labels.names)
    pixels = pixels_of(data, index, rows)
    how = b'as stored' if pixels.as_stored else b''
    shape = (size, size, pixels.channels)
    digest = fingerprint('every', shape, class_names, labels.labels, index.digests[rows], how)
    source = EncodedSource('folder', IndexedFiles(index, rows), labels.labels, size, class_names, digest, pixels=pixels)
    skipped = [f'{index.shown(row)} ({index.notes[row]})' for row in np.flatnonzero(index.outcomes == SKIPPED).tolist()]
    return Everything(source, skipped)
