"""Reads sentences: one per line, columns of a CSV, TSV, JSONL or parquet file, or a folder of such files."""

import codecs
import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from etils import epath

from dualcl_jax.data.csv_rows import RowError, csv_rows
from dualcl_jax.data.text import wordnet
from dualcl_jax.data.text.rows import (
    EMPTY,
    LISTED,
    NO_COLUMN,
    NOT_UTF8,
    Columns,
    LeftOut,
    Row,
    checked,
    find,
    is_text,
    no_column,
    shown,
)
from dualcl_jax.system.errors import UserError, first_line, reason_of

LONGEST = 1_000_000
"""Bytes of a line, or of a row of CSV; longer ones are left out."""
LARGEST = 2**26
"""Bytes of a row of CSV at which reading stops: a quotation mark is not closed, or this is not a CSV file."""
SEARCHED = 10_000
"""Objects of JSONL among which each column must be found."""
LONG, NOT_JSON, NUL = f'longer than {LONGEST:,} bytes', 'not a JSON object', 'with NUL characters'
TOO_MANY = 'with more values than the header'
ENCODINGS = {
    codecs.BOM_UTF32_LE: 'UTF-32',
    codecs.BOM_UTF32_BE: 'UTF-32',
    codecs.BOM_UTF16_LE: 'UTF-16',
    codecs.BOM_UTF16_BE: 'UTF-16',
}
"""Encodings that cannot be read, by the bytes with which a file begins; a longer mark comes before its beginning."""
NOT_LINES = (
    *('.json', '.ndjson', '.xml', '.html', '.htm', '.yaml', '.yml', '.pdf', '.doc', '.docx', '.odt', '.rtf', '.epub'),
    *('.xls', '.xlsx', '.ods', '.arrow', '.feather', '.orc', '.avro', '.npy', '.npz', '.pkl', '.pickle', '.h5', '.db'),
    *('.sqlite', '.zip', '.tar', '.tgz', '.bz2', '.xz', '.zst', '.7z'),
)
"""Endings of tables, documents and archives, in which a line is no sentence."""
UNDECODABLE = '\udcff'
"""Stands for a value that is not UTF-8: a surrogate, as `surrogateescape` gives."""


Read = Callable[[IO[bytes], str, Columns, LeftOut], Iterator[Row]]


def has_lines(name: str) -> bool:
    """Whether a file with this name is read line by line, without columns."""
    return reader_of(name) in (None, _read_lines)


