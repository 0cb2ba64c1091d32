"""A folder of images, flat or nested, labelled by subfolder, by a CSV file, or not at all."""

import csv
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dualcl_jax.data.images.decode import MIN_SIDE
from dualcl_jax.data.images.encoded import EncodedSource, place, stored_size
from dualcl_jax.data.images.index import IGNORED, OUTCOMES, SKIPPED, USED, Index, open_index
from dualcl_jax.data.source import Splits, fingerprint, limit_indices
from dualcl_jax.system.errors import UserError

TEST_FOLDERS = ('test', 'val', 'valid', 'validation')
MAX_CSV_BYTES = 2**30
PATH_COLUMNS, LABEL_COLUMNS = ('path', 'file', 'filename', 'image'), ('label', 'class', 'category')


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedFiles:
    """Some files of an index, in the order given by `rows`: int [N]."""

    index: Index
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> bytes:
        return self.index.read(int(self.rows[index]))

    def where(self, index: int) -> str:
        return os.path.join(self.index.root, self.index.path(int(self.rows[index])))


def load(data: Any) -> Splits:
    """The images of the folder `data.path`, as `data.labels`, `.test_fraction`, `.limit` and the rest say.

    With subfolders `train` and one of `TEST_FOLDERS`, and nothing else, these are the splits. Otherwise
    `data.test_fraction` of the labelled images are for testing, chosen by their content: a set that grows keeps them.
    Sets whose central squares, `stored_size(data)` pixels a side, fit in `data.memory_bytes` are decoded at once and
    stay in memory; of larger ones every image is decoded whenever it is used.

    Raises:
      UserError: no such folder, no images in it, too many that cannot be used, or labels that do not fit.
    """
    return place(data, *load_encoded(data))


def load_encoded(data: Any) -> tuple[EncodedSource, EncodedSource | None]:
    """`load`, with no image decoded."""
    if '://' in data.path:
        raise UserError(f'data.path={data.path}: must be a local folder; copy it, or mount it')
    if not data.path:
        raise UserError('data.path is empty: with data.name=folder it names a folder of images')
    index = open_index(os.path.expanduser(data.path))
    _check_usable(data, index)
    rows = np.flatnonzero(index.outcomes == USED).astype(np.int32)
    train_rows, test_rows, base = _split_folders(index, rows)
    labels, class_names = _labels(data, index, rows, base)
    in_train = np.isin(rows, train_rows, assume_unique=True)
    in_test = np.isin(rows, test_rows, assume_unique=True)
    if not len(test_rows) and class_names and data.test_fraction:
        share = index.digests[rows][:, :8].copy().view(np.uint64)[:, 0] / 2.0**64
        in_test = (labels >= 0) & (share < data.test_fraction)
        in_train = ~in_test
    kept = np.flatnonzero(in_train)[limit_indices(int(in_train.sum()), data.limit)]
    report = index.report()

    def source(chosen: np.ndarray) -> EncodedSource:
        size = stored_size(data)
        digest = fingerprint('folder', (size, size, 3), class_names, labels[chosen], index.digests[rows[chosen]])
        files = IndexedFiles(index, rows[chosen])
        return EncodedSource('folder', files, labels[chosen], size, class_names, digest, report)

    train = source(kept)
    test = source(np.flatnonzero(in_test)) if in_test.any() else None
    return train, test


def _check_usable(data: Any, index: Index) -> None:
    used, skipped = int((index.outcomes == USED).sum()), np.flatnonzero(index.outcomes == SKIPPED)
    share = len(skipped) / max(used + len(skipped), 1)
    named = '; '.join(f'{index.path(row)} ({index.notes[row]})' for row in skipped[:3].tolist())
    more = f' and {len(skipped) - 3:,} more' if len(skipped) > 3 else ''
    if used and share > data.max_skipped:
        raise UserError(
            f'data.path={data.path}: {len(skipped):,} of {used + len(skipped):,} images cannot be used, more than '
            f'config.data.max_skipped={data.max_skipped:g} of them\n{named}{more}\n'
            'mend or remove them, or raise the share; data_report.json then names them all'
        )
    if not used:
        found = ', '.join(f'{(index.outcomes == code).sum():,} {OUTCOMES[code]}' for code in (SKIPPED, IGNORED))
        raise UserError(
            f'data.path={data.path}: no image of at least {MIN_SIDE} pixels a side in it ({found})'
            + (f'\n{named}{more}' if named else '')
        )


