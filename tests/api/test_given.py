"""Data given to `dualcl_jax.train` in memory: what is stored in the workdir, and that runs are those of files."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import dualcl_jax
from dualcl_jax.api import given
from dualcl_jax.data.text import files
from dualcl_jax.system.errors import UserError
from tests.support import text_runs
from tests.support.runs import REPOSITORY


def test_pairs_train_as_their_file_does(in_process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr('dualcl_jax.api.session.start', lambda *_, **__: None)
    own = dict(field.split('=') for field in text_runs.FIELDS) | {'train.steps': 3, 'monitor.every_epochs': 0}
    config = f'{REPOSITORY}/{text_runs.CONFIG}'
    pairs = text_runs.pairs(64)
    summary = dualcl_jax.train(pairs, workdir=tmp_path / 'memory', config=config, **own)
    file = text_runs.write_pairs(tmp_path / 'pairs.tsv', 64)
    of_file = dualcl_jax.train(file, workdir=tmp_path / 'file', config=config, **own)
    assert of_file['state_sha256'] == summary['state_sha256']
    assert summary['config']['data']['columns'] == 'first,second'


def test_sentences_are_stored(tmp_path: Path) -> None:
    sentences = ['one\tsentence', 'another,\nof "two" lines', 'ä']
    fields = given.fields(sentences, str(tmp_path), of_text=True)
    assert fields == {'data.name': 'text', 'data.path': str(tmp_path / 'data.jsonl'), 'data.columns': 'text'}
    lines = (tmp_path / 'data.jsonl').read_text().splitlines()
    assert [json.loads(line)['text'] for line in lines] == sentences


def test_a_sentence_with_half_a_surrogate_pair_is_left_out(tmp_path: Path) -> None:
    found = given.fields(['whole \U0001f600 emoji', 'broken \ud83d emoji'], str(tmp_path), of_text=True)
    account = files.Account()
    rows = list(files.read_rows(epath.Path(found['data.path']), files.Columns(('text',), ''), account))
    assert rows == [(('whole \U0001f600 emoji',), None)]
    assert account.left_out == {'rows: not UTF-8': {'count': 1, 'names': ['data.jsonl:2']}}


def test_paths(tmp_path: Path) -> None:
    assert given.fields('a.npz', 'w', of_text=False) == {'data.name': 'npz', 'data.path': 'a.npz'}
    assert given.fields(tmp_path, 'gs://b/w', of_text=False) == {'data.name': 'folder', 'data.path': str(tmp_path)}
    assert given.fields('a.tsv', 'w', of_text=True) == {'data.name': 'text', 'data.path': 'a.tsv'}


@pytest.mark.parametrize('name', ['train_images', 'images', 'X_train'])
def test_channels_under_any_name(name: str, tmp_path: Path) -> None:
    found = given.fields({name: np.zeros((2, 8, 8, 5), np.uint16)}, str(tmp_path), of_text=False)
    assert found['data.channels'] == 5
    assert list(np.load(tmp_path / 'data.npz')) == [name]


def test_arrays_of_jax(tmp_path: Path) -> None:
    found = given.fields(jnp.zeros((2, 8, 8, 3), jnp.uint8), str(tmp_path), of_text=False)
    assert found == {'data.name': 'npz', 'data.path': str(tmp_path / 'data.npz')}
    assert np.load(tmp_path / 'data.npz')['train_images'].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ('data', 'of_text', 'message'),
    [
        (['a', ('b', 'c')], True, 'a list of strings, or a list of pairs'),
        ([('a', 'b', 'c')], True, 'a list of strings, or a list of pairs'),
        (np.zeros((2, 8, 8, 3)), True, 'the config trains on sentences'),
        (['a sentence'], False, "data: list; give a path.*config='sentences'"),
        ((np.zeros(1),) * 3, False, 'a tuple of 3'),
    ],
)
def test_other_data_is_refused(data, of_text: bool, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        given.fields(data, str(tmp_path), of_text=of_text)
    assert not list(tmp_path.glob('data.*'))
