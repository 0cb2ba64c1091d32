"""Text files of benchmarks: their lines and columns, and the errors of files that are missing or malformed."""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from dualcl_jax.system.errors import UserError, listed, reason_of
from dualcl_jax.system.files import reachable

ENCODINGS = ('utf-8-sig', 'cp1252')
"""Tried in this order. Older sets of sentences are in Windows-1252."""


def read_text(path: Path, field: str) -> str:
    """The text of a file.

    Args:
      path: the file.
      field: the field of the config that names it or its folder, for messages.

    Raises:
      UserError: it cannot be read, or is not text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f'config.{field}: {path} cannot be read ({reason_of(error)}); name another path') from error
    for encoding in ENCODINGS:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if '\0' not in text:
            return text
    raise UserError(f'config.{field}: {path} is not a text file; replace it')


def read_lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """Yields the number, from 1, and the text of each line that is not blank; see `read_text`."""
    for number, line in enumerate(read_text(path, field).split('\n'), start=1):  # other line breaks are part of a line
        if line.strip():
            yield number, line.rstrip('\r')


def read_columns(path: Path, field: str, *, comma: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of each row, from 1, and its stripped columns. They are separated by tabs, without quoting.

    Args:
      path, field: see `read_text`, also for the errors.
      comma: whether the columns are separated by commas, and may be quoted.
    """
    if not comma:
        for number, line in read_lines(path, field):
            yield number, [column.strip() for column in line.split('\t')]
        return
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, field), newline=''), strict=True))
    except csv.Error as error:
        raise UserError(f'config.{field}: {path} is not a CSV file ({error}); replace it') from error
    for number, row in enumerate(rows, start=1):
        if row:
            yield number, [column.strip() for column in row]


def present(folder: str, names: Sequence[str], field: str) -> list[Path]:
    """The paths of files in a folder that the config names.

    Raises:
      UserError: the field is empty, there is no such folder, or one of the files is missing.
    """
    if not folder:
        raise UserError(f'config.{field} is empty: name the folder of the files with --config.{field}=DIR')
    root = Path(reachable(folder, f'config.{field}={folder}'))
    if not root.is_dir():
        raise UserError(f'config.{field}={folder}: no such folder; name the one with {names[0]}')
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise UserError(
            f'config.{field}={folder}: has no file {listed(missing[:1], len(missing))}; add what is missing'
        )
    return [root / name for name in names]


def sha256(paths: Sequence[Path]) -> str:
    """SHA-256 hex digest of the contents of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
