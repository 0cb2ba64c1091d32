"""A table of images and their classes: a CSV file, its columns, and the files that its rows name."""

import bisect
import codecs
import contextlib
import itertools
import os
import unicodedata
from collections.abc import Sequence
from typing import IO, NamedTuple

from dualcl_jax.data.csv_rows import RowError, csv_rows
from dualcl_jax.data.images.display import shown
from dualcl_jax.data.images.kinds import SUFFIXES
from dualcl_jax.system.errors import UserError, reason_of

MAX_CSV_BYTES = 2**30
PATH_COLUMNS = (
    *('file_name', 'filename', 'file', 'path', 'file_path', 'filepath', 'image_path', 'image', 'image_name'),
    *('image_file', 'image_id', 'img', 'id'),
)
"""Names of a column of paths; of several, the first whose values name files."""
LABEL_COLUMNS = ('label', 'labels', 'class', 'class_name', 'class_label', 'category', 'target')
"""Names of the column of classes; a table with two of them is ambiguous."""
DELIMITERS = (',', '\t', ';')
TRIED = 100
"""The number of rows by which the delimiter and a column of paths are recognised."""


class Table(NamedTuple):
    """A CSV file.

    Attributes:
      file: its path, as the user gave it.
      rows: the line in which each row begins, from 1, and its values, of rows that have any.
    """

    file: str
    rows: list[tuple[int, list[str]]]


class Matches(NamedTuple):
    """The files that the rows of a table name.

    Attributes:
      labels: the class by file.
      unmatched: paths of rows that name no file.
      columns: the columns of the path and of the class, as shown.
    """

    labels: dict[int, str]
    unmatched: list[str]
    columns: str


def read_table(path: str) -> Table:
    """Reads a CSV file in UTF-8, or in UTF-16 with a byte order mark, separated by commas, tabs or semicolons.

    Raises:
      UserError: the file cannot be read, or its quotation marks are unbalanced.
    """
    local = os.path.expanduser(path)
    try:
        if os.path.getsize(local) > MAX_CSV_BYTES:
            raise UserError(
                f'data.labels={path}: larger than {MAX_CSV_BYTES:,} bytes; give only a path and a class in each line'
            )
        with open(local, 'rb') as binary:
            wide = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = 'utf-16' if wide else 'utf-8-sig'
        with open(local, encoding=encoding, errors='surrogateescape', newline='') as file:
            delimiter = max(DELIMITERS, key=lambda sign: _fit(file, sign))
            file.seek(0)
            return Table(path, [(number, row) for number, row in csv_rows(file, delimiter) if row])
    except RowError as error:
        raise UserError(f'data.labels={path}: {error}') from error
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        raise UserError(
            f'data.labels={path}: cannot be read ({reason}); use auto, subfolders, none, or the path of a CSV file'
        ) from error


def _fit(file: IO[str], delimiter: str) -> float:
    """The share of the first rows that have as many columns as the very first one; 0 if that has only one."""
    file.seek(0)
    counts: list[int] = []
    with contextlib.suppress(RowError):  # raised again if this is the delimiter
        counts.extend(len(row) for _, row in itertools.islice(csv_rows(file, delimiter), TRIED) if row)
    return counts.count(counts[0]) / len(counts) if counts and counts[0] > 1 else 0.0


class Names:
    """Files by their paths, and by parts of their paths if a table does not give whole paths.

    Args:
      paths: the path of each file, relative to the root.
    """

    def __init__(self, paths: dict[int, str]) -> None:
        self._paths = paths
        self._whole = {path: file for file, path in paths.items()}
        self._upwards: tuple[list[str], list[int]] | None = None

    def __contains__(self, path: str) -> bool:
        return os.path.normpath(path) in self._whole

    def find(self, name: str, folder: str) -> list[int]:
        """Finds the files that a path in a table refers to; see `ranked`."""
        return self.ranked(name, folder)[1]

    def ranked(self, name: str, folder: str) -> tuple[int, list[int]]:
        """Finds the files that a path in a table refers to, and how closely it names them.

        Of files that differ only in their suffixes, those with the suffix of the path are taken, if there are any.

        Args:
          name: the path; relative to the root, or to the table's own folder; without its suffix, or without its first
            folders, or with more of them.
          folder: the folder of the table, relative to the root.

        Returns:
          0 if the path is that of a file, 1 except for the suffix, 2 as far as both have folders; and the files.
        """
        whole = os.path.normpath(name)
        for path in (whole, os.path.normpath(os.path.join(folder, whole))):
            if path in self._whole:
                return 0, [self._whole[path]]
        if self._upwards is None:
            keys = {file: _upward(path) for file, path in self._paths.items()}
            files = sorted(keys, key=keys.__getitem__)
            self._upwards = [keys[file] for file in files], files
        key = _upward(whole)
        same = self._between(key, key + '\0')
        return (1, self._alike(whole, same)) if same else (2, self._alike(whole, self._agreeing(key)))

    def _alike(self, name: str, files: list[int]) -> list[int]:
        """Of several files, those with the suffix of a name, if there are any; in the same case, if there are any."""
        if len(files) < 2:
            return files
        suffixes, suffix = {file: _suffix(self._paths[file]) for file in files}, _suffix(name)
        same = [file for file in files if suffixes[file] == suffix]
        return same or [file for file in files if suffixes[file].lower() == suffix.lower()] or files

    def _agreeing(self, key: str) -> list[int]:
        """The files whose folders are those of an upward path from the last one on, as far as both have any."""
        found = self._between(f'{key}/', f'{key}0')  # all that begin with it: 0 follows / in the order of characters
        while key:
            key = key.rpartition('/')[0]
            found += self._between(key, key + '\0')
        return found

    def _between(self, first: str, end: str) -> list[int]:
        """The files whose upward paths are from `first` to before `end`, in their order."""
        assert self._upwards is not None
        keys, files = self._upwards
        return files[bisect.bisect_left(keys, first) : bisect.bisect_left(keys, end)]

    def example(self) -> str:
        """The path of a file."""
        return shown(next(iter(self._paths.values()), ''))


