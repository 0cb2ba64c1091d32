"""Retrieval: sentences as queries, each with the passage that it belongs to."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.evaluators.benchmarks.files import read_columns, sha256
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import reachable

FIELD = 'retrieval.path'
FEWEST = 2


class Passages(NamedTuple):
    """Q queries and P passages.

    Attributes:
      name: name of the file, without its suffix.
      queries: [Q].
      passages: [P], each text once.
      own: int64 [Q], the index of the passage that belongs to each query.
      fingerprint: SHA-256 of the file.
    """

    name: str
    queries: list[str]
    passages: list[str]
    own: NDArray[np.int64]
    fingerprint: str


def read_passages(file: str) -> Passages:
    """Reads a file of tab-separated columns, of which the last two are a query and its passage.

    Raises:
      UserError: the file is missing or malformed.
    """
    if not file:
        raise UserError(f'config.{FIELD} is empty: name a file of queries and passages with --config.{FIELD}=FILE')
    path = Path(reachable(file, f'config.{FIELD}={file}'))
    if not path.is_file():
        raise UserError(f'config.{FIELD}={file}: no such file; name a file of queries and passages')
    queries: list[str] = []
    places: dict[str, int] = {}
    own: list[int] = []
    for number, columns in read_columns(path, FIELD):
        if len(columns) < 2 or not columns[-2] or not columns[-1]:
            raise UserError(
                f'config.{FIELD}: {path}, line {number}: needs a query and a passage as its last columns, separated by '
                'a tab; fix it'
            )
        queries.append(columns[-2])
        own.append(places.setdefault(columns[-1], len(places)))
    if len(places) < FEWEST:
        raise UserError(f'config.{FIELD}: {path}: has {len(places)} passages; name a file with {FEWEST} or more')
    return Passages(path.stem, queries, list(places), np.asarray(own, np.int64), sha256([path]))
