"""A page with pictures of near duplicates and outliers, and a table of each."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualcl_jax.evaluators.embed_all import Examples
from dualcl_jax.evaluators.measures.neighbours import Pairs
from dualcl_jax.reports.figures import fit_within
from dualcl_jax.reports.html import environment, jpeg_uri
from dualcl_jax.reports.visible import visible
from dualcl_jax.system.files import write_output
from dualcl_jax.system.kinds import IMAGES

SIDE = 100
"""The most pixels of the longer side of a picture."""
SHOWN = 200
"""How many pairs and how many outliers have pictures at most; the tables have all."""


class Outliers(NamedTuple):
    """Rows int64 [M], the most unusual first, and their scores [M]."""

    rows: np.ndarray
    scores: np.ndarray


def write_tables(output: Path, names: Sequence[str], pairs: Pairs | None, outliers: Outliers | None) -> list[str]:
    """Writes NAME.near_duplicates.csv and NAME.outliers.csv beside the output NAME.*, and returns their paths."""
    written = []
    if pairs is not None:
        lines = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.similarities.tolist(), strict=True)
        rows = [(names[first], names[second], f'{value:.4f}') for first, second, value in lines]
        written.append(_table(output, 'near_duplicates', ('file', 'other', 'similarity'), rows))
    if outliers is not None:
        found = zip(outliers.rows.tolist(), outliers.scores.tolist(), strict=True)
        scored = [(names[row], f'{score:.2f}') for row, score in found]
        written.append(_table(output, 'outliers', ('file', 'score'), scored))
    return written


def _table(output: Path, what: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    path = str(output.with_suffix(f'.{what}.csv'))
    write_output(path, text.getvalue().encode())
    return path


def write_page(
    output: Path, examples: Examples, about: str, pairs: Pairs | None, outliers: Outliers | None
) -> str | None:
    """Writes NAME.html beside the output and returns its path; None where the examples are not images."""
    if examples.sources[0].kind != IMAGES:
        return None
    sections: list[dict[str, Any]] = []
    if pairs is not None:
        shown = np.stack([pairs.first, pairs.second], axis=1)[:SHOWN]
        values = [f'similarity {value:.4f}' for value in pairs.similarities[:SHOWN].tolist()]
        sections.append(_section('Near duplicates', len(pairs.first), 'pairs', examples, shown, values))
    if outliers is not None:
        values = [f'score {score:.2f}' for score in outliers.scores[:SHOWN].tolist()]
        sections.append(
            _section('Outliers', len(outliers.rows), 'images', examples, outliers.rows[:SHOWN, None], values)
        )
    page = environment().get_template('neighbours.html').render(title=output.stem, about=about, sections=sections)
    path = str(output.with_suffix('.html'))
    write_output(path, page.encode())
    return path


def _section(
    title: str, count: int, what: str, examples: Examples, rows: np.ndarray, values: Sequence[str]
) -> dict[str, Any]:
    """A heading with the pictures of `rows` [n, m], m side by side."""
    pictures = _pictures(examples, rows.reshape(-1))
    items = [
        {
            'pictures': pictures[place * rows.shape[1] : (place + 1) * rows.shape[1]],
            'names': [examples.names[row] for row in group],
            'value': value,
        }
        for place, (group, value) in enumerate(zip(rows.tolist(), values, strict=True))
    ]
    text = f'{count:,} {what}' + (f', of which the first {SHOWN} are shown' if count > SHOWN else '')
    return {'title': title, 'text': text, 'items': items}


def _pictures(examples: Examples, rows: np.ndarray) -> list[str]:
    """Each image as a data URI."""
    return [
        jpeg_uri(fit_within(visible(image), SIDE), quality=85) for image in (examples.at(rows) if len(rows) else ())
    ]
