"""In-memory sources, data.limit, and the table of sets."""

import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from dualcl_jax import data
from dualcl_jax.data.images.encoded import EncodedSource
from dualcl_jax.data.images.source import image_shape, image_source
from dualcl_jax.data.source import ArraySource, Splits, limit_indices, limit_train
from dualcl_jax.system.errors import UserError
from tests.support.config_parts import data_config


def make_source(num_examples: int = 20, **changes) -> ArraySource:
    rng = np.random.default_rng(5)
    arguments = {
        'name': 'random',
        'pixels': rng.integers(0, 256, (num_examples, 4, 5, 3), np.uint8),
        'labels': rng.integers(0, 3, num_examples, np.int32),
        'class_names': ('a', 'b', 'c'),
    }
    return image_source(**(arguments | changes))


def config(**changes) -> ConfigDict:
    return data_config(**{'name': 'fixed'} | changes)


@pytest.fixture
def fixed(monkeypatch) -> Splits:
    splits = Splits(make_source(20), make_source(7))
    monkeypatch.setitem(data.SOURCES, 'fixed', lambda _: splits)
    return splits


def test_images_by_index():
    source = make_source()
    assert image_shape(source) == (4, 5, 3)
    assert len(source) == 20
    np.testing.assert_array_equal(source.examples(np.array([3, 1, 3])), source.arrays[[3, 1, 3]])


def test_the_fingerprint_is_that_of_the_examples():
    source = make_source()
    assert source.fingerprint == make_source().fingerprint
    assert len(source.fingerprint) == 64
    other_pixels, other_labels = source.arrays.copy(), source.labels.copy()
    other_pixels[-1, -1, -1, -1] ^= 1
    other_labels[0] += 1
    changed = [
        make_source(name='other'),
        make_source(class_names=('a', 'b', 'd')),
        make_source(class_names=None),
        make_source(pixels=other_pixels),
        make_source(labels=other_labels),
        make_source(pixels=source.arrays[::-1], labels=source.labels[::-1]),
        make_source(pixels=source.arrays.reshape(20, 5, 4, 3)),
        make_source(19),
    ]
    assert len({source.fingerprint, *(other.fingerprint for other in changed)}) == 1 + len(changed)


def test_arrays_of_another_kind_are_refused():
    with pytest.raises(ValueError, match='pixels'):
        make_source(pixels=np.zeros((20, 4, 5, 3), np.float64))
    with pytest.raises(ValueError, match='labels'):
        make_source(labels=np.zeros(19, np.int32))
    with pytest.raises(ValueError, match='labels'):
        make_source(labels=np.zeros(20, np.int64))


def test_a_limit_keeps_a_fixed_random_subset_in_its_random_order():
    source = make_source()
    kept = np.random.default_rng(0).permutation(20)[:6]
    limited = limit_train(source, 6)
    np.testing.assert_array_equal(limit_indices(20, 6), kept)
    np.testing.assert_array_equal(limited.examples(np.arange(6)), source.arrays[kept])
    np.testing.assert_array_equal(limited.labels, source.labels[kept])
    assert limited.class_names == source.class_names
    assert limited.fingerprint != source.fingerprint


@pytest.mark.parametrize('limit', [0, 20, 1000])
def test_a_limit_that_is_not_reached_changes_nothing(limit):
    source = make_source()
    assert limit_train(source, limit) is source


def test_load_limits_only_the_training_split(fixed):
    train, test = data.load(config(limit=6, num_examples=6))
    assert len(train) == 6
    assert test is fixed.test


def test_validation_images_are_a_fixed_share_of_the_training_images(fixed):
    train, validation = data.load(config(limit=15, validation_fraction=0.2), validate=True)
    assert (len(train), len(validation)) == (12, 3)
    kept = limit_train(fixed.train, 15)
    together = np.concatenate([part.examples(np.arange(len(part))) for part in (train, validation)])
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in kept.arrays)
    again = data.load(config(limit=15, validation_fraction=0.2), validate=True)
    assert [part.fingerprint for part in again] == [train.fingerprint, validation.fingerprint]
    for_testing = data.load(config(limit=15, validation_fraction=0.2))
    assert (for_testing.train.fingerprint, for_testing.test) == (train.fingerprint, fixed.test)
    assert data.load(config(), validate=True) == fixed


def test_images_that_are_not_in_memory_are_not_divided(monkeypatch):
    encoded = EncodedSource('files', [], np.zeros(9, np.int32), 32, None, '')
    monkeypatch.setitem(data.SOURCES, 'fixed', lambda _: Splits(encoded, None))
    with pytest.raises(UserError, match=r'data\.memory_bytes'):
        data.load(config(validation_fraction=0.5))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_examples': 19}, r'data\.num_examples=19.*20 training'),
        ({'num_examples': 20, 'limit': 6}, r'data\.num_examples=20.*6 training'),
        ({'limit': -1}, r'data\.limit=-1'),
        ({'validation_fraction': 0.01}, r'data\.validation_fraction=0\.01: holds out 0 of the 20'),
        ({'name': ''}, r'data\.name is empty.*photo_patches'),
    ],
)
def test_mistakes_name_their_field(fixed, changes, message):
    with pytest.raises(UserError, match=message) as error:
        data.load(config(**changes))
    assert len(str(error.value).splitlines()) <= 3


def test_the_package_starts_neither_jax_nor_tensorflow():
    program = (
        'import sys, types; from dualcl_jax import data;'
        "fields = dict(name='photo_patches', channels=0, limit=9, num_examples=9, validation_fraction=0);"
        'data.load(types.SimpleNamespace(**fields));'
        "sys.exit(' '.join(sorted({'jax', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules))) or 0)"
    )
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr.strip()) == (0, ''), result.stderr