def read_rows(path: epath.Path, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    """Yields the rows of a file, read by the ending of its name; counts those that cannot be used in `left_out`.

    Raises:
      UserError: the file cannot be read, or does not have the columns.
    """
    read = reader_of(path.name) or _read_lines
    ending = next((ending for ending in NOT_LINES if path.name.lower().removesuffix('.gz').endswith(ending)), None)
    if ending is not None:
        raise UserError(
            f'data.path={path}: files that end in {ending} are not read; save the text as .txt, with a sentence in '
            'each line, or as .csv, .tsv, .parquet or .jsonl, with an object in each line'
        )
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
            for row in read(stream, path.name, columns, left_out):
                if all(row.sentences):
                    yield row
                else:
                    left_out.add(EMPTY, path.name)
    except _EncodingError as error:
        remedy = f'convert it to UTF-8: iconv -f {error} -t utf-8 FILE >NEW'
        raise UserError(f'data.path={path}: is {error}; {remedy}') from error
    except (OSError, EOFError, zlib.error) as error:
        reason = reason_of(error)
        raise UserError(f'data.path={path}: cannot be read ({reason}); restore the file') from error


def reader_of(name: str) -> Read | None:
    """The function that reads a file with this name; None for an unknown ending."""
    base = name.lower().removesuffix('.gz')
    return next((read for ending, read in READERS.items() if base.endswith(ending)), None)


def _raw_lines(file: IO[bytes], name: str, left_out: LeftOut) -> Iterator[tuple[int, bytes]]:
    """Yields the number and the bytes of each line that is not too long."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST and not line.endswith(b'\n'):
            while line and not line.endswith(b'\n'):
                line = file.readline(LONGEST + 1)
            left_out.add(LONG, f'{name}:{number}')
            continue
        yield number, line


def _lines(file: IO[bytes], name: str, columns: Columns, left_out: LeftOut) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line that can be used."""
    for number, line in _raw_lines(file, name, left_out):
        try:
            text = line.decode(_codec(number, line))
        except UnicodeDecodeError:
            left_out.add(NOT_UTF8, f'{name}:{number}')
            continue
        if columns.checked and '\0' in text:
            left_out.add(NUL, f'{name}:{number}')
        else:
            yield number, text


class _EncodingError(Exception):
    """A file has another encoding, which the error names."""


def _codec(number: int, line: bytes) -> str:
    """The encoding of a line; only the first one may begin with a byte order mark. Raises _EncodingError."""
    if number > 1:
        return 'utf-8'
    for mark, encoding in ENCODINGS.items():
        if line.startswith(mark):
            raise _EncodingError(encoding)
    return 'utf-8-sig'


def _read_lines(file: IO[bytes], name: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    for number, line in _lines(file, name, columns, left_out):
        if line.strip():
            yield columns.row([line])
        else:
            left_out.add(EMPTY, f'{name}:{number}')


class _TableLine(NamedTuple):
    """A row of a table: the number of its first line, its bytes, and its values with surrogates for wrong bytes."""

    number: int
    size: int
    values: list[str]


def _read_table(rows: Iterable[_TableLine], name: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    """Yields the rows of a table whose first row is a header, unless columns are named by their numbers."""
    places: list[int] = []
    width = None
    for number, size, row in rows:
        place = f'{name}:{number}'
        if not row:
            left_out.add(EMPTY, place)
            continue
        if not places:
            numbered = bool(columns.names) and columns.by_number
            columns = columns.within([str(at) for at in range(len(row))] if numbered else row)
            places = [int(column) for column in columns.wanted] if numbered else find(columns, row, name)
            width = len(row) if columns.checked and not numbered else None
            if not numbered:
                continue
        if size > LONGEST:
            left_out.add(LONG, place)
        elif columns.checked and any('\0' in value for value in row):
            left_out.add(NUL, place)
        elif not is_text(row):
            left_out.add(NOT_UTF8, place)
        elif len(row) <= max(places):
            left_out.add(NO_COLUMN, place)
        elif width is not None and any(value.strip() for value in row[width:]):
            left_out.add(TOO_MANY, place)  # such as a comma without quotation marks, which ends a sentence
        elif not all(row[at].strip() for at in places[: len(columns.names)]):
            left_out.add(EMPTY, place)
        else:
            yield columns.row([row[at] for at in places])


def _read_csv(file: IO[bytes], name: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    return _read_table(_csv_rows(file, name), name, columns, left_out)


def _csv_rows(file: IO[bytes], name: str) -> Iterator[_TableLine]:
    """Yields the rows of a CSV file, which have several lines if a quoted value has line breaks.

    Bytes that are not UTF-8 become surrogates.

    Raises:
      UserError: quotation marks are unbalanced, so that rows cannot be told apart.
    """
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for number, line in enumerate(iter(lambda: file.readline(LARGEST + 1), b''), 1):
            size += len(line) - line.endswith(b'\n')
            if size > LARGEST:
                raise csv.Error(f'more than {LARGEST:,} bytes')
            yield line.decode(_codec(number, line), 'surrogateescape')

    try:
        for number, values in csv_rows(lines()):
            yield _TableLine(number, size, values)
            size = 0
    except RowError as error:
        raise UserError(
            f'data.path: {name}: {error.problem}\n'
            f'correct it: {error.remedy}; or save the table as .tsv, without quotation marks'
        ) from error


def _read_tsv(file: IO[bytes], name: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    return _read_table(_tsv_rows(file, name, left_out), name, columns, left_out)


def _tsv_rows(file: IO[bytes], name: str, left_out: LeftOut) -> Iterator[_TableLine]:
    """Yields the rows of a TSV file: every line is one, and every tab separates."""
    for number, line in _raw_lines(file, name, left_out):
        text = line.decode(_codec(number, line), 'surrogateescape').removesuffix('\n').removesuffix('\r')
        yield _TableLine(number, 0, text.split('\t') if text else [])


def _read_jsonl(file: IO[bytes], name: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    missing, seen, objects = list(columns.names if columns.optional else columns.wanted), dict[str, None](), 0
    for number, line in _lines(file, name, columns, left_out):
        place = f'{name}:{number}'
        if not line.strip():
            left_out.add(EMPTY, place)
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            left_out.add(NOT_JSON, place)
            continue
        if not columns.names:
            find(columns, list(found), name)
        found = {key.strip(): value for key, value in found.items()} | found
        if missing:
            objects += 1
            seen |= dict.fromkeys(map(shown, itertools.islice(found, LISTED + 1)))
            seen = dict.fromkeys(itertools.islice(seen, LISTED + 1))
            missing = [column for column in missing if column not in found]
            if missing and objects == SEARCHED:
                break
        yield from checked([found.get(column) for column in columns.wanted], place, columns, left_out)
    if objects and missing:
        about = f'{name}, in its first {objects:,} objects,' if objects == SEARCHED else name
        raise no_column(columns, missing[0], about, list(seen))


def _read_parquet(file: IO[bytes], name: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    import pyarrow  # slow to import: only when used
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        header = table.schema_arrow.names
        columns = columns.within(header)
        chosen = [header[place] for place in find(columns, header, name)]
        number = 0
        for batch in table.iter_batches(columns=chosen):
            found = [_values(batch.column(batch.schema.names.index(column))) for column in chosen]
            for values in zip(*found, strict=True):
                number += 1
                yield from checked(list(values), f'{name}:{number}', columns, left_out)
    except pyarrow.ArrowException as error:
        raise OSError(None, first_line(error)) from error


def _values(column: Any) -> list[Any]:
    """The values of a column of a parquet file, `UNDECODABLE` for text that is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return UNDECODABLE


def _read_wordnet(file: IO[bytes], name: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    for number, line in _lines(file, name, columns, left_out):
        try:
            pair = wordnet.pair(line)
        except (ValueError, IndexError) as error:
            raise OSError(None, f'line {number} is not a WordNet entry') from error
        if pair is None:
            continue
        values = dict(zip((*wordnet.COLUMNS, '0', '1'), (*pair, *pair), strict=True))
        if not columns.names or not set(columns.wanted) <= set(values):
            find(columns, wordnet.COLUMNS, name)
        yield from checked([values[column] for column in columns.wanted], f'{name}:{number}', columns, left_out)


READERS: dict[str, Read] = {
    '.txt': _read_lines,
    '.csv': _read_csv,
    '.tsv': _read_tsv,
    '.jsonl': _read_jsonl,
    '.parquet': _read_parquet,
    **dict.fromkeys(wordnet.FILES, _read_wordnet),
}
"""Readers by the ending of a file's name, without .gz. Files with other endings have a sentence in each line."""
