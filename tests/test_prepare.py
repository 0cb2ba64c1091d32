"""Packing a folder into array_record, and reading it back."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from bad_files import encode, photo

from dualcl_jax import data, prepare
from dualcl_jax.data.encoded import EncodedSource


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for seed in range(24):
        kind = ('PNG', 'JPEG')[seed % 2]
        folder = tmp_path / 'images' / ('ant', 'bee')[seed // 12]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{seed}.{kind.lower()}').write_bytes(encode(photo(seed, 20 + seed, 60 - seed), kind))
    return tmp_path / 'images'


def run(monkeypatch, capsys, *flags: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, 'argv', ['prepare', *flags])
    status = prepare.main()
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def config(**changes) -> SimpleNamespace:
    fields = {'data_dir': '', 'path': '', 'image_size': 16, 'limit': 0, 'num_examples': 0, 'labels': 'auto'}
    fields |= {
        'test_fraction': 0.1,
        'validation_fraction': 0.0,
        'stored_size': 0,
        'memory_bytes': 2**30,
        'max_skipped': 0.05,
    }
    return SimpleNamespace(**(fields | changes))


@pytest.mark.parametrize('memory_bytes', [0, 2**30])
def test_a_packed_folder_is_the_folder(images, tmp_path, monkeypatch, capsys, memory_bytes):
    out = tmp_path / 'out'
    status, said, _ = run(monkeypatch, capsys, '--dataset=mine', f'--folder={images}', f'--data_dir={out}')
    assert status == 0
    assert '--config.data.name=mine' in said
    packed = data.load(config(name='mine', data_dir=str(out), memory_bytes=memory_bytes))
    plain = data.load(config(name='folder', path=str(images), memory_bytes=memory_bytes))
    for ours, theirs in zip(packed, plain, strict=True):
        assert isinstance(ours, EncodedSource) == (memory_bytes == 0)
        assert ours.class_names == theirs.class_names == ('ant', 'bee')
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        everything = np.arange(len(theirs))
        np.testing.assert_array_equal(ours.images(everything), theirs.images(everything))
    again = data.load(config(name='mine', data_dir=str(out), memory_bytes=memory_bytes))
    assert again.train.fingerprint == packed.train.fingerprint

    status, _, error = run(monkeypatch, capsys, '--dataset=mine', f'--folder={images}', f'--data_dir={out}')
    assert status == 2
    assert 'is there already' in error


def test_mistakes(images, tmp_path, monkeypatch, capsys):
    for flags, message in (
        (('--dataset=Mine!', f'--folder={images}'), '--dataset=Mine!: must be of small letters'),
        (('--dataset=mine', f'--folder={images}/nowhere'), 'no such folder'),
        (('--folder=x',), '--dataset'),
    ):
        status, out, error = run(monkeypatch, capsys, f'--data_dir={tmp_path / "out"}', *flags)
        assert (status, out) == (2, '')
        assert message in error
        assert len(error.splitlines()) <= 3


def test_without_tensorflow_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: None)
    status, _, error = run(monkeypatch, capsys, '--dataset=cifar10', f'--data_dir={tmp_path}')
    assert status == 2
    assert "pip install 'dualcl-jax[prepare]'" in error