def _upward(path: str) -> str:
    """The name of a file, without the suffix of an image, and then its folders from the last one to the first."""
    path = unicodedata.normalize('NFC', path.replace('\\', '/'))
    stem, suffix = os.path.splitext(path)
    return '/'.join(reversed((stem if suffix.lower() in SUFFIXES else path).split('/')))


def _suffix(path: str) -> str:
    return os.path.splitext(path.replace('\\', '/'))[1]


def match(table: Table, names: Names, folder: str, path_column: str, label_column: str) -> Matches:
    """Finds the files that the rows of a table name, and their classes.

    The first row is a header if it has the name of a column that is known or given, and no path of a file. Rows without
    a class are ignored. Of rows that name a file, those that name it most closely count; the others name no file.

    Args:
      table: the rows.
      names: the files.
      folder: the folder of the table, relative to the root of the images; '' if it is not below it.
      path_column, label_column: the names of columns, '' to recognise them.

    Raises:
      UserError: the columns cannot be recognised, a row lacks one or has more of them, or two rows give a file two
        classes.
    """
    first = [value.strip() for value in table.rows[0][1]] if table.rows else []
    known = {*PATH_COLUMNS, *LABEL_COLUMNS}
    is_header = any(value and (value.lower() in known or value in (path_column, label_column)) for value in first)
    is_header = is_header and not any(value in names for value in first)
    place, label_place = 0, 1
    if is_header or path_column or label_column:
        place, label_place = _columns(table, first, names, folder, path_column, label_column)
    elif len(first) > 2:
        raise UserError(
            f'data.labels={table.file}: the first line, {_listed(first)}, does not say which columns are the path and '
            'the class; begin the file with a header such as path,label'
        )
    found, unmatched = [], []
    for number, row in table.rows[is_header:]:
        if len(row) <= max(place, label_place):
            raise UserError(f'data.labels={table.file}: line {number} has {len(row)} columns; give a path and a class')
        if any(value.strip() for value in row[len(first) :]):
            raise UserError(
                f'data.labels={table.file}: line {number} has {len(row)} columns, the first one {len(first)}; put '
                'values with separators in quotation marks'
            )
        name, label = row[place].strip(), row[label_place].strip()
        if not label:
            continue
        rank, files = names.ranked(name, folder)
        if len(files) > 1:
            raise UserError(
                f'data.labels={table.file}: line {number} names {shown(name)}, but {len(files)} files have this name; '
                f'give paths relative to the folder, such as {names.example()}'
            )
        if files:
            found.append((rank, number, name, label, files[0]))
        elif row is not table.rows[0][1] or len(table.rows) == 1:  # else it is a header with unknown names
            unmatched.append(name)
    best: dict[int, tuple[int, str]] = {}
    for rank, number, name, label, file in sorted(found, key=lambda match: match[0]):
        closest, kept = best.setdefault(file, (rank, label))
        if closest < rank:
            unmatched.append(name)
        elif kept != label:
            raise UserError(
                f'data.labels={table.file}: line {number} gives {shown(os.path.normpath(name))} a second class; '
                'keep one'
            )
    labels = {file: label for file, (_, label) in best.items()}
    columns = [shown(first[at]) if is_header else str(at + 1) for at in (place, label_place)]
    return Matches(labels, unmatched, f'columns {columns[0]} and {columns[1]}')


def _columns(
    table: Table, columns: Sequence[str], names: Names, folder: str, path_column: str, label_column: str
) -> tuple[int, int]:
    """Finds the columns of paths and of classes in a table with a header."""
    for field, name in (('path_column', path_column), ('label_column', label_column)):
        if name and name not in columns:
            raise UserError(f'data.{field}={name}: no such column in {table.file}; choose one of {_listed(columns)}')
    lowered = [name.lower() for name in columns]
    label = columns.index(label_column) if label_column else _label_place(table, columns, lowered, path_column)
    if path_column:
        return columns.index(path_column), label
    known = [lowered.index(name) for name in PATH_COLUMNS if name in lowered and lowered.index(name) != label]
    others = [place for place in range(len(columns)) if place != label and columns[place]]
    candidates = known or others[: len(others) == 1]
    if len(candidates) == 1:
        return candidates[0], label
    for place in candidates:
        if any(names.find(row[place].strip(), folder) for _, row in table.rows[1:TRIED] if len(row) > place):
            return place, label
    raise _ambiguous(table, columns, 'the path', 'path_column')


def _label_place(table: Table, columns: Sequence[str], lowered: Sequence[str], path_column: str) -> int:
    """Finds the column of classes."""
    known = [place for place, name in enumerate(lowered) if name in LABEL_COLUMNS and columns[place] != path_column]
    paths = [place for place, name in enumerate(lowered) if name in PATH_COLUMNS]
    rest = [place for place in range(len(columns)) if place not in paths[:1] and columns[place]]
    if not known and len(rest) == 1 and paths:
        return rest[0]
    if len(known) != 1:
        raise _ambiguous(table, columns, 'the class', 'label_column')
    return known[0]


def _listed(columns: Sequence[str]) -> str:
    return ', '.join(shown(name) or "''" for name in columns)


def _ambiguous(table: Table, columns: Sequence[str], what: str, field: str) -> UserError:
    return UserError(f'data.labels={table.file}: which column is {what}? Set data.{field} to one of {_listed(columns)}')
