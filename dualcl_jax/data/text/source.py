"""Sentences, or pairs of sentences, as examples: their tokens, classes and identities, in memory."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from dualcl_jax.data.source import ArraySource, Splits, described_split, first_equal, held_out_by_content, limit_indices
from dualcl_jax.data.text import tfds, wordnet
from dualcl_jax.data.text.files import TOO_MANY, read_rows, reader_of
from dualcl_jax.data.text.rows import EMPTY, UNCHECKED, Columns, LeftOut, Row
from dualcl_jax.data.text.splits import choose_test
from dualcl_jax.data.text.tokens import FILE, Tokenizer, train_wordpiece
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import reachable
from dualcl_jax.system.kinds import TEXT

VOCABULARY = 16_384
"""The size of a tokenizer that is trained, if the config does not set it."""
TRAIN_NAMES, TEST_NAMES = ('train', 'training'), ('test', 'validation', 'valid', 'val', 'dev')
"""Prefixes of the names of files that are splits; those for testing in the order of preference, if all of them or none
have labels."""
BETWEEN = '\u2003—\u2003'
"""The separator of the sentences of a pair when they are shown; no sentence has this space, see `Columns.row`."""
NO_CLASS = '-1'
"""The class that data sets of Hugging Face give to rows for testing whose class is not published."""
OTHER_FILES = 'files with other endings'


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """The rows of a split, and where they come from."""

    origin: str
    rows: list[Row]

    def take(self, indices: np.ndarray, origin: str = '') -> '_Part':
        return _Part(origin or self.origin, [self.rows[index] for index in indices.tolist()])


class _Encoded(NamedTuple):
    """A part of N rows, their tokens [N, C, L] and lengths [N, C], and which sentences were cut, bool [N, C]."""

    part: _Part
    arrays: dict[str, np.ndarray]
    cut: np.ndarray


def load(data: Any) -> Splits:
    """Loads the sentences at `data.path`, a file or a folder, by `data.columns` and the `text` part of the config.

    An example is {'tokens': int32 [C, L], 'length': int32 [C]} with C = 1 sentence, or 2 of a pair; L is `text.length`.
    Examples of the same text, apart from case and white space, have the same id.

    If a folder has files named train*, these are for training, and those named test*, validation* or dev* for testing:
    the first of these names whose files have a class of the training files, or else the first. Otherwise
    `data.test_fraction` of the labelled examples are for testing, chosen by their content.

    Args:
      data: from `dualcl_jax.data.data_config`: the `data` part of a config, and `text`.

    Raises:
      UserError: there is nothing to read, there are no sentences, too many rows cannot be used, or the tokenizer does
        not fit.
    """
    columns, left_out = _columns(data), LeftOut()
    train, test = _read(data, columns, left_out)
    _check_usable(data, left_out, len(train.rows), len(test.rows) if test else 0)
    names = _class_names(train.rows, test.rows if test else (), {NO_CLASS} if columns.checked else set())
    if test is None and names and data.test_fraction:
        train, test = _divide(data, train, names)
    train = train.take(limit_indices(len(train.rows), data.limit))
    parts = {'train': train} | ({'test': test} if test is not None and test.rows else {})
    _check_memory(data, sum(len(part.rows) for part in parts.values()), max(len(columns.names), 1))
    tokenizer, how = _tokenizer(data, train.rows)
    encoded = {split: _encode(tokenizer, part) for split, part in parts.items()}
    if columns.checked:
        encoded = {split: _with_tokens(found, left_out) for split, found in encoded.items()}
    parts = {split: found.part for split, found in encoded.items() if split == 'train' or found.part.rows}
    _check_usable(data, left_out, *(len(part.rows) for part in parts.values()))
    labels = {split: _labels(part.rows, names) for split, part in parts.items()}
    report: dict[str, Any] = {
        'splits': {split: described_split(part.origin, labels[split]) for split, part in parts.items()}
        | {'left_out': []},
        'labels': f'column {data.label_column}' if names else None,
        'left_out': left_out.reasons,
        'tokens': {'tokenizer': how, 'vocabulary': tokenizer.size, 'length': tokenizer.length}
        | _shares(tokenizer, encoded['train']),
    } | _in_other_pairs(parts['train'].rows)
    sources = {
        split: ArraySource(
            TEXT,
            encoded[split].arrays,
            labels[split],
            names or None,
            report=report,
            kind=TEXT,
            ids=first_equal(_digests(part.rows)),
            kept_files={FILE: tokenizer.definition.encode()},
            texts=[BETWEEN.join(row.sentences) for row in part.rows],
        )
        for split, part in parts.items()
    }
    return Splits(sources['train'], sources.get('test'))


def _columns(data: Any) -> Columns:
    """The columns that a config names."""
    names = tuple(name.strip() for name in data.columns.split(',')) if data.columns.strip() else ()
    if len(names) > 2 or not all(names):
        raise UserError(
            f"data.columns={data.columns}: name one column, two for pairs, such as 'term,definition', or none"
        )
    columns = Columns(names, data.label_column.strip(), checked=data.rows != UNCHECKED)
    if any(name.isdecimal() for name in columns.wanted) and not columns.by_number:
        raise UserError(
            f"data.columns={data.columns}, data.label_column='{data.label_column}': use names for all of them, or "
            'numbers for all of them in a table without a header'
        )
    return columns


def _read(data: Any, columns: Columns, left_out: LeftOut) -> tuple[_Part, _Part | None]:
    """Reads the rows for training and those for testing, None if no files are named for testing."""
    if not data.path:
        raise UserError(
            'data.path is empty: with data.name=text, set it to a file of sentences, or a folder of such files'
        )
    root = reachable(data.path, f'data.path={data.path}')
    if not root.exists():
        remedy = 'name a file of sentences, or a folder of such files'
        if data.path == wordnet.FOLDER:
            remedy = f'install WordNet (apt-get install {wordnet.PACKAGE}), or {remedy}'
        raise UserError(f'data.path={data.path}: no such file or folder; {remedy}')

    def rows(files: Sequence[epath.Path], left_out: LeftOut, columns: Columns = columns) -> list[Row]:
        return [row for file in files for row in read_rows(file, columns, left_out)]

    if not root.is_dir():
        return _Part(root.name, rows([root], left_out)), None
    if '://' in data.path:
        raise UserError(f'data.path={data.path}: must be a file, or a local folder; copy it, or mount it')
    if tfds.is_prepared(root):
        parts = [_Part(split, found) for split, found in tfds.read_splits(root, columns, left_out).items()]
        return parts[0], parts[1] if len(parts) > 1 else None
    every = [epath.Path(path) for path in sorted(Path(root).rglob('*')) if path.is_file() and not _hidden(path, root)]
    files = [path for path in every if reader_of(path.name)]
    if not files:
        raise UserError(
            f'data.path={data.path}: no file in it ends in .txt, .csv, .tsv, .jsonl or .parquet, with or without .gz'
        )
    if len(files) < len(every):
        others = [str(path.relative_to(root)) for path in every if not reader_of(path.name)]
        left_out.reasons[OTHER_FILES] = {'count': len(others), 'names': others[:3]}
    trained = _named(files, TRAIN_NAMES)
    train = _Part(_described(trained or files), rows(trained or files, left_out))
    if not trained:
        return train, None
    tests = {name: found for name in TEST_NAMES if (found := _named(files, (name,)))}
    optional = dataclasses.replace(columns, optional=True)
    candidates = [(name, partial(rows, found, columns=optional)) for name, found in tests.items()]
    tested = choose_test(train.rows, candidates, left_out)
    used = [*trained, *(tests[tested[0]] if tested else ())]
    others = [str(path.relative_to(root)) for path in files if path not in used]
    if others:
        left_out.reasons['files of no split'] = {'count': len(others), 'names': others[:3]}
    return train, _Part(_described(tests[tested[0]]), tested[1]) if tested else None


def _hidden(path: Path, root: epath.Path) -> bool:
    return any(name.startswith('.') for name in path.relative_to(root).parts)


def _named(files: Sequence[epath.Path], names: Sequence[str]) -> list[epath.Path]:
    """The files whose names begin with one of the words."""
    return [file for file in files if re.split(r'[^a-z]', file.name.lower())[0] in names]


def _described(files: Sequence[epath.Path]) -> str:
    return files[0].name if len(files) == 1 else f'{len(files):,} files, {files[0].name} to {files[-1].name}'


def _check_usable(data: Any, left_out: LeftOut, train: int, test: int = 0) -> None:
    """Checks that there are sentences to train on, and that not too many rows are left out; empty rows do not count."""
    rows = {reason: about for reason, about in left_out.reasons.items() if reason.startswith('rows: ')}
    skipped = sum(about['count'] for reason, about in rows.items() if reason != f'rows: {EMPTY}')
    listed = '; '.join(f'{about["count"]:,} {reason} ({", ".join(about["names"])})' for reason, about in rows.items())
    used = train + test
    if not train:
        raise UserError(f'data.path={data.path}: no sentences in it' + (f'\n{listed}' if listed else ''))
    quoted = f'rows: {TOO_MANY}' in rows
    remedy = (
        'values with commas need quotation marks' if quoted else 'iconv -f latin1 -t utf-8 converts a file to UTF-8'
    )
    if skipped > data.max_skipped * (used + skipped):
        raise UserError(
            f'data.path={data.path}: {skipped:,} of {used + skipped:,} rows cannot be used, more than '
            f'config.data.max_skipped={data.max_skipped:g} of them\n{listed}\n'
            f'correct them ({remedy}), or raise that share'
        )


def _check_memory(data: Any, count: int, sentences: int) -> None:
    """Checks that the tokens of `count` examples with `sentences` sentences each fit in memory."""
    needed = 4 * count * sentences * (data.text.length + 1)
    if needed > data.memory_bytes:
        raise UserError(
            f'data.path={data.path}: the tokens of {count:,} examples take {needed:,} bytes of memory; if that is '
            f'right, raise config.data.memory_bytes={data.memory_bytes}, or set data.limit'
        )


def _class_names(train: Sequence[Row], test: Sequence[Row], unknown: set[str]) -> tuple[str, ...]:
    """The names of the classes, in numerical order if all of them are numbers.

    Those of `unknown` are classes if a row for training has them, such as -1 among opinions from -1 to 1.
    """
    found = {row.label for row in train} | ({row.label for row in test} - unknown)
    names = {label for label in found if label is not None}
    numbers = all(re.fullmatch(r'-?\d{1,18}', name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))


def _labels(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    """The labels of the rows, int32 [N], -1 where unknown."""
    number = {name: label for label, name in enumerate(names)}
    return np.array([-1 if row.label is None else number.get(row.label, -1) for row in rows], np.int32)


def _digests(rows: Sequence[Row]) -> np.ndarray:
    """A hash of the text of each example without case and surplus white space, uint64 [N]."""
    texts = ('\t'.join(' '.join(sentence.lower().split()) for sentence in row.sentences) for row in rows)
    hashed = b''.join(hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest() for text in texts)
    return np.frombuffer(hashed, '<u8')


def _in_other_pairs(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The shares of the first and of the second sentences that occur in another pair, too, as `in_other_pairs`.

    Empty if both are 0, or if the rows are no pairs. Copies of a pair, which have one id, are the same pair.
    """
    pairs = np.unique(first_equal(_digests(rows)))
    shares = {}
    for place, name in enumerate(('first', 'second') if rows and len(rows[0].sentences) == 2 else ()):
        sentences = first_equal(_digests([row._replace(sentences=row.sentences[place : place + 1]) for row in rows]))
        shares[name] = float(np.mean(np.bincount(sentences[pairs], minlength=len(rows))[sentences] > 1))
    return {'in_other_pairs': shares} if any(shares.values()) else {}


