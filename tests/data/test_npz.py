"""Arrays from an .npz file, and all mistakes in such a file."""

import io
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from dualcl_jax import data
from dualcl_jax.data.images import npz
from dualcl_jax.data.images.source import image_shape
from dualcl_jax.system.errors import UserError
from tests.support.config_parts import data_config

rng = np.random.default_rng(2)
IMAGES = rng.integers(0, 256, (12, 5, 6, 3), np.uint8)
LABELS = np.arange(12) % 4


def config(path) -> ConfigDict:
    return data_config(name='npz', path=str(path))


def load(tmp_path, **arrays):
    np.savez(tmp_path / 'set.npz', **arrays)
    return npz.load(config(tmp_path / 'set.npz'))


def test_both_splits_with_labels(tmp_path):
    train, test = load(
        tmp_path,
        train_images=IMAGES,
        train_labels=LABELS,
        test_images=IMAGES[:3],
        test_labels=np.uint8([[5], [0], [1]]),
    )
    np.testing.assert_array_equal(train.examples(np.arange(12)), IMAGES)
    np.testing.assert_array_equal(train.labels, LABELS)
    np.testing.assert_array_equal(test.labels, [5, 0, 1])
    assert train.labels.dtype == test.labels.dtype == np.int32
    assert train.class_names == test.class_names == ('0', '1', '2', '3', '4', '5')


def test_images_alone(tmp_path):
    train, test = load(tmp_path, images=IMAGES[..., 0], something_else=np.zeros(3))
    assert test is None
    assert image_shape(train) == (5, 6, 1)
    assert train.class_names is None
    np.testing.assert_array_equal(train.labels, np.full(12, -1))
    np.testing.assert_array_equal(train.examples(np.array([3]))[0, ..., 0], IMAGES[3, ..., 0])


def test_labels_of_one_split(tmp_path):
    train, test = load(tmp_path, images=IMAGES, test_images=IMAGES[:3], test_labels=[0, 1, -1])
    assert set(train.labels) == {-1}
    assert train.class_names == test.class_names == ('0', '1')


def test_through_the_table_and_compressed(tmp_path):
    np.savez_compressed(tmp_path / 'set.npz', images=IMAGES, labels=LABELS)
    fields = config(tmp_path / 'set.npz')
    fields.limit = fields.num_examples = 5
    train, _ = data.load(fields)
    np.testing.assert_array_equal(train.labels, LABELS[np.random.default_rng(0).permutation(12)[:5]])


def test_the_fingerprint_is_that_of_the_arrays_not_of_the_file(tmp_path):
    (tmp_path / 'other').mkdir()
    first, _ = load(tmp_path, images=IMAGES, labels=LABELS)
    same, _ = load(tmp_path / 'other', train_images=IMAGES, train_labels=LABELS, more=np.zeros(1))
    other, _ = load(tmp_path, images=IMAGES, labels=(LABELS + 1) % 4)
    assert first.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ('arrays', 'message'),
    [
        ({'train_labels': LABELS}, "has no array 'train_images', only .'train_labels'"),
        ({'pictures': IMAGES}, "has no array 'train_images'"),
        ({'images': IMAGES, 'test_labels': LABELS}, "has no array 'test_images'"),
        ({'images': IMAGES, 'train_images': IMAGES}, "both 'train_images' and 'images'"),
        ({'images': IMAGES, 'train_labels': LABELS}, "'train_labels' does not match 'images'; rename it to 'labels'"),
        (
            {'train_images': IMAGES, 'labels': LABELS},
            "'labels' does not match 'train_images'; rename it to 'train_labels'",
        ),
        ({'images': IMAGES.astype(np.float32)}, r"'images' is float32 \[12, 5, 6, 3\]"),
        ({'images': IMAGES[0, 0]}, r"'images' is uint8 \[6, 3\]"),
        ({'images': IMAGES[..., :2]}, r"'images' is uint8 \[12, 5, 6, 2\]"),
        ({'images': IMAGES[:0]}, r"'images' is uint8 \[0, 5, 6, 3\]; .* not empty"),
        ({'images': IMAGES, 'test_images': IMAGES[:, :, :5]}, r'differ in shape, \(5, 6, 3\) and \(5, 5, 3\)'),
        ({'images': IMAGES, 'labels': LABELS[:11]}, r"'labels' is int64 \[11\]; it must be integers \[12\]"),
        ({'images': IMAGES, 'labels': LABELS / 2}, r"'labels' is float64 \[12\]"),
        ({'images': IMAGES, 'labels': np.eye(12, 4, dtype=int)}, r"'labels' is int64 \[12, 4\]"),
        ({'images': IMAGES, 'labels': LABELS - 2}, r"'labels' ranges over -2\.\.1"),
        ({'images': IMAGES, 'labels': LABELS * 2**40}, r"'labels' ranges over 0\.\.\d{13}"),
        ({'images': np.array([object()] * 3)}, "'images' cannot be read .* never unpickled"),
        ({'images': IMAGES, 'labels': np.array(['cat'] * 12, object)}, "'labels' cannot be read .* never unpickled"),
    ],
)
def test_malformed_arrays(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, **arrays)
    assert str(tmp_path / 'set.npz') in str(error.value)


