"""Semantic textual similarity: pairs of sentences with similarity scores given by people.

The sets are those of SentEval (1803.05449): SemEval's STS 2012 to 2016, STS-B and the relatedness of SICK.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.evaluators.benchmarks.files import present, read_columns, sha256
from dualcl_jax.system.errors import UserError

FIELD = 'sts.path'
DEV, TEST = 'dev', 'test'
STS_B, SICK_R = 'STS-B', 'SICK-R'
STS_B_FILES = {split: f'stsb-en-{split}.csv' for split in (DEV, TEST)}
SICK_FILE = 'SICK_test_annotated.txt'
SICK_COLUMNS = ('sentence_A', 'sentence_B', 'relatedness_score')
PARTS = {
    2012: ('MSRpar', 'MSRvid', 'OnWN', 'SMTeuroparl', 'SMTnews'),
    2013: ('FNWN', 'OnWN', 'headlines'),
    2014: ('OnWN', 'deft-forum', 'deft-news', 'headlines', 'images', 'tweet-news'),
    2015: ('answers-forums', 'answers-students', 'belief', 'headlines', 'images'),
    2016: ('answer-answer', 'headlines', 'plagiarism', 'postediting', 'question-question'),
}
"""The parts of the sets of each year."""


class Pairs(NamedTuple):
    """N pairs of sentences.

    Attributes:
      name: name of the set, such as STS-B.
      split: 'dev' or 'test'.
      first, second: the sentences [N].
      scores: their similarity float64 [N], from 0, or 1 for SICK-R, to 5.
      without_score: how many pairs were left out because they have no score.
      fingerprint: SHA-256 of the files.
    """

    name: str
    split: str
    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]
    without_score: int
    fingerprint: str


def read_dev(folder: str) -> Pairs:
    """Reads the pairs of STS-B for development. Raises UserError like `read_sts`."""
    return _sts_b(present(folder, [STS_B_FILES[DEV]], FIELD)[0], DEV)


def read_sts(folder: str) -> list[Pairs]:
    """Reads STS-B for development; then STS12 to STS16, STS-B and SICK-R for testing.

    The pairs of all parts of a year form one set, which SentEval calls "all".

    Args:
      folder: holds `stsb-en-dev.csv` and `stsb-en-test.csv` (sentence, sentence, score), `sts2012.MSRpar.test.tsv` and
        the like (score, sentence, sentence) for all of `PARTS`, and `SICK_test_annotated.txt`, which has a header.

    Raises:
      UserError: a file is missing or malformed.
    """
    years = {year: [f'sts{year}.{part}.test.tsv' for part in parts] for year, parts in PARTS.items()}
    names = [*STS_B_FILES.values(), SICK_FILE, *(name for found in years.values() for name in found)]
    paths = dict(zip(names, present(folder, names, FIELD), strict=True))
    return [
        _sts_b(paths[STS_B_FILES[DEV]], DEV),
        *(_year(year, [paths[name] for name in found]) for year, found in years.items()),
        _sts_b(paths[STS_B_FILES[TEST]], TEST),
        _sick(paths[SICK_FILE]),
    ]


Row = tuple[Path, int, str, str, str]
"""A file, the number of a row in it, its score as it is written, and its two sentences."""


def _sts_b(path: Path, split: str) -> Pairs:
    rows: list[Row] = []
    for number, columns in read_columns(path, FIELD, comma=True):
        _check_columns(path, number, columns, 'sentence, sentence, score')
        rows.append((path, number, columns[2], columns[0], columns[1]))
    return _pairs(STS_B, split, rows, [path])


def _year(year: int, paths: Sequence[Path]) -> Pairs:
    rows: list[Row] = []
    for path in paths:
        for number, columns in read_columns(path, FIELD):
            _check_columns(path, number, columns, 'score, sentence, sentence')
            rows.append((path, number, *columns))  # type: ignore[arg-type]
    return _pairs(f'STS{year % 100}', TEST, rows, paths)


def _sick(path: Path) -> Pairs:
    rows: list[Row] = []
    places: list[int] = []
    for number, columns in read_columns(path, FIELD):
        if not places:
            missing = [name for name in SICK_COLUMNS if name not in columns]
            if missing:
                raise UserError(f'config.{FIELD}: {path} has no column {missing[0]} in its first line; replace it')
            places, header = [columns.index(name) for name in SICK_COLUMNS], columns
            continue
        _check_columns(path, number, columns, ', '.join(header))
        first, second, score = (columns[place] for place in places)
        rows.append((path, number, score, first, second))
    return _pairs(SICK_R, TEST, rows, [path])


def _check_columns(path: Path, number: int, columns: Sequence[str], expected: str) -> None:
    """Raises UserError if a row has other columns than those expected."""
    count = expected.count(',') + 1
    if len(columns) != count:
        raise UserError(
            f'config.{FIELD}: {path}, line {number}: has {len(columns)} columns instead of {count} ({expected}); fix it'
        )


def _pairs(name: str, split: str, rows: Iterable[Row], paths: Sequence[Path]) -> Pairs:
    """The pairs of rows that have a score."""
    first, second, scores, without_score = list[str](), list[str](), list[float](), 0
    for path, number, written, one, other in rows:
        if not written:
            without_score += 1
            continue
        if not one or not other:
            raise UserError(f'config.{FIELD}: {path}, line {number}: has an empty sentence; fix it')
        scores.append(_score(path, number, written))
        first.append(one)
        second.append(other)
    if len(set(scores)) < 2:
        raise UserError(f'config.{FIELD}: {paths[0]}: has no two pairs with different scores; replace it')
    return Pairs(name, split, first, second, np.asarray(scores, np.float64), without_score, sha256(paths))


def _score(path: Path, number: int, written: str) -> float:
    """Parses a score. Raises UserError if it is not a number."""
    try:
        score = float(written)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f'config.{FIELD}: {path}, line {number}: {written[:40]!r} is not a score; fix it')
    return score
