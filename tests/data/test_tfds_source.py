"""TFDS sets: the real sets beside the repository if present, and small ones written here without TensorFlow."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from dualcl_jax import data
from dualcl_jax.data import tfds_folder
from dualcl_jax.data.describe import describe_data
from dualcl_jax.data.images import tfds as tfds_source
from dualcl_jax.data.images import tfds_records
from dualcl_jax.data.images.source import image_shape
from dualcl_jax.system.errors import EXIT_RESTART, EXIT_USER_ERROR, UserError, ending
from tests.support.tfds_sets import COLOUR, LABEL, config, examples, image_feature, write_set

SHARED = Path(__file__).resolve().parents[2].parent / 'shared' / 'tfds'


@pytest.fixture
def tiny(tmp_path) -> Path:
    splits = {'train': examples(9, 4, 5, 3), 'test': examples(4, 4, 5, 3, seed=1), 'validation': examples(2, 4, 5, 3)}
    return write_set(tmp_path, splits, COLOUR)


def assert_holds(source: data.Source, expected: list[tuple[np.ndarray, int]]) -> None:
    np.testing.assert_array_equal(source.examples(np.arange(len(source))), np.stack([pixels for pixels, _ in expected]))
    np.testing.assert_array_equal(source.labels, [label for _, label in expected])


def test_both_splits(tiny):
    train, test = data.load(config(data_dir=tiny, num_examples=9))
    assert_holds(train, examples(9, 4, 5, 3))
    assert_holds(test, examples(4, 4, 5, 3, seed=1))
    assert image_shape(train) == (4, 5, 3)
    assert train.class_names == ('ant', 'bee', 'cat')
    assert train.name == 'tiny/1.0.0'
    assert train.labels.dtype == np.int32
    assert 'tensorflow' not in sys.modules


def test_a_version_may_be_named(tiny):
    assert len(data.load(config('tiny:1.0.0', tiny)).train) == 9


def test_more_records_than_are_read_at_once(tiny, monkeypatch):
    monkeypatch.setattr(tfds_folder, 'CHUNK', 4)
    assert_holds(data.load(config(data_dir=tiny)).train, examples(9, 4, 5, 3))


def test_only_the_limit_is_decoded(tiny, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        tfds_source, '_decode', lambda *args, real=tfds_source._decode: decoded.append(1) or real(*args)
    )
    train, test = data.load(config(data_dir=tiny, limit=5, num_examples=5))
    kept = np.random.default_rng(0).permutation(9)[:5]
    assert_holds(train, [examples(9, 4, 5, 3)[index] for index in kept])
    assert len(test) == 4
    assert len(decoded) == 5 + 4


def test_the_fingerprint_is_that_of_the_examples(tmp_path):
    def of(folder: str, seed: int, limit: int = 0) -> str:
        if not (tmp_path / folder).exists():
            write_set(tmp_path / folder, {'train': examples(9, 4, 5, 3, seed=seed)}, COLOUR)
        return data.load(config(data_dir=tmp_path / folder, limit=limit)).train.fingerprint

    assert of('a', 0) == of('b', 0) == of('a', 0, limit=9)
    assert len({of('a', 0), of('c', 1), of('a', 0, limit=5), of('a', 0, limit=6)}) == 4


def test_validation_where_there_is_no_test_split_and_no_labels(tmp_path):
    splits = {'train': examples(3, 4, 5, 1), 'validation': examples(2, 4, 5, 1, seed=1)}
    write_set(tmp_path, splits, {'image': image_feature(4, 5, 1)})
    train, test = data.load(config(data_dir=tmp_path))
    assert image_shape(train) == image_shape(test) == (4, 5, 1)
    assert_holds(test, [(pixels, -1) for pixels, _ in splits['validation']])
    assert train.class_names is None


@pytest.mark.parametrize('sizes', [(12, 16), (-1, -1)])
def test_a_labelled_split_is_preferred_for_testing(tmp_path, monkeypatch, sizes):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    unlabelled = [(pixels, -1) for pixels, _ in examples(4, 12, 16, 3, seed=1)]
    splits = {'train': examples(9, 12, 16, 3), 'test': unlabelled, 'validation': examples(2, 12, 16, 3, seed=2)}
    features = {'image': image_feature(*sizes, 3), 'label': LABEL}
    write_set(tmp_path / 'one', splits, features)
    fields = {'stored_size': 12, 'memory_bytes': 10**6}
    found = data.load(config(data_dir=tmp_path / 'one', **fields))
    assert found.test.labels.tolist() == [label for _, label in splits['validation']]
    assert describe_data(found)['splits'] == (
        'train: train (9 images, 9 labelled); test: validation (2 images, 2 labelled)'
    )
    assert found.train.report['splits']['left_out'] == ['test']
    write_set(tmp_path / 'none', splits | {'validation': unlabelled[:2]}, features)
    assert len(data.load(config(data_dir=tmp_path / 'none', **fields)).test) == 4


def test_training_split_alone(tmp_path):
    write_set(tmp_path, {'train': examples(3, 4, 5, 3)}, COLOUR)
    assert data.load(config(data_dir=tmp_path)).test is None


def test_grey_files_in_a_colour_set(tmp_path):
    colour, grey = examples(1, 4, 5, 3)[0], examples(1, 4, 5, 1)[0]
    write_set(tmp_path, {'train': [colour, grey]}, COLOUR)
    train, _ = data.load(config(data_dir=tmp_path))
    assert_holds(train, [colour, (grey[0].repeat(3, axis=2), grey[1])])


def test_sizes_that_are_not_declared(tmp_path, monkeypatch):
    """Images of any size become central squares of the stored size."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    (tall, first), (wide, second) = examples(1, 20, 12, 3)[0], examples(1, 12, 16, 3, seed=1)[0]
    write_set(tmp_path, {'train': [(tall, first), (wide, second)]}, {'image': image_feature(-1, -1, 3), 'label': LABEL})
    for memory_bytes in (0, 10**6):
        train, _ = data.load(config(data_dir=tmp_path, stored_size=12, memory_bytes=memory_bytes))
        np.testing.assert_array_equal(train.examples(np.arange(2)), [tall[4:16], wide[:, 2:14]])
        assert train.labels.tolist() == [first, second]


