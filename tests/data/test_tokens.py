"""A WordPiece is trained with the same bytes every time, and any tokenizer gives sentences of one length."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from dualcl_jax.data.text import tokens
from dualcl_jax.data.text.tokens import SPECIAL, Tokenizer, train_wordpiece
from dualcl_jax.system.errors import UserError
from tests.support.runs import REPOSITORY
from tests.support.text_runs import pairs

SENTENCES = [sentence for pair in pairs(200) for sentence in pair]


@pytest.fixture(scope='module')
def tokenizer() -> Tokenizer:
    return train_wordpiece(SENTENCES, vocabulary=150, length=8)


def test_encoding(tokenizer: Tokenizer) -> None:
    first, last = SPECIAL.index('[CLS]'), SPECIAL.index('[SEP]')
    encoded, cut = tokenizer.encode_and_cut(['', SENTENCES[0], SENTENCES[0].upper() + '  ', ' '.join(SENTENCES)])
    assert {name: array.dtype for name, array in encoded.items()} == {'tokens': np.int32, 'length': np.int32}
    rows, length = encoded['tokens'][:, 0], encoded['length'][:, 0]
    assert rows.shape == (4, 8)
    assert (rows[:, 0] == first).all()
    assert (rows[np.arange(4), length - 1] == last).all()
    assert (rows[0, 2:] == tokenizer.pad).all()
    assert length[0] == 2
    assert length[3] == 8
    np.testing.assert_array_equal(rows[1], rows[2])  # without case
    assert not cut[0]
    assert cut[3]
    assert 0 <= rows.min() <= rows.max() < tokenizer.size <= 150
    assert tokenizer.decode(rows[1], length[1]) in SENTENCES[0]


def test_special_tokens_are_not_words(tokenizer: Tokenizer) -> None:
    """Letters and their continuations have ids of their own in training, and are ordinary tokens afterwards."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.definition)
    assert sorted(token.content for token in inner.get_added_tokens_decoder().values()) == sorted(SPECIAL)
    assert [inner.id_to_token(number) for number in range(len(SPECIAL))] == list(SPECIAL)


def test_pickle(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    np.testing.assert_array_equal(again.encode(SENTENCES[:5])['tokens'], tokenizer.encode(SENTENCES[:5])['tokens'])


@pytest.mark.parametrize('threads', ['1', '4'])
def test_the_same_bytes_in_other_processes(tokenizer: Tokenizer, threads: str) -> None:
    """The library numbers letters in the order of a hash table that differs in each process."""
    program = (
        'import hashlib\n'
        'from dualcl_jax.data.text.tokens import train_wordpiece\n'
        'from tests.support.text_runs import pairs\n'
        'sentences = [sentence for pair in pairs(200) for sentence in pair]\n'
        'print(train_wordpiece(sentences, vocabulary=150, length=8).definition, end="")\n'
    )
    environment = {'PYTHONPATH': str(REPOSITORY), 'RAYON_NUM_THREADS': threads}
    found = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout == tokenizer.definition


def test_rare_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more characters than `ALPHABET` the most frequent ones have tokens; words with others are unknown."""
    monkeypatch.setattr(tokens, 'ALPHABET', 3)
    tokenizer = train_wordpiece(['abab abc', 'abd cab'], vocabulary=14, length=5)
    rows = tokenizer.encode(['ab', 'abd'])['tokens'][:, 0]
    unknown = SPECIAL.index('[UNK]')
    assert rows[0, 1] != unknown
    assert rows[1, 1] == unknown


def test_a_language_with_many_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than `ALPHABET` characters get tokens if the corpus needs them, and the vocabulary has room for them."""
    monkeypatch.setattr(tokens, 'ALPHABET', 3)
    chinese = [chr(0x4E00 + place) for place in range(40)]
    tokenizer = train_wordpiece([''.join(chinese)], vocabulary=160, length=50)
    assert tokenizer.unknown == SPECIAL.index('[UNK]')
    assert not (tokenizer.encode(chinese)['tokens'] == tokenizer.unknown).any()
    tokenizer = train_wordpiece([''.join(chinese)], vocabulary=80, length=50)
    assert (tokenizer.encode(chinese)['tokens'] == tokenizer.unknown).sum() == 20
    monkeypatch.setattr(tokens, 'ALPHABET', 12)
    rare = train_wordpiece([*['abcdefghijk'] * 10_000, 'lmnopqrs'], vocabulary=160, length=50)
    assert (rare.encode(['l', 'm'])['tokens'][:, 0, 1] == rare.unknown).tolist() == [False, True]  # as in English


def test_a_vocabulary_that_is_too_small() -> None:
    with pytest.raises(UserError, match=r'model.vocabulary=20: the characters of the sentences need \d+ tokens; raise'):
        train_wordpiece(SENTENCES, vocabulary=20, length=8)


def test_reading(tokenizer: Tokenizer, tmp_path) -> None:
    (tmp_path / 'tokenizer.json').write_text(tokenizer.definition)
    for path in (tmp_path, tmp_path / 'tokenizer.json'):
        assert Tokenizer.read(str(path), 8) == tokenizer
    assert Tokenizer.read(str(tmp_path), 5).encode(SENTENCES[:2])['tokens'].shape == (2, 1, 5)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (None, 'No such file'),
        ('{', 'EOF'),
        (tokenizers.Tokenizer(models.WordPiece({'[UNK]': 0}, unk_token='[UNK]')).to_str(), 'adds 0 tokens'),
    ],
)
def test_a_tokenizer_that_cannot_be_used(tmp_path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / 'tokenizer.json').write_text(content)
    with pytest.raises(UserError, match=rf'text\.tokenizer=.*tokenizer.json cannot be used \(.*{said}') as refused:
        Tokenizer.read(str(tmp_path), 8)
    assert '\n' not in str(refused.value)
