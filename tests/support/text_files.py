"""Loads sentences from small files of any kind."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs import default
from dualcl_jax import data
from dualcl_jax.data import Splits
from dualcl_jax.data.text.tokens import Tokenizer
from tests.support.text_runs import pairs

TERMS, TEXTS = zip(*pairs(40), strict=True)


def load(path: Path | str, columns: str = '', **changes: Any) -> Splits:
    """What a config reads; `changes` are of its `data` part, and `vocabulary`."""
    config = default.get_config()
    config.data.name, config.data.path, config.data.columns = 'text', str(path), columns
    config.text.length = 8
    config.model.vocabulary = changes.pop('vocabulary', 200)
    config.data.update(changes)
    return data.load(data.data_config(config))


def sentences(source: data.Source) -> list[list[str]]:
    """The text of each example, as far as its tokens say."""
    tokenizer = Tokenizer(source.kept_files['tokenizer.json'].decode(), 8)
    arrays = source.examples(np.arange(len(source)))
    rows = zip(arrays['tokens'], arrays['length'], strict=True)
    return [[tokenizer.decode(*sentence) for sentence in zip(*row, strict=True)] for row in rows]


def write(path: Path, kind: str) -> str:
    """Writes the pairs into a file of a kind, and returns the names of the columns."""
    if kind.startswith('numbered'):
        path.write_text(''.join(f'x\t{term}\t{text}\n' for term, text in zip(TERMS, TEXTS, strict=True)))
        return '1,2'
    if kind.startswith('tsv'):
        path.write_text('term\tn\ttext\n' + ''.join(f'{a}\t1\t{b}\n' for a, b in zip(TERMS, TEXTS, strict=True)))
    if kind.startswith('csv'):
        path.write_text('\ufefftext,term\n' + ''.join(f'"{b}",{a}\r\n' for a, b in zip(TERMS, TEXTS, strict=True)))
    if kind.startswith('jsonl'):
        rows = [json.dumps({'text': text, 'term': term}) for term, text in zip(TERMS, TEXTS, strict=True)]
        path.write_text('\n'.join(rows))
    if kind.startswith('parquet'):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({'text': list(TEXTS), 'term': list(TERMS)}), path)
    return 'term,text'