def mistake(fields: ConfigDict) -> str:
    with pytest.raises(UserError) as error:
        data.load(fields)
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


def test_a_missing_set(tiny):
    message = mistake(config('cifar11', tiny))
    assert f'data.name=cifar11 in data.data_dir={tiny} does not exist' in message
    assert message.splitlines()[0].endswith(f'dualcl prepare --dataset=cifar11 --data_dir={tiny}')
    assert 'photo_patches' in message


def test_a_missing_version_or_configuration(tiny):
    for name in ('tiny:2.0.0', 'tiny/large'):
        assert f"data.name={name} in data.data_dir={tiny} does not exist (of tiny: ['1.0.0'])" in mistake(
            config(name, tiny)
        )


def test_a_missing_folder(tmp_path):
    message = mistake(config(data_dir=tmp_path / 'nowhere'))
    assert 'no such folder' in message
    assert 'dualcl prepare' in message


def test_an_impossible_name(tiny):
    assert 'data.name=Tiny Set! in' in mistake(config('Tiny Set!', tiny))


def test_the_default_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(tmp_path))
    message = mistake(config('cifar11'))
    assert 'TFDS_DATA_DIR' in message
    remedy = 'dualcl prepare --dataset=cifar11 --data_dir=DIR and set --config.data.data_dir=DIR'
    assert message.splitlines()[0].endswith(remedy)


def test_another_file_format(tmp_path):
    write_set(tmp_path, {'train': examples(3, 4, 5, 3)}, COLOUR, file_format='tfrecord')
    assert "stored as ['tfrecord'], not array_record" in mistake(config(data_dir=tmp_path))


def test_no_images(tmp_path):
    write_set(tmp_path, {'train': examples(3, 4, 5, 3)}, {'label': LABEL})
    assert "no image feature 'image', its features are ['label']" in mistake(config(data_dir=tmp_path))


@pytest.mark.parametrize(
    ('feature', 'what'),
    [
        (image_feature(4, 5, 1, dtype='uint16'), 'uint16 with 1 channels'),
        (image_feature(4, 5, 4), 'uint8 with 4 channels'),
    ],
)
def test_images_of_another_kind(tmp_path, feature, what):
    write_set(tmp_path, {'train': examples(3, 4, 5, 3)}, {'image': feature})
    assert f'images are {what}' in mistake(config(data_dir=tmp_path))


def test_images_of_several_sizes(tmp_path):
    splits = {'train': [*examples(2, 4, 5, 3), *examples(1, 6, 5, 3)]}
    write_set(tmp_path, splits, COLOUR)
    assert "images of 'train' have several sizes, [4, 5] and [6, 5]" in mistake(config(data_dir=tmp_path))


def test_splits_of_two_sizes(tmp_path):
    splits = {'train': examples(2, 4, 5, 3), 'test': examples(2, 6, 5, 3)}
    write_set(tmp_path, splits, COLOUR)
    assert 'train and test differ in size, [4, 5] and [6, 5]' in mistake(config(data_dir=tmp_path))


def test_no_training_split(tmp_path):
    write_set(tmp_path, {'test': examples(3, 4, 5, 3)}, COLOUR)
    assert "no split 'train', only ['test']" in mistake(config(data_dir=tmp_path))


def test_an_empty_split(tmp_path):
    write_set(tmp_path, {'train': []}, COLOUR)
    assert "split 'train'" in mistake(config(data_dir=tmp_path))


def test_damaged_and_missing_files(tiny):
    folder = tiny / 'tiny' / '1.0.0'
    record = folder / 'tiny-train.array_record-00000-of-00001'
    record.write_bytes(record.read_bytes()[:-40_000])
    assert "split 'train' cannot be read" in mistake(config(data_dir=tiny))
    record.unlink()
    assert "split 'train' cannot be read" in mistake(config(data_dir=tiny))
    (folder / 'dataset_info.json').write_text('{')
    assert 'cannot be opened' in mistake(config(data_dir=tiny))


