"""Tokens of sentences, by a tokenizer of Hugging Face's format (`tokenizer.json`), given or trained on the corpus."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from etils import epath
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from dualcl_jax.system.errors import UserError, first_line, reason_of
from dualcl_jax.system.files import reachable

os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')  # where it is unset, a later fork prints a warning

FILE = 'tokenizer.json'
"""The name of a tokenizer in a folder: a workdir, or a model of Hugging Face."""
PAD, UNKNOWN, FIRST, LAST, MASK = SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
"""The special tokens of a trained WordPiece, whose ids are their positions here."""
PADS, UNKNOWNS = (PAD, '<pad>'), (UNKNOWN, '<unk>')
ALPHABET, COVERED = 1000, 0.9995
"""How many characters, the most frequent ones of a corpus, get a token of their own: this number, or as many as make up
this share of the corpus if these are more, as in Chinese, but then at most a quarter of the vocabulary."""
BLOCK = 8192
"""Sentences that are encoded at a time."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Maps sentences to tokens of a fixed length.

    The first token of a sentence is [CLS], or what the tokenizer has in its place, and the last one [SEP].

    Args:
      definition: the content of `tokenizer.json`; its own truncation and padding are ignored.
      length: L, the number of tokens of a sentence including the first and the last one, at least 3. Longer sentences
        are cut.

    Raises:
      ValueError: the definition is invalid, or its sentences have no first and last token.

    Example:
      >>> tokenizer = train_wordpiece(['A cat sleeps.', 'Two cats sleep.'], vocabulary=40, length=6)
      >>> encoded = tokenizer.encode(['a CAT', 'two cats sleep and sleep'])
      >>> encoded['tokens'].shape, encoded['length'].tolist()
      ((2, 1, 6), [[4], [6]])
    """

    definition: str = dataclasses.field(repr=False)
    length: int

    def __post_init__(self) -> None:
        empty = self._tokenizer.encode('').ids
        if len(empty) != 2:
            raise ValueError(f'it adds {len(empty)} tokens to a sentence instead of two, such as [CLS] and [SEP]')

    @classmethod
    def read(cls, path: str, length: int) -> 'Tokenizer':
        """Reads a `tokenizer.json`, or the one in a folder, for sentences of `length` tokens.

        Raises:
          UserError: there is no such file, or it cannot be used.
        """
        named = f'text.tokenizer={path}'
        found = reachable(path, named)
        file = found / FILE if found.is_dir() else found
        try:
            return cls(file.read_text(), length)
        except (OSError, ValueError) as error:
            reason = reason_of(error)
            raise UserError(
                f"{named}: {file.name} cannot be used ({reason}); name a tokenizer.json, a folder that has one, or '' "
                'to train one on the corpus'
            ) from error

    @functools.cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        try:
            tokenizer = tokenizers.Tokenizer.from_str(self.definition)
        except Exception as error:  # the library raises Exception itself
            raise ValueError(first_line(error)) from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.length)
        return tokenizer

    def __getstate__(self) -> dict[str, object]:
        return {'definition': self.definition, 'length': self.length}

    @property
    def size(self) -> int:
        """The number of rows of a token embedding: the largest id plus one."""
        return 1 + max(self._tokenizer.get_vocab().values())

    @functools.cached_property
    def pad(self) -> int:
        """The id of the tokens beyond the end of a sentence; 0 if the tokenizer has no padding token."""
        return self._id(PADS, 0)

    @functools.cached_property
    def unknown(self) -> int:
        """The id of the token in place of words that the tokenizer cannot express; -1 if there is none."""
        return self._id(UNKNOWNS, -1)

    def _id(self, names: Sequence[str], absent: int) -> int:
        ids = (self._tokenizer.token_to_id(name) for name in names)
        return next((number for number in ids if number is not None), absent)

    def encode(self, sentences: Sequence[str]) -> dict[str, np.ndarray]:
        """Encodes n sentences: 'tokens' int32 [n, 1, L] and 'length' int32 [n, 1], the number of tokens that count."""
        return self.encode_and_cut(sentences)[0]

    def encode_and_cut(self, sentences: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Encodes n sentences as `encode` does, and returns which of them were cut, bool [n]."""
        tokens = np.full((len(sentences), self.length), self.pad, np.int32)
        length, cut = np.zeros(len(sentences), np.int32), np.zeros(len(sentences), bool)
        for start in range(0, len(sentences), BLOCK):
            encoded = self._tokenizer.encode_batch_fast(list(sentences[start : start + BLOCK]))
            for row, sentence in enumerate(encoded, start):
                ids = sentence.ids
                tokens[row, : len(ids)] = ids
                length[row] = len(ids)
                cut[row] = bool(sentence.overflowing)
        return {'tokens': tokens[:, None], 'length': length[:, None]}, cut

    def decode(self, tokens: np.ndarray, length: int) -> str:
        """The text of one sentence, tokens int [L], without special tokens."""
        return self._tokenizer.decode(np.asarray(tokens)[:length].tolist())


