"""Rows of text: their sentences and classes, the columns that have them, and the counts of rows left out."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from dualcl_jax.system.errors import UserError

AUTO, CHECKED, UNCHECKED = CHECKS = ('auto', 'checked', 'unchecked')
"""Values of data.rows. In a new run 'auto' means 'checked'; a stored run keeps its value."""
LISTED = 8
"""The number of columns of a file that are named."""
NAMED = 3
"""The number of places that are named for each reason."""
EMPTY, NOT_UTF8, NO_COLUMN, NOT_TEXT = 'empty', 'not UTF-8', 'without the column', 'not text'
"""Reasons for which rows are left out."""


class Row(NamedTuple):
    """The sentences of an example, and its class as text, None where it has none."""

    sentences: tuple[str, ...]
    label: str | None


@dataclasses.dataclass
class LeftOut:
    """Counts rows that are left out, by reason.

    Attributes:
      reasons: for each reason, the number of rows ('count') and the places of the first ones ('names').
    """

    reasons: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def add(self, reason: str, place: str, count: int = 1) -> None:
        """Adds rows, of which the first is at a place."""
        self._count(f'rows: {reason}', count, [place])

    def include(self, other: 'LeftOut') -> None:
        """Adds the counts of another."""
        for reason, about in other.reasons.items():
            self._count(reason, about['count'], about['names'])

    def _count(self, reason: str, count: int, places: Sequence[str]) -> None:
        entry = self.reasons.setdefault(reason, {'count': 0, 'names': []})
        entry['count'] += count
        entry['names'] += places[: NAMED - len(entry['names'])]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table hold the sentences and the class.

    Args:
      names: the names, or numbers from 0, of one or two columns with sentences; if empty, a line is a sentence.
      label: the name or number of the column with the class; if empty, there are no classes.
      optional: whether a file may lack the column of the class, as a file for testing may.
      checked: whether rows with NUL characters, or with more values than the header, are left out.
    """

    names: tuple[str, ...]
    label: str
    optional: bool = False
    checked: bool = True

    @property
    def wanted(self) -> tuple[str, ...]:
        return (*self.names, self.label) if self.label else self.names

    @property
    def by_number(self) -> bool:
        """Whether columns are named by their numbers, as in a table without a header."""
        return all(name.isdecimal() for name in self.wanted)

    def within(self, header: Sequence[str]) -> 'Columns':
        """These columns in a file with this header: without that of the class if the file lacks it, and may."""
        lacking = self.optional and self.label not in map(shown, header)
        return dataclasses.replace(self, label='') if lacking else self

    def row(self, values: Sequence[Any]) -> Row:
        """Makes a row from the values of the wanted columns."""
        label = values[-1] if self.label else None
        known = label is not None and str(label).strip() != ''
        sentences = tuple(' '.join(value.split()) for value in values[: len(self.names) or 1])
        return Row(sentences, str(label).strip() if known else None)


def find(columns: Columns, header: Sequence[str], name: str) -> list[int]:
    """Finds the positions of the columns in the header of a file. Raises UserError if one is missing."""
    header = [shown(column) for column in header]
    if not columns.names:
        raise UserError(
            f"data.columns='': {name} has columns; name the one with sentences, or the two of pairs, or their "
            f'numbers if there is no header: {_listed(header)}'
        )
    for column in columns.wanted:
        if column not in header:
            raise no_column(columns, column, name, header)
    return [header.index(column) for column in columns.wanted]


def no_column(columns: Columns, column: str, name: str, header: Sequence[str]) -> UserError:
    """The error of a file without a column."""
    field = 'label_column' if column not in columns.names else 'columns'
    return UserError(f'data.{field}={column}: {name} has no such column, only {_listed(header)}')


def shown(column: str) -> str:
    """The name of a column, without wrong bytes and surrounding spaces."""
    return column.encode('utf-8', 'backslashreplace').decode().strip()


def _listed(header: Sequence[str]) -> str:
    return ', '.join(header[:LISTED]) + (', …' if len(header) > LISTED else '')


def is_text(values: Iterable[Any]) -> bool:
    """Whether the strings among some values are valid Unicode. An unpaired surrogate is not; it may be a wrong byte."""
    try:
        for value in values:
            if isinstance(value, str) and not value.isascii():
                value.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked(values: list[Any], place: str, columns: Columns, left_out: LeftOut) -> Iterator[Row]:
    """Yields a row of values, if its sentences are text."""
    sentences = values[: len(columns.names)]
    if any(value is None for value in sentences):
        left_out.add(NO_COLUMN, place)
    elif not all(isinstance(value, str) for value in sentences):
        left_out.add(NOT_TEXT, place)
    elif not is_text(values):
        left_out.add(NOT_UTF8, place)
    elif not all(value.strip() for value in sentences):
        left_out.add(EMPTY, place)
    else:
        yield columns.row(values)
