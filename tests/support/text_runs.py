"""Small files of pairs of sentences, and the fields of runs on them that take seconds."""

from pathlib import Path

import numpy as np

CONFIG = 'configs/sentences.py'
FIELDS = (
    'model.width=16', 'model.dim=16', 'model.vocabulary=220', 'text.length=12', 'queue.size=64', 'train.batch_size=16',
    'train.steps=12', 'optimizer.warmup_epochs=0.5', 'log.every_steps=1', 'checkpoint.every_steps=6',
    'negatives.selector=all', 'log.pictures=False',
)  # fmt: skip
LETTERS = 'abdeghiklmnoprstu'


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different pairs of 2 to 9 words of a language with 60 words, which have a word in common."""
    rng = np.random.default_rng(seed)
    words = [''.join(rng.choice(list(LETTERS), rng.integers(2, 7))) for _ in range(60)]

    def sentence(first: str) -> str:
        return ' '.join([first, *rng.choice(words, rng.integers(1, 9))])

    return [(sentence(f'{words[number % 60]} {number}'), sentence(words[number % 60])) for number in range(count)]


def write_pairs(path: Path, count: int = 128, seed: int = 0) -> Path:
    """A table of two columns, without a header."""
    path.write_text(''.join(f'{first}\t{second}\n' for first, second in pairs(count, seed)))
    return path
