"""Small sets of sentences in the formats of the benchmarks, and the real ones where the machine has them."""

from pathlib import Path

import numpy as np
import pytest

from dualcl_jax.evaluators.benchmarks.classification import BY_FILE, BY_PART, FEWEST
from dualcl_jax.evaluators.benchmarks.sts import PARTS
from tests.support.runs import REPOSITORY

TEXT = REPOSITORY.parent / 'shared' / 'text'

WORDS = (
    'red', 'green', 'blue', 'small', 'large', 'old', 'new', 'round', 'flat', 'warm', 'cold', 'wet', 'dry', 'box',
    'ball', 'lamp', 'table', 'chair', 'door', 'window', 'river', 'stone', 'tree', 'leaf', 'road', 'bridge', 'train',
    'boat', 'horse', 'dog', 'cat', 'bird', 'holds', 'opens', 'breaks', 'finds', 'moves', 'paints', 'lifts',
)  # fmt: skip


def real(name: str) -> Path:
    """The path of a file or folder of shared/text. Skips the test where there is none."""
    path = TEXT / name
    if not path.exists():
        pytest.skip(f'{TEXT} does not have {name}: it is no part of the project')
    return path


def sentence(rng: np.random.Generator, count: int = 6) -> list[str]:
    """Random words."""
    return rng.choice(WORDS, count).tolist()


def pair(rng: np.random.Generator) -> tuple[str, str, float]:
    """Two sentences and how many of five words they have in common."""
    first = sentence(rng, 5)
    shared = int(rng.integers(6))
    return ' '.join(first), ' '.join(first[:shared] + sentence(rng, 5 - shared)), float(shared)


def write_sts(folder: Path, count: int = 24) -> Path:
    """All sets of STS, `count` pairs in each file; of every year the first part has one more pair, without a score."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ('dev', 'test'):
        rows = [f'"{one}",{other},{score}' for one, other, score in (pair(rng) for _ in range(count))]
        (folder / f'stsb-en-{split}.csv').write_text('\n'.join(rows) + '\n')
    for year, parts in PARTS.items():
        for place, part in enumerate(parts):
            rows = [f'{score}\t{one}\t{other}' for one, other, score in (pair(rng) for _ in range(count))]
            rows += ['\tno one\tscored this'] if place == 0 else []
            (folder / f'sts{year}.{part}.test.tsv').write_text('\n'.join(rows) + '\n')
    rows = ['pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment']
    rows += [
        f'{n}\t{one}\t{other}\t{score}\tNEUTRAL'
        for n, (one, other, score) in enumerate(pair(rng) for _ in range(count))
    ]
    (folder / 'SICK_test_annotated.txt').write_text('\n'.join(rows) + '\n')
    return folder


def write_passages(path: Path, count: int = 20) -> Path:
    """Queries whose words are among those of their passages."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(count):
        query = sentence(rng, 4)
        rows.append(f'package{number}\tsection\t{" ".join(query)}\t{" ".join(query + sentence(rng, 6))}')
    path.write_text('\n'.join(rows) + '\n')
    return path


def write_classification(folder: Path, count: int = FEWEST) -> Path:
    """All sets for transfer; the class decides one of the words."""
    folder.mkdir()
    rng = np.random.default_rng(2)

    def line(label: int) -> str:
        words = [WORDS[label], *sentence(rng, 4)]
        return ' '.join(words)

    for files in BY_FILE.values():
        for label, file in enumerate(files):
            (folder / file).write_text('\n'.join(line(label) for _ in range(count)) + '\n')
    for name, files in BY_PART.items():
        classes = ('0', '1') if name == 'SST-2' else ('ABBR:exp', 'NUM:date', 'NUM:dist')
        for file in filter(None, files):
            rows = [f'{written} {line(label)}' for label, written in enumerate(classes) for _ in range(count)]
            (folder / file).write_text('\n'.join(rows) + '\n')
    return folder
