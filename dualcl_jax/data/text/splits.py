"""Chooses the split of a set of text that is for testing."""

from collections.abc import Callable, Iterable, Sequence

from dualcl_jax.data.text.rows import LeftOut, Row

Candidate = tuple[str, Callable[[LeftOut], list[Row]]]
"""The name of a split, and a function that reads its rows and counts those that it leaves out."""


def choose_test(
    train: Sequence[Row], candidates: Iterable[Candidate], left_out: LeftOut
) -> tuple[str, list[Row]] | None:
    """Reads the split for testing: the first with a row of a class of the training rows, or else the first.

    No further split is read than needed; the first one is taken if the training rows have no classes.

    Args:
      train: the rows for training.
      candidates: the splits, in the order of preference.
      left_out: gets the rows that the chosen split leaves out.

    Returns:
      The name and the rows of the split; None without candidates.
    """
    classes = {row.label for row in train} - {None}
    first: tuple[str, list[Row], LeftOut] | None = None
    for name, read in candidates:
        own = LeftOut()
        found = name, read(own), own
        first = first or found
        if not classes or any(row.label in classes for row in found[1]):
            first = found
            break
    if first is None:
        return None
    left_out.include(first[2])
    return first[0], first[1]