PATH = 'set/denied/tiny-train.array_record-00000-of-00001'


@pytest.mark.parametrize(
    ('said', 'status'),
    [
        (f'open() failed: Too many open files; opening {PATH}', EXIT_RESTART),
        ('Input/output error; at byte 6060', EXIT_RESTART),
        ('UNAVAILABLE: HTTP response code: 503', EXIT_RESTART),
        (f'open() failed: No such file or directory; opening {PATH}', EXIT_USER_ERROR),
        ('Corrupted Riegeli/records file: chunk header hash mismatch; at byte 6060', EXIT_USER_ERROR),
        ('ArrayRecord file should be at least 64KB big', EXIT_USER_ERROR),
    ],
)
@pytest.mark.parametrize('read', ['one by one', 'labels', 'into memory'])
def test_records_that_cannot_be_read(tmp_path, monkeypatch, read, said, status):
    """array_record raises one type for everything. Worker processes send the error without its cause."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    sides = (4, 5) if read == 'into memory' else (-1, -1)
    write_set(tmp_path, {'train': examples(9, 20, 12, 3)}, {'image': image_feature(*sides, 3), 'label': LABEL})
    found = config(data_dir=tmp_path, stored_size=12, memory_bytes=0)
    train = data.load(found).train if read == 'one by one' else None

    def fail(*args):
        raise RuntimeError(said)

    for name in ('__getitem__', '__getitems__'):
        monkeypatch.setattr(f'tensorflow_datasets.core.data_sources.array_record.ArrayRecordDataSource.{name}', fail)
    with pytest.raises(UserError, match='cannot be read') as caught:
        train.examples(np.array([0])) if train else data.load(found)
    assert ending(pickle.loads(pickle.dumps(caught.value)))[0] == status


def test_a_file_that_is_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr('PIL.Image.Image.save', lambda self, file, format: file.write(b'no image'))
    write_set(tmp_path, {'train': examples(3, 4, 5, 3)}, COLOUR)
    monkeypatch.undo()
    assert "split 'train' cannot be read (cannot identify image file" in mistake(config(data_dir=tmp_path))


@pytest.mark.parametrize(
    ('name', 'shape', 'num_train', 'first_class'),
    [('cifar10', (32, 32, 3), 50_000, 'airplane'), ('fashion_mnist', (28, 28, 1), 60_000, 'T-shirt/top')],
)
def test_real_sets(name, shape, num_train, first_class):
    """They contain the images and labels that TFDS itself decodes, at a few positions of both splits."""
    if not (SHARED / name).is_dir():
        pytest.skip(f'no {name} in ../shared/tfds')
    train, test = data.load(config(name, SHARED, limit=500))
    kept = np.random.default_rng(0).permutation(num_train)[:500]
    assert (len(train), len(test)) == (500, 10_000)
    assert image_shape(train) == image_shape(test) == shape
    assert train.class_names == test.class_names
    assert train.class_names[0] == first_class
    np.testing.assert_array_equal(np.unique(test.labels), np.arange(10))
    assert 0 <= train.labels.min() <= train.labels.max() == 9
    for split, ours, at in (('train', train, kept), ('test', test, np.arange(10_000))):
        theirs = tfds.data_source(name, split=split, data_dir=SHARED, download=False)
        for index in (0, 1, 2, 499):
            record = theirs[int(at[index])]
            np.testing.assert_array_equal(ours.examples(np.array([index]))[0], record['image'])
            assert ours.labels[index] == record['label']


@pytest.mark.parametrize('case', ['first start', 'labels are cached', 'own copies'])
def test_labels_are_read_by_one_process(tmp_path, monkeypatch, two_processes, case):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    features = {'image': image_feature(-1, -1, 3), 'label': LABEL}
    for folder in '01':
        write_set(tmp_path / folder, {'train': examples(5, 20, 12, 3), 'test': examples(3, 20, 12, 3)}, features)
    (tmp_path / 'run').mkdir()
    fields = {'stored_size': 12, 'memory_bytes': 0}
    if case == 'labels are cached':
        data.load(config(data_dir=tmp_path / '0', **fields))
    read, found = [], {}
    reads = tfds_records._read_labels
    monkeypatch.setattr(tfds_records, '_read_labels', lambda *given: read.append(given[1]) or reads(*given))
    # Caches of two machines: what one process saves, the other one does not see.
    monkeypatch.setattr(tfds_records, '_save', lambda cache, labels: None)

    def load(index):
        folder = tmp_path / ('1' if case == 'own copies' and index else '0')
        settings = config(data_dir=folder, **fields)
        with settings.unlocked():  # as that of a run
            settings.shared = str(tmp_path / 'run')
        found[index] = data.load(settings)

    assert two_processes(load) == [None, None]
    assert (
        sorted(read)
        == {
            'first start': ['test', 'train'],
            'labels are cached': [],
            'own copies': ['test', 'test', 'train', 'train'],
        }[case]
    )
    for mine, theirs in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(mine.labels, theirs.labels)
        assert mine.fingerprint == theirs.fingerprint
    assert found[0].train.labels.tolist() == [label for _, label in examples(5, 20, 12, 3)]
