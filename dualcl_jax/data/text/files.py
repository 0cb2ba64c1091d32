"""Reads sentences: one per line, columns of a CSV, TSV, JSONL or parquet file, or a folder of such files."""

import csv
import dataclasses
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from etils import epath

from dualcl_jax.data.text import wordnet
from dualcl_jax.system.errors import UserError, first_line

LONGEST = 1_000_000
"""Bytes of a line; longer ones are left out."""
NAMED = 3
"""The number of places that are named for each reason."""
EMPTY, LONG, NOT_UTF8 = 'empty', f'longer than {LONGEST:,} bytes', 'not UTF-8'
NO_COLUMN, NOT_JSON, NOT_TEXT = 'without the column', 'not a JSON object', 'not text'


class Row(NamedTuple):
    """The sentences of an example, and its class as text, None where it has none."""

    sentences: tuple[str, ...]
    label: str | None


@dataclasses.dataclass
class Account:
    """Counts rows that are left out, by reason.

    Attributes:
      left_out: for each reason, the number of rows ('count') and the places of the first ones ('names').
    """

    left_out: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        entry = self.left_out.setdefault(f'rows: {reason}', {'count': 0, 'names': []})
        entry['count'] += 1
        if len(entry['names']) < NAMED:
            entry['names'].append(place)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table hold the sentences and the class.

    Args:
      names: the names, or numbers from 0, of one or two columns with sentences; if empty, a line is a sentence.
      label: the name or number of the column with the class; if empty, there are no classes.
    """

    names: tuple[str, ...]
    label: str

    @property
    def wanted(self) -> tuple[str, ...]:
        return (*self.names, self.label) if self.label else self.names

    @property
    def by_number(self) -> bool:
        """Whether columns are named by their numbers, as in a table without a header."""
        return all(name.isdecimal() for name in self.wanted)

    def row(self, values: Sequence[Any]) -> Row:
        """Makes a row from the values of the wanted columns."""
        label = values[-1] if self.label else None
        known = label is not None and str(label).strip() != ''
        sentences = tuple(' '.join(value.split()) for value in values[: len(self.names) or 1])
        return Row(sentences, str(label).strip() if known else None)


Read = Callable[[IO[bytes], str, Columns, Account], Iterator[Row]]


def read_rows(path: epath.Path, columns: Columns, account: Account) -> Iterator[Row]:
    """Yields the rows of a file, read by the ending of its name; counts those that cannot be used in `account`.

    Raises:
      UserError: the file cannot be read, or does not have the columns.
    """
    read = reader_of(path.name) or _read_lines
    if columns.names and read is _read_lines:
        raise UserError(
            f"data.columns={','.join(columns.names)}: {path} has lines, not columns; use '', or a file that ends in "
            + ', '.join(name for name in READERS if name != '.txt')
        )
    if columns.label and read is _read_lines:
        raise UserError(f"data.label_column={columns.label}: {path} has lines, not columns; use ''")
    try:
        with path.open('rb') as file:
            stream: Any = gzip.GzipFile(fileobj=file) if path.name.lower().endswith('.gz') else file
            for row in read(stream, path.name, columns, account):
                if all(row.sentences):
                    yield row
                else:
                    account.add(EMPTY, path.name)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, 'strerror', None) or first_line(error)
        raise UserError(f'data.path={path}: cannot be read ({reason}); restore the file') from error


def reader_of(name: str) -> Read | None:
    """The function that reads a file with this name; None for an unknown ending."""
    base = name.lower().removesuffix('.gz')
    return next((read for ending, read in READERS.items() if base.endswith(ending)), None)


def _lines(file: IO[bytes], name: str, account: Account) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line that can be used."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST and not line.endswith(b'\n'):
            while line and not line.endswith(b'\n'):
                line = file.readline(LONGEST + 1)
            account.add(LONG, f'{name}:{number}')
            continue
        try:
            yield number, line.decode('utf-8-sig' if number == 1 else 'utf-8')
        except UnicodeDecodeError:
            account.add(NOT_UTF8, f'{name}:{number}')


def _read_lines(file: IO[bytes], name: str, columns: Columns, account: Account) -> Iterator[Row]:
    for number, line in _lines(file, name, account):
        if line.strip():
            yield columns.row([line])
        else:
            account.add(EMPTY, f'{name}:{number}')


def _read_table(file: IO[bytes], name: str, columns: Columns, account: Account, **form: Any) -> Iterator[Row]:
    """Yields the rows of a table whose first line is a header, unless columns are named by their numbers."""
    rows = csv.reader((line for _, line in _lines(file, name, account)), **form)
    places: list[int] = []
    if columns.by_number and columns.wanted:
        places = [int(column) for column in columns.wanted]
    for number, row in enumerate(rows, 1):
        if not places:
            places = find(columns, row, name)
        elif len(row) <= max(places):
            account.add(NO_COLUMN if row else EMPTY, f'{name}:{number}')
        elif not all(row[place].strip() for place in places[: len(columns.names)]):
            account.add(EMPTY, f'{name}:{number}')
        else:
            yield columns.row([row[place] for place in places])


def find(columns: Columns, header: Sequence[str], name: str) -> list[int]:
    """Finds the positions of the columns in the header of a file. Raises UserError if one is missing."""
    header = [column.strip() for column in header]
    listed = ', '.join(header[:8]) + (', …' if len(header) > 8 else '')
    if not columns.names:
        raise UserError(
            f"data.columns='': {name} has columns; name the one with sentences, or the two of pairs, or their "
            f'numbers if there is no header: {listed}'
        )
    for column in columns.wanted:
        if column not in header:
            field = 'label_column' if column not in columns.names else 'columns'
            raise UserError(f'data.{field}={column}: {name} has no such column, only {listed}')
    return [header.index(column) for column in columns.wanted]


def _read_csv(file: IO[bytes], name: str, columns: Columns, account: Account) -> Iterator[Row]:
    return _read_table(file, name, columns, account)


def _read_tsv(file: IO[bytes], name: str, columns: Columns, account: Account) -> Iterator[Row]:
    return _read_table(file, name, columns, account, delimiter='\t', quoting=csv.QUOTE_NONE)


def _read_jsonl(file: IO[bytes], name: str, columns: Columns, account: Account) -> Iterator[Row]:
    met = False
    for number, line in _lines(file, name, account):
        place = f'{name}:{number}'
        if not line.strip():
            account.add(EMPTY, place)
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            account.add(NOT_JSON, place)
            continue
        if not met:
            find(columns, list(found), name)
            met = True
        yield from checked([found.get(column) for column in columns.wanted], place, columns, account)


def checked(values: list[Any], place: str, columns: Columns, account: Account) -> Iterator[Row]:
    """Yields a row of values, if its sentences are text."""
    sentences = values[: len(columns.names)]
    if any(value is None for value in sentences):
        account.add(NO_COLUMN, place)
    elif not all(isinstance(value, str) for value in sentences):
        account.add(NOT_TEXT, place)
    elif not all(value.strip() for value in sentences):
        account.add(EMPTY, place)
    else:
        yield columns.row(values)


def _read_parquet(file: IO[bytes], name: str, columns: Columns, account: Account) -> Iterator[Row]:
    import pyarrow  # slow to import: only when used
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        find(columns, table.schema_arrow.names, name)
        number = 0
        for batch in table.iter_batches(columns=list(columns.wanted)):
            found = [batch.column(column).to_pylist() for column in columns.wanted]
            for values in zip(*found, strict=True):
                number += 1
                yield from checked(list(values), f'{name}:{number}', columns, account)
    except pyarrow.ArrowException as error:
        raise OSError(None, first_line(error)) from error


def _read_wordnet(file: IO[bytes], name: str, columns: Columns, account: Account) -> Iterator[Row]:
    for number, line in _lines(file, name, account):
        try:
            pair = wordnet.pair(line)
        except (ValueError, IndexError) as error:
            raise OSError(None, f'line {number} is not a WordNet entry') from error
        if pair is None:
            continue
        values = dict(zip((*wordnet.COLUMNS, '0', '1'), (*pair, *pair), strict=True))
        if not columns.names or not set(columns.wanted) <= set(values):
            find(columns, wordnet.COLUMNS, name)
        yield from checked([values[column] for column in columns.wanted], f'{name}:{number}', columns, account)


READERS: dict[str, Read] = {
    '.txt': _read_lines,
    '.csv': _read_csv,
    '.tsv': _read_tsv,
    '.jsonl': _read_jsonl,
    '.parquet': _read_parquet,
    **dict.fromkeys(wordnet.FILES, _read_wordnet),
}
"""Readers by the ending of a file's name, without .gz. Files with other endings have a sentence in each line."""
