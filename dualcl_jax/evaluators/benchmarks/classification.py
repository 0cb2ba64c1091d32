"""Transfer: sentences with classes, for linear probes of frozen features.

The sets are those of SentEval (1803.05449): MR, CR, SUBJ and MPQA, which have no parts, and SST-2 and TREC, which have
a part for testing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualcl_jax.evaluators.benchmarks.files import present, read_lines, sha256
from dualcl_jax.system.errors import UserError

FIELD = 'transfer.path'
FEWEST = 20
"""The fewest training sentences that a class must have, so that ten folds and held-out shares have all classes."""

BY_FILE = {
    'MR': ('rt-polarity.neg', 'rt-polarity.pos'),
    'CR': ('custrev.neg', 'custrev.pos'),
    'SUBJ': ('subj.objective', 'subj.subjective'),
    'MPQA': ('mpqa.neg', 'mpqa.pos'),
}
"""Sets with a file of sentences for each class."""
BY_PART = {
    'SST-2': ('stsa.binary.train', 'stsa.binary.dev', 'stsa.binary.test'),
    'TREC': ('TREC.train', '', 'TREC.test'),
}
"""Sets with a file for training, validation (or none) and testing; a line begins with its class."""


class Classified(NamedTuple):
    """N sentences of a set and their classes.

    Attributes:
      name: name of the set.
      sentences: [N].
      labels: int32 [N].
      class_names: names of the labels.
      train, validation, test: int64, the rows of each part. For a set without parts all are empty, and it is measured
        by cross-validation; `validation` alone may also be empty.
      fingerprint: SHA-256 of the files.
    """

    name: str
    sentences: list[str]
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    fingerprint: str


def read_classification(folder: str) -> list[Classified]:
    """Reads MR, CR, SUBJ, MPQA, SST-2 and TREC from a folder with the files of `BY_FILE` and `BY_PART`.

    The classes of TREC are its six coarse question types.

    Raises:
      UserError: a file is missing or malformed.
    """
    tables = [*BY_FILE.values(), *BY_PART.values()]
    names = [name for files in tables for name in files if name]
    paths = dict(zip(names, present(folder, names, FIELD), strict=True))
    found = [_by_file(name, [paths[file] for file in files]) for name, files in BY_FILE.items()]
    return found + [
        _by_part(name, [paths[file] if file else None for file in files]) for name, files in BY_PART.items()
    ]


def _by_file(name: str, paths: Sequence[Path]) -> Classified:
    sentences: list[str] = []
    labels: list[int] = []
    for label, path in enumerate(paths):
        lines = [line.strip() for _, line in read_lines(path, FIELD)]
        sentences += lines
        labels += [label] * len(lines)
    none = np.zeros(0, np.int64)
    class_names = tuple(path.suffix[1:] for path in paths)
    _check_sizes(paths[0], np.bincount(labels, minlength=len(paths)), class_names)
    return Classified(name, sentences, np.asarray(labels, np.int32), class_names, none, none, none, sha256(paths))


def _by_part(name: str, paths: Sequence[Path | None]) -> Classified:
    sentences: list[str] = []
    classes: list[str] = []
    parts: list[NDArray[np.int64]] = []
    for path in paths:
        before = len(sentences)
        for number, line in read_lines(path, FIELD) if path else ():
            label, _, sentence = line.strip().partition(' ')
            if not sentence.strip():
                raise UserError(f'config.{FIELD}: {path}, line {number}: needs a class and a sentence; fix it')
            classes.append(label.partition(':')[0])
            sentences.append(sentence.strip())
        if path and len(sentences) == before:
            raise UserError(f'config.{FIELD}: {path}: has no sentences; replace it')
        parts.append(np.arange(before, len(sentences)))
    class_names, labels = np.unique(classes, return_inverse=True)
    used = [path for path in paths if path]
    _check_sizes(used[0], np.bincount(labels[parts[0]], minlength=len(class_names)), class_names.tolist())
    train, validation, test = parts
    return Classified(
        name, sentences, labels.astype(np.int32), tuple(class_names.tolist()), train, validation, test, sha256(used)
    )


def _check_sizes(path: Path, sizes: NDArray, class_names: Sequence[str]) -> None:
    """Raises UserError if there is only one class, or a class has too few sentences."""
    if len(sizes) < 2:
        raise UserError(f'config.{FIELD}: {path}: has only one class; replace it')
    least = int(np.argmin(sizes))
    if sizes[least] < FEWEST:
        raise UserError(
            f'config.{FIELD}: {path}: class {class_names[least]!r} has {sizes[least]} sentences to train on; '
            f'{FEWEST} are needed; use a larger set'
        )
