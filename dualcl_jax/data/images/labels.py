"""Labels of a folder of images: by the names of its folders, by a table, or none."""

import os
from typing import Any, NamedTuple

import numpy as np

from dualcl_jax.data.images.display import shown
from dualcl_jax.data.images.index import Index
from dualcl_jax.data.images.splits import TEST, TRAIN, UNLABELLED_NAMES, Layout
from dualcl_jax.data.images.table import Matches, Names, match, read_table
from dualcl_jax.system.errors import UserError

METADATA = 'metadata.csv'
"""A table in the root with which `auto` labels images that are not in folders of classes."""
STRAY = 0.1
"""Images beside the folders of classes are left out if they are at most this share of a split."""


class UnmatchedError(UserError):
    """A table that nobody named does not fit the images."""


class Labels(NamedTuple):
    """The classes of some files.

    Attributes:
      labels: int32 [N], -1 where unknown.
      names: the names of the classes, as the file system has them; None without classes.
      how: where the labels come from, or why there are none.
      stray: bool [N], images beside the folders of classes, to be left out.
    """

    labels: np.ndarray
    names: tuple[str, ...] | None
    how: str
    stray: np.ndarray


class TableLabels(NamedTuple):
    """The classes that a table gives to some files: the class of each, '' where unknown, and its `Matches`."""

    file: str
    classes: list[str]
    matches: Matches


def read_labels(data: Any, index: Index, rows: np.ndarray) -> TableLabels | None:
    """Reads the table that `data.labels` names, or for `auto` the `METADATA` of the root, if there is one.

    Raises:
      UnmatchedError: `auto` found a table that is not CSV, has no clear columns, or names none of the files.
      UserError: the same of a table that the config names; or it cannot be read.
    """
    if data.labels in ('none', 'subfolders'):
        return None
    path = data.labels
    if data.labels == 'auto':
        path = os.path.join(index.root, METADATA)
        if not os.path.isfile(path):
            return None
    names = Names({position: index.path(row) for position, row in enumerate(rows.tolist())})
    root, here = os.path.realpath(index.root), os.path.realpath(os.path.dirname(os.path.expanduser(path)) or '.')
    folder = os.path.relpath(here, root) if os.path.commonpath((root, here)) == root and here != root else ''
    try:
        table = read_table(path)
        found = match(table, names, folder, data.path_column, data.label_column)
        classes = [found.labels.get(position, '') for position in range(len(rows))]
        if not any(classes):
            raise UserError(
                f'data.labels={shown(path)}: names none of the images of {shown(index.root)}; '
                f'its paths must be relative to that folder, such as {names.example()}'
            )
    except UserError as error:
        unread = isinstance(error.__cause__, OSError)
        if data.labels == 'auto' and not (data.path_column or data.label_column or unread):
            raise UnmatchedError(str(error)) from error
        raise
    return TableLabels(path, classes, found)


def table_labels(table: TableLabels) -> Labels:
    """The labels that a table gives."""
    names = tuple(sorted({name for name in table.classes if name}))
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers.get(name, -1) for name in table.classes], np.int32)
    missing, unmatched = int((labels < 0).sum()), len(table.matches.unmatched)
    how = f'by {shown(table.file)}, {table.matches.columns}; {unmatched:,} rows name no file, '
    how += f'{missing:,} files are in no row'
    return Labels(labels, names, how, np.zeros(len(labels), bool))


def no_labels(count: int, how: str) -> Labels:
    """The labels of images without classes."""
    return Labels(np.full(count, -1, np.int32), None, how, np.zeros(count, bool))


def folder_labels(data: Any, index: Index, rows: np.ndarray, layout: Layout) -> Labels:
    """Labels images by the first folder below that of the split.

    Images beside the folders of classes are left out if they are few, and have no label if they are more. With `auto`
    there are no labels at all if most images are beside these folders, or if there are fewer than two classes.

    Raises:
      UserError: `data.labels=subfolders`, and no subfolders have images.
    """
    roles, folder_of = layout.roles[index.folder_of[rows]], index.folder_of[rows]
    class_of = [''] * len(index.folders)
    for number in np.unique(folder_of[(roles == TRAIN) | (roles == TEST)]).tolist():
        parts = index.folders[number].split(os.sep) if index.folders[number] else []
        depth = layout.depths[int(layout.roles[number] == TEST)]
        class_of[number] = parts[depth] if len(parts) > depth else ''

    classes = {name for name in class_of if name and name.lower() not in UNLABELLED_NAMES}
    train, test = (
        {class_of[number] for number in set(folder_of[roles == role].tolist())} & classes for role in (TRAIN, TEST)
    )
    where = shown(index.root) if not layout.train else f'{shown(layout.train)}/'
    if data.labels == 'subfolders' and not train:
        raise UserError(f'data.labels=subfolders: {data.path} has no images in subfolders; use none, or a CSV file')
    tested = test if test & train else set()
    names = tuple(sorted(train | tested))
    numbers = {name: number for number, name in enumerate(names)}
    table = np.array([numbers.get(name, -1) for name in class_of], np.int32)
    if not tested:
        table[layout.roles == TEST] = -1
    beside = np.array([name == '' for name in class_of])[folder_of]
    labels, stray = table[folder_of], np.zeros(len(rows), bool)
    if data.labels == 'auto':
        training = roles == TRAIN
        if len(names) < 2:
            return no_labels(len(rows), _too_few(where, names))
        if beside[training].mean() > 0.5:
            how = f'none: most images of {where} are in no subfolder; data.labels=subfolders labels those that are'
            return no_labels(len(rows), how)
        for role in (TRAIN, TEST):
            of_split = roles == role
            if of_split.any() and (role == TRAIN or tested) and beside[of_split].mean() <= STRAY:
                stray |= of_split & beside
    how = f'by the subfolders of {where}'
    if layout.test is not None and not tested:
        how += f'; {shown(layout.test)}/ has none of these and is unlabelled'
    return Labels(labels, names, how, stray)


def _too_few(where: str, names: tuple[str, ...]) -> str:
    if not names:
        return f'none: {where} has no subfolders with images'
    return (
        f'none: {where} has only one subfolder with images, {shown(names[0])}; if it holds classes, set data.path to it'
    )


def displayed(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names of classes as they are shown."""
    return tuple(map(shown, names)) if names is not None else None