@pytest.mark.parametrize(
    ('shape', 'channels'), [((4, 3, 32, 32), 0), ((4, 3, 32, 32), 32), ((4, 1, 28, 28), 0), ((4, 6, 8, 10), 10)]
)
def test_channels_before_the_sides_are_refused(tmp_path, shape, channels):
    np.savez(tmp_path / 'set.npz', images=np.ones(shape, np.uint8))
    settings = config(tmp_path / 'set.npz')
    settings.channels = channels
    with pytest.raises(UserError, match=r"'images' is uint8 .*; they come last: use x\.transpose\(0, 2, 3, 1\)$"):
        npz.load(settings)


@pytest.mark.parametrize('shape', [(4, 3, 3, 1), (4, 5, 40, 3), (4, 7, 7, 12), (4, 8, 8, 8)])
def test_small_images_are_not_taken_for_channels_first(tmp_path, shape):
    np.savez(tmp_path / 'set.npz', images=np.ones(shape, np.uint8))
    settings = config(tmp_path / 'set.npz')
    settings.channels = shape[3]
    assert image_shape(npz.load(settings).train) == shape[1:]


@pytest.mark.parametrize('keep', [0, 10, 300, -60])
def test_a_truncated_file(tmp_path, keep):
    np.savez(tmp_path / 'whole.npz', images=IMAGES)
    path = tmp_path / 'set.npz'
    path.write_bytes((tmp_path / 'whole.npz').read_bytes()[:keep])
    with pytest.raises(UserError, match=r'data\.path=.*set\.npz: .*cannot be read'):
        npz.load(config(path))


def test_a_damaged_array(tmp_path):
    np.savez(tmp_path / 'set.npz', images=IMAGES)
    damaged = bytearray((tmp_path / 'set.npz').read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / 'set.npz').write_bytes(damaged)
    with pytest.raises(UserError, match="array 'images' cannot be read"):
        npz.load(config(tmp_path / 'set.npz'))


def test_other_files(tmp_path):
    np.save(tmp_path / 'single.npy', IMAGES)
    np.save(tmp_path / 'pickled.npy', np.array([object()]))
    (tmp_path / 'words.npz').write_text('neither an archive nor an array')
    with pytest.raises(UserError, match=r'single\.npy: is a single array'):
        npz.load(config(tmp_path / 'single.npy'))
    for name in ('pickled.npy', 'words.npz'):
        with pytest.raises(UserError, match=f'{name}: cannot be read .* never unpickled'):
            npz.load(config(tmp_path / name))
    with pytest.raises(UserError, match=r'data\.path=.*nothing\.npz: No such file'):
        npz.load(config(tmp_path / 'nothing.npz'))
    with pytest.raises(UserError, match=r'data\.path=.*: Is a directory'):
        npz.load(config(tmp_path))
    with pytest.raises(UserError, match=r'data\.path is empty'):
        npz.load(config(''))


def test_more_than_memory_is_refused_before_it_is_read(tmp_path):
    """A file of a few kilobytes that unpacks to a large array, and one whose header only claims this."""
    np.savez_compressed(tmp_path / 'bomb.npz', images=np.zeros((4096, 64, 64, 3), np.uint8))
    assert (tmp_path / 'bomb.npz').stat().st_size < 100_000
    settings = config(tmp_path / 'bomb.npz')
    settings.memory_bytes = 2**20
    with pytest.raises(UserError, match=r'would take 50,331,648 bytes of memory; .*data.memory_bytes=1048576'):
        npz.load(settings)
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        header, {'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 10**6, 1000, 3)}
    )
    with zipfile.ZipFile(tmp_path / 'claim.npz', 'w') as archive:
        archive.writestr('images.npy', header.getvalue())
    with pytest.raises(UserError, match='bytes of memory'):
        npz.load(config(tmp_path / 'claim.npz'))