def _split_folders(index: Index, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows for training and for testing, and how many leading folders of a path name the split."""
    tops = np.array([folder.split(os.sep)[0] for folder in index.folders])
    used = set(tops[np.unique(index.folder_of[rows])].tolist())
    if 'train' in used and len(used) > 1 and used <= {'train', *TEST_FOLDERS}:
        test = next(name for name in TEST_FOLDERS if name in used)
        top_of = tops[index.folder_of[rows]]
        return rows[top_of == 'train'], rows[top_of == test], 1
    return rows, rows[:0], 0


def _labels(data: Any, index: Index, rows: np.ndarray, base: int) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """int32 labels of the rows, -1 where unknown, and the names of the classes, None where there are none."""
    unknown = np.full(len(rows), -1, np.int32)
    if data.labels == 'none':
        return unknown, None
    if data.labels not in ('auto', 'subfolders'):
        return _csv_labels(data, index, rows)
    parts = [folder.split(os.sep) if folder else [] for folder in index.folders]
    class_of = [folder[base] if len(folder) > base else '' for folder in parts]
    used = sorted({class_of[folder] for folder in np.unique(index.folder_of[rows]).tolist()})
    if data.labels == 'subfolders' and used == ['']:
        raise UserError(f'data.labels=subfolders: {data.path} has no images in subfolders; use none, or a CSV file')
    names = tuple(name for name in used if name)
    if data.labels == 'auto' and ('' in used or len(names) < 2):
        return unknown, None
    numbers = {name: number for number, name in enumerate(names)}
    table = np.array([numbers.get(name, -1) for name in class_of], np.int32)
    return table[index.folder_of[rows]], names


def _csv_labels(data: Any, index: Index, rows: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels by a CSV file of a path, relative to the folder, and a class name in each row; others are unknown."""
    named = _read_csv(data.labels)
    labels = [named.get(index.path(row), '') for row in rows.tolist()]
    class_names = tuple(sorted({label for label in labels if label}))
    if not class_names:
        raise UserError(
            f'data.labels={data.labels}: names none of the images of {data.path}; '
            f'its paths must be relative to that folder, such as {index.path(int(rows[0]))}'
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers.get(label, -1) for label in labels], np.int32), class_names


def _read_csv(path: str) -> Mapping[str, str]:
    """Class name by normalised path. The first row may be a header that names the columns."""
    found: dict[str, str] = {}
    path_column, label_column = 0, 1
    try:
        if os.path.getsize(os.path.expanduser(path)) > MAX_CSV_BYTES:
            raise UserError(
                f'data.labels={path}: larger than {MAX_CSV_BYTES:,} bytes; give a path and a class in a line'
            )
        with open(os.path.expanduser(path), encoding='utf-8-sig', newline='') as file:
            for number, row in enumerate(csv.reader(file), 1):
                lowered = [value.strip().lower() for value in row]
                header = set(lowered) & set(PATH_COLUMNS), set(lowered) & set(LABEL_COLUMNS)
                if number == 1 and all(header):
                    path_column, label_column = (lowered.index(min(names)) for names in header)
                    continue
                if not row:
                    continue
                if len(row) <= max(path_column, label_column):
                    raise UserError(
                        f'data.labels={path}: line {number} has {len(row)} columns; give a path and a class'
                    )
                name, label = os.path.normpath(row[path_column].strip()), row[label_column].strip()
                if found.setdefault(name, label) != label:
                    raise UserError(f'data.labels={path}: line {number} gives {name} a second class; keep one')
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(
            f'data.labels={path}: cannot be read ({reason}); use auto, subfolders, none, or the path of a CSV file'
        ) from error
    return found