def _divide(data: Any, train: _Part, names: Sequence[str]) -> tuple[_Part, _Part]:
    """Holds a share of the labelled examples out for testing, by their content."""
    content = _digests(train.rows).view(np.uint8).reshape(-1, 8)
    tested = held_out_by_content(content, _labels(train.rows, names), data.test_fraction, data.hold_out)
    share = f'{train.origin}: {data.test_fraction:.3g} of its labelled examples, by their content'
    return train.take(np.flatnonzero(~tested)), train.take(np.flatnonzero(tested), share)


def _tokenizer(data: Any, rows: Sequence[Row]) -> tuple[Tokenizer, str]:
    """The tokenizer of a config, or a new one for the rows, and where it comes from."""
    text = data.text
    if text.definition:
        return Tokenizer(text.definition, text.length), 'of the encoder'
    if not text.tokenizer:
        sentences = [sentence for row in rows for sentence in row.sentences]
        return train_wordpiece(
            sentences, vocabulary=text.vocabulary or VOCABULARY, length=text.length
        ), 'trained on the corpus'
    tokenizer = Tokenizer.read(text.tokenizer, text.length)
    if 0 < text.vocabulary < tokenizer.size:
        remedy = 'set --config.model.vocabulary=0'
        if text.pretrained:
            remedy = (
                f'use the tokenizer that belongs to the weights of --init_from={text.pretrained}, or enlarge their '
                'embedding with resize_token_embeddings of transformers'
            )
        raise UserError(
            f'text.tokenizer={text.tokenizer}: has {tokenizer.size:,} tokens, more than the model.vocabulary='
            f'{text.vocabulary} rows of the token embedding; {remedy}'
        )
    return tokenizer, text.tokenizer


