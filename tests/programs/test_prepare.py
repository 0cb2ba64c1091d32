"""Packing a folder into array_record, and reading it back."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from dualcl_jax import data, prepare
from dualcl_jax.data.images import tfds_records
from dualcl_jax.data.images.encoded import EncodedSource
from tests.support.bad_files import encode, photo
from tests.support.config_parts import data_config


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for seed in range(24):
        kind = ('PNG', 'JPEG')[seed % 2]
        folder = tmp_path / 'images' / ('ant', 'bee')[seed // 12]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{seed}.{kind.lower()}').write_bytes(encode(photo(seed, 20 + seed, 60 - seed), kind))
    return tmp_path / 'images'


def config(**changes) -> ConfigDict:
    return data_config(image_size=16, **changes)


@pytest.mark.parametrize('memory_bytes', [0, 2**30])
def test_a_packed_folder_is_the_folder(images, tmp_path, in_process, memory_bytes):
    out = tmp_path / 'out'
    status, said, _ = in_process(prepare.main, '--dataset=mine', f'--folder={images}', f'--data_dir={out}')
    assert status == 0
    assert '--config.data.name=mine' in said
    packed = data.load(config(name='mine', data_dir=str(out), memory_bytes=memory_bytes))
    plain = data.load(config(name='folder', path=str(images), memory_bytes=memory_bytes))
    for ours, theirs in zip(packed, plain, strict=True):
        assert isinstance(ours, EncodedSource) == (memory_bytes == 0)
        assert ours.class_names == theirs.class_names == ('ant', 'bee')
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        everything = np.arange(len(theirs))
        np.testing.assert_array_equal(ours.examples(everything), theirs.examples(everything))
    again = data.load(config(name='mine', data_dir=str(out), memory_bytes=memory_bytes))
    assert again.train.fingerprint == packed.train.fingerprint

    status, _, error = in_process(prepare.main, '--dataset=mine', f'--folder={images}', f'--data_dir={out}')
    assert status == 2
    assert 'already exists' in error


def test_other_labels_are_other_data(images, tmp_path, in_process):
    """After packing again with a corrected label, the set has the new label and a different fingerprint."""
    out, found = tmp_path / 'out', []
    names = [f'{folder}/{path.name}' for folder in ('ant', 'bee') for path in (images / folder).iterdir()]
    for corrected in (names[:12], names[:11]):
        rows = [f'{name},{"ant" if name in corrected else "bee"}' for name in names]
        (tmp_path / 'labels.csv').write_text('\n'.join(['path,label', *rows]))
        flags = ('--dataset=mine', f'--folder={images}', f'--labels={tmp_path / "labels.csv"}', '--test_fraction=0')
        assert in_process(prepare.main, *flags, f'--data_dir={out}').status == 0
        found.append(data.load(config(name='mine', data_dir=str(out))).train)
        shutil.rmtree(out)
        tfds_records._records.cache_clear()  # as in another process
    assert [int((train.labels == 0).sum()) for train in found] == [12, 11]
    assert found[0].fingerprint != found[1].fingerprint


@pytest.mark.parametrize('content', [b'', b'\x93NUMPY\x01\x00v'])
def test_a_cache_that_is_cut_off_is_written_again(images, tmp_path, in_process, content):
    out = tmp_path / 'out'
    assert in_process(prepare.main, '--dataset=mine', f'--folder={images}', f'--data_dir={out}').status == 0
    before = data.load(config(name='mine', data_dir=str(out))).train.labels
    caches = list((tmp_path / 'cache').rglob('*.npy'))
    assert caches
    for cache in caches:
        cache.write_bytes(content)
    np.testing.assert_array_equal(data.load(config(name='mine', data_dir=str(out))).train.labels, before)
    assert all(len(cache.read_bytes()) > len(content) for cache in caches)


def test_mistakes(images, tmp_path, in_process):
    for flags, message in (
        (('--dataset=Mine!', f'--folder={images}'), '--dataset=Mine!: must consist of lower-case letters'),
        (('--dataset=npz', f'--folder={images}'), '--dataset=npz: data.name=npz reads other data'),
        (('--dataset=mine', f'--folder={images}/nowhere'), 'no such folder'),
        (('--folder=x',), '--dataset'),
        (('--dataset=mine', '--folder='), '--folder is empty: name a folder of images'),
        (('--dataset=cifar10', '--test_fraction=0.2'), '--test_fraction: only for the images of --folder'),
        (('--dataset=cifar10', '--labels=none'), '--labels: only for the images of --folder'),
        (('--dataset=mine', f'--folder={images}', '--test_fraction=1'), '--test_fraction=1.0: must be'),
    ):
        status, out, error = in_process(prepare.main, f'--data_dir={tmp_path / "out"}', *flags)
        assert (status, out) == (2, '')
        assert message in error
        assert len(error.splitlines()) <= 3


def test_without_tensorflow_it_says_what_to_install(tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(prepare.importlib.util, 'find_spec', lambda name: None)
    status, _, error = in_process(prepare.main, '--dataset=cifar10', f'--data_dir={tmp_path}')
    assert status == 2
    assert "pip install 'dualcl-jax[prepare]'" in error
