"""Rows of CSV, read leniently line by line, but without merging lines at an unbalanced quotation mark."""

import csv
import sys
from collections.abc import Iterable, Iterator


class RowError(Exception):
    """A row cannot be told apart from the lines that follow it.

    Attributes:
      problem: the line in which the row begins, and the reason.
      remedy: what to correct.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f'{problem}; {remedy}')
        self.problem, self.remedy = problem, remedy


class _Lines:
    """Lines for `csv.reader`.

    Attributes:
      number: the number of the last line, from 1.
      taken: the lines since `taken` was last cleared.
      ended: whether more lines were asked for than there are.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.number, self.taken, self.ended = 0, list[str](), False

    def __iter__(self) -> '_Lines':
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None:
            self.ended = True
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        return line


def csv_rows(lines: Iterable[str], delimiter: str = ',') -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first line, from 1, and the values of each row.

    A row in one line is read as `csv` reads it, whatever its quotation marks. In a row of several lines, and in one
    that the end of the file cuts off, they must be balanced, and the closing one must end the value: otherwise the row
    may have swallowed others.

    Args:
      lines: the lines; an error of type `csv.Error` in reading them is one of the row.
      delimiter: the sign between values.

    Raises:
      RowError: quotation marks are unbalanced, or a carriage return without a line feed is not in quotation marks.
    """
    source = _Lines(lines)
    rows = csv.reader(source, delimiter=delimiter)
    while True:
        number = source.number + 1
        source.taken.clear()
        limit = csv.field_size_limit(sys.maxsize)  # of the whole process, so only for the time of a row
        try:
            row = next(rows, None)
            if row is not None and (len(source.taken) > 1 or source.ended):
                row = next(csv.reader(source.taken, delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise _error(number, str(error)) from error
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield number, row


def _error(number: int, reason: str) -> RowError:
    remedy = 'close every quotation mark, and double those inside a quoted value'
    if reason.startswith('new-line character'):  # `csv` then blames the way in which the file was opened
        reason = 'a carriage return without a line feed'
        remedy = 'end every line with a line feed, and quote values with carriage returns'
    return RowError(f'the row that begins in line {number} is not CSV ({reason})', remedy)
