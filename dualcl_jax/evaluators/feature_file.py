"""Files of features: parquet, npz and CSV, written part by part."""

import csv
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualcl_jax.system.errors import UserError

MOST_NAME_BYTES, MOST_PADDING = 2 * 2**30, 8
"""Names of an `.npz` file, which all take as much as the longest one, may take this much memory, or this many times as
much as without padding."""

Parts = Iterable[np.ndarray]


def write_parquet(
    path: Path, names: Sequence[str], labels: np.ndarray, classes: Sequence[str], parts: Parts, about: Mapping[str, Any]
) -> None:
    """Writes the columns `file`, `label`, `class` and `features`, a list of float32 of fixed length."""
    import pyarrow as pa
    import pyarrow.parquet

    writer, start = None, 0
    try:
        for part in parts:
            end = start + len(part)
            values = pa.array(np.ascontiguousarray(part, np.float32).reshape(-1))
            columns = {
                'file': pa.array(names[start:end], pa.string()),
                'label': pa.array(labels[start:end], pa.int32()),
                'class': pa.array([class_of(label, classes) for label in labels[start:end].tolist()], pa.string()),
                'features': pa.FixedSizeListArray.from_arrays(values, part.shape[1]),
            }
            table = pa.table(columns).replace_schema_metadata({'dualcl_jax': json.dumps(about)})
            writer = writer or pa.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            start = end
    finally:
        if writer is not None:
            writer.close()


def write_npz(
    path: Path, names: Sequence[str], labels: np.ndarray, classes: Sequence[str], parts: Parts, about: Mapping[str, Any]
) -> None:
    """Writes the arrays `files`, `labels`, `class_names`, `features` and, as JSON, `about`.

    The same features give the same bytes.
    """
    arrays = {
        'files': np.array(names, np.str_),
        'labels': labels,
        'class_names': np.array(classes, np.str_),
        'about': np.array(json.dumps(about)),
    }
    with zipfile.ZipFile(path, 'w') as archive:
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open('features.npy', 'w', force_zip64=True) as file:
            for place, part in enumerate(parts):
                if place == 0:
                    shape = (len(names), part.shape[1])
                    header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(part, '<f4').tobytes())


def write_csv(
    path: Path, names: Sequence[str], labels: np.ndarray, classes: Sequence[str], parts: Parts, about: Mapping[str, Any]
) -> None:
    """Writes a line for each example: `file`, `label`, `class`, and its features as `f0`, `f1` and so on."""
    start = 0
    with path.open('w', newline='', encoding='utf-8') as file:
        lines = csv.writer(file)
        for part in parts:
            if start == 0:
                lines.writerow(['file', 'label', 'class', *(f'f{column}' for column in range(part.shape[1]))])
            for row, features in enumerate(part.tolist(), start):
                label = int(labels[row])
                values = (f'{value:.9g}' for value in features)  # enough to restore a float32
                lines.writerow([names[row], label, class_of(label, classes), *values])
            start += len(part)


# To add a format, write a function and add a line here with the suffix of its files.
WRITERS: dict[str, Callable[..., None]] = {'.parquet': write_parquet, '.npz': write_npz, '.csv': write_csv}


def class_of(label: int, classes: Sequence[str]) -> str:
    """The name of a class; empty for -1 and without names."""
    return classes[label] if 0 <= label < len(classes) else ''


def check_format(output: str) -> str:
    """The suffix of an output file, a key of `WRITERS`. Raises UserError if it is another."""
    suffix = Path(output).suffix.lower()
    if '://' in output:
        raise UserError(f'--output={output}: must be a local file; copy it afterwards')
    if suffix not in WRITERS:
        raise UserError(f'--output={output}: name it .parquet, .npz or .csv')
    return suffix


def check_names(output: str, names: Sequence[str]) -> None:
    """Raises UserError if names, such as long texts, do not fit in an output file of this format."""
    lengths = [len(name) for name in names]
    longest = max(lengths)
    needed, bare = (np.dtype((np.str_, 1)).itemsize * count for count in (longest * len(names), sum(lengths)))
    if check_format(output) == '.npz' and needed > max(MOST_NAME_BYTES, MOST_PADDING * bare):
        raise UserError(
            f'--output={output}: the names would take {needed:,} bytes, since the longest one has {longest:,} '
            'characters; name it .parquet or .csv'
        )