def train_wordpiece(sentences: Sequence[str], *, vocabulary: int, length: int) -> Tokenizer:
    """Trains a WordPiece (1609.08144, in the form of BERT, uncased) of at most `vocabulary` tokens.

    The same sentences in the same order give the same bytes, on any number of threads. By itself, the library
    numbers characters in the random order of a hash table, and breaks ties between merges by these numbers. Characters
    therefore get their numbers here, as if they were special tokens.

    Raises:
      UserError: the vocabulary is too small for the characters of the sentences.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(sentences, normalizer, max(ALPHABET, vocabulary // 4))
    inside = [f'##{letter}' for letter in alphabet if len(pre_tokenizer.pre_tokenize_str(f'a{letter}')) == 1]
    numbered = [*SPECIAL, *alphabet, *inside]
    if len(numbered) > vocabulary:
        raise UserError(
            f'model.vocabulary={vocabulary}: the characters of the sentences need {len(numbered):,} tokens; raise it'
        )
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=numbered,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator(sentences, trainer)
    # A new tokenizer of these tokens, in which only those of `SPECIAL` are special.
    tokenizer = tokenizers.Tokenizer(models.WordPiece(trained.get_vocab(), unk_token=UNKNOWN))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.post_processor = processors.BertProcessing((LAST, SPECIAL.index(LAST)), (FIRST, SPECIAL.index(FIRST)))
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    return Tokenizer(tokenizer.to_str(), length)


def _alphabet(sentences: Iterable[str], normalizer: normalizers.Normalizer, largest: int) -> list[str]:
    """The most frequent characters after normalisation, at most `largest`, in their order in Unicode."""
    counts = np.zeros(0x110000, np.int64)
    for sentence_block in _blocks(sentences):
        points = np.frombuffer(sentence_block.encode('utf-32-le', 'surrogatepass'), '<u4')
        counts += np.bincount(points, minlength=len(counts))
    letters: dict[str, int] = {}
    for point in np.flatnonzero(counts).tolist():
        if 0xD800 <= point < 0xE000:  # an unpaired surrogate is not a character
            continue
        for letter in normalizer.normalize_str(chr(point)):
            if not letter.isspace():
                letters[letter] = letters.get(letter, 0) + int(counts[point])
    by_count = sorted(letters, key=lambda letter: (-letters[letter], letter))
    share = np.cumsum([letters[letter] for letter in by_count]) / max(sum(letters.values()), 1)
    needed = 1 + int(np.searchsorted(share, COVERED))
    return sorted(by_count[: min(max(ALPHABET, needed), largest)])


def _blocks(sentences: Iterable[str]) -> Iterable[str]:
    """Joins the sentences, `BLOCK` of them in each string."""
    held: list[str] = []
    for sentence in sentences:
        held.append(sentence)
        if len(held) == BLOCK:
            yield ' '.join(held)
            held.clear()
    yield ' '.join(held)


def kept_tokenizer(folder: epath.Path) -> str:
    """The path of the tokenizer in a folder; empty if there is none."""
    return str(folder / FILE) if (folder / FILE).exists() else ''
