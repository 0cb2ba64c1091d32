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
    number, taken, ended = 1, list[str](), False

    def take() -> Iterator[str]:
        nonlocal ended
        for line in lines:
            taken.append(line)
            yield line
        ended = True

    rows = csv.reader(take(), delimiter=delimiter)
    while True:
        limit = csv.field_size_limit(sys.maxsize)  # of the whole process, so only for the time of a row
        try:
            row = next(rows, None)
            if row is not None and (len(taken) > 1 or ended):
                row = next(csv.reader(taken, delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise _error(number, str(error)) from error
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield number, row
        number += len(taken)
        taken.clear()


def _error(number: int, reason: str) -> RowError:
    remedy = 'close every quotation mark, and double those inside a quoted value'
    if reason.startswith('new-line character'):  # `csv` then blames the way in which the file was opened
        reason = 'a carriage return without a line feed'
        remedy = 'end every line with a line feed, and quote values with carriage returns'
    return RowError(f'the row that begins in line {number} is not CSV ({reason})', remedy)