def _encode(tokenizer: Tokenizer, part: _Part) -> _Encoded:
    """Encodes a part with at least one row."""
    sentences = zip(*(row.sentences for row in part.rows), strict=True)
    columns = [tokenizer.encode_and_cut(column) for column in sentences]
    arrays = {name: np.concatenate([column[0][name] for column in columns], axis=1) for name in ('tokens', 'length')}
    return _Encoded(part, arrays, np.stack([column[1] for column in columns], axis=1))


def _with_tokens(encoded: _Encoded, left_out: LeftOut) -> _Encoded:
    """The rows whose sentences have tokens. The others are counted as empty.

    The tokenizer removes characters such as a zero-width space.
    """
    part, arrays, cut = encoded
    kept = np.flatnonzero((arrays['length'] > 2).all(axis=1))
    if len(kept) == len(part.rows):
        return encoded
    left_out.add(EMPTY, part.origin, len(part.rows) - len(kept))
    return _Encoded(part.take(kept), {name: array[kept] for name, array in arrays.items()}, cut[kept])


def _shares(tokenizer: Tokenizer, encoded: _Encoded) -> dict[str, float]:
    """The share of the sentences that were cut, of the tokens that are padding, and of those of the text, unknown."""
    tokens, length = encoded.arrays['tokens'], encoded.arrays['length']
    inside = np.arange(tokens.shape[-1]) < length[..., None]
    return {
        'cut': float(encoded.cut.mean()),
        'padding': 1.0 - float(length.mean()) / tokens.shape[-1],
        'unknown': float(((tokens == tokenizer.unknown) & inside).sum() / max((length - 2).sum(), 1)),
    }
