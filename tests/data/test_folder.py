"""Folders of images: bad files, labels, splits, the index and its cache."""

import errno
import json
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dualcl_jax import data
from dualcl_jax.data.images import decode, folder, index, scan
from dualcl_jax.data.images.crops import CropRecipe
from dualcl_jax.data.images.encoded import EncodedSource
from dualcl_jax.data.source import ArraySource
from dualcl_jax.system.errors import EXIT_RESTART, RestartError, UserError, ending
from tests.support.bad_files import encode, photo, write_bad_files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'dualcl_jax'


@pytest.fixture
def images(tmp_path) -> Path:
    path = tmp_path / 'images'
    path.mkdir()
    return path


def config(path, **changes) -> SimpleNamespace:
    fields = {'name': 'folder', 'path': str(path), 'image_size': 16, 'limit': 0, 'num_examples': 0, 'labels': 'auto'}
    fields |= {
        'test_fraction': 0.2,
        'validation_fraction': 0.0,
        'path_column': '',
        'label_column': '',
        'hold_out': 'auto',
        'stored_size': 0,
        'memory_bytes': 2**30,
        'max_skipped': 0.05,
        'channels': 0,
    }
    return SimpleNamespace(**(fields | changes))


def write_classes(root: Path, classes=('bee', 'ant'), count: int = 10) -> None:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f'{i}.png').write_bytes(encode(photo(100 * number + i), 'PNG'))


def test_every_kind_of_bad_file_has_its_outcome(images):
    expected = write_bad_files(images)
    assert len(expected) > 30
    train, test = data.load(config(images, max_skipped=0.9))
    report = train.report
    named = {file['path']: (file['outcome'], file['reason']) for file in report['files']}
    for name, (outcome, reason) in expected.items():
        if outcome == 'used':
            assert name not in named
        else:
            assert named[name][0] == outcome, (name, named[name])
            assert reason in named[name][1], (name, named[name])
    assert set(named) <= set(expected)
    outcomes = [outcome for outcome, _ in expected.values()]
    assert len(train) == report['used'] == outcomes.count('used') + outcomes.count('converted')
    assert report['found'] == len(expected)
    assert test is None
    assert set(train.labels) == {-1}
    json.dumps(report)


def test_too_many_bad_files_stop_the_run(images):
    write_bad_files(images)
    with pytest.raises(UserError, match=r'images cannot be used, more than config\.data\.max_skipped=0\.05') as error:
        data.load(config(images))
    assert len(str(error.value).splitlines()) == 3
    assert '.jpg (' in str(error.value)


def test_conversions_give_the_expected_pixels(images):
    """Compares the decoded pixels with the stored ones."""
    sixteen = np.full((16, 16), 200 * 256 + 255, np.uint16)
    clear = np.dstack([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)])
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 255  # white at the top
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6  # stored with a quarter turn to the left
    (images / 'a.png').write_bytes(encode(sixteen, 'PNG'))
    (images / 'b.png').write_bytes(encode(clear, 'PNG'))
    (images / 'c.jpg').write_bytes(encode(np.rot90(upright).copy(), 'JPEG', exif=turned, quality=95))
    (images / 'd.png').write_bytes(encode(upright, 'PNG'))
    train, _ = data.load(config(images, image_size=16, stored_size=16))
    found = train.examples(np.arange(4)).astype(int)
    np.testing.assert_array_equal(found[0], 200)
    np.testing.assert_array_equal(found[1], 255)
    np.testing.assert_allclose(found[2], upright, atol=12)
    np.testing.assert_array_equal(found[3], upright)


@pytest.mark.parametrize('labels', ['auto', 'subfolders'])
def test_labels_by_subfolder_and_a_share_held_out(images, labels):
    write_classes(images)
    train, test = data.load(config(images, labels=labels))
    assert train.class_names == test.class_names == ('ant', 'bee')
    assert len(train) + len(test) == 20
    assert len(test) > 0
    before = {photo(seed).tobytes() for seed in [*range(10), *range(100, 110)]}
    assert len(before) == 20
    for source in (train, test):
        assert set(source.labels) <= {0, 1}
    (images / 'bee' / 'new.png').write_bytes(encode(photo(999), 'PNG'))
    grown, grown_test = data.load(config(images, labels=labels))
    kept = {test.examples(np.array([i])).tobytes() for i in range(len(test))}
    assert kept <= {grown_test.examples(np.array([i])).tobytes() for i in range(len(grown_test))}
    assert grown.fingerprint != train.fingerprint or grown_test.fingerprint != test.fingerprint


def test_of_several_copies_one_with_a_class_is_used(images):
    write_classes(images, count=3)
    for path in ('ant/copy.png', 'ant/0copy.png', 'other/unlabelled.png'):
        (images / path).parent.mkdir(exist_ok=True)
        shutil.copy(images / 'bee' / '0.png', images / path)
    table = [f'{name}/{i}.png,{name}' for name in ('ant', 'bee') for i in range(3)]
    (images.parent / 'table.csv').write_text('\n'.join(['path,label', *table, 'other/unlabelled.png,owl']))
    train, _ = data.load(config(images, labels=str(images.parent / 'table.csv'), test_fraction=0.0))
    assert train.class_names == ('ant', 'bee', 'owl')
    assert train.labels.tolist() == [0] * 3 + [1] * 3
    assert train.report['left_out'] == {
        'same content as another file': {'count': 2, 'names': ['ant/0copy.png', 'ant/copy.png']},
        'same content as another file, with another class': {'count': 1, 'names': ['other/unlabelled.png']},
    }
    reasons = {file['path']: (file['outcome'], file['reason']) for file in train.report['files']}
    assert reasons['ant/copy.png'] == ('duplicate', 'same content as bee/0.png')
    assert reasons['other/unlabelled.png'] == ('duplicate', 'same content as bee/0.png, with another class')


def test_copies_in_another_split_do_not_replace_the_first(images):
    write_classes(images / 'train', count=3)
    (images / 'test').mkdir()
    shutil.copy(images / 'train' / 'ant' / '0.png', images / 'test' / 'x.png')
    shutil.copy(images / 'train' / 'ant' / '0.png', images / 'train' / 'bee' / 'x.png')
    train, test = data.load(config(images))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1, 1], [-1])
    assert train.report['left_out'] == {
        'same content as another file': {'count': 2, 'names': ['train/ant/0.png', 'train/bee/x.png']}
    }


def test_flat_or_unlabelled(images):
    write_classes(images, classes=('2019/may', '2019/june'))
    flat, test = data.load(config(images))
    assert (flat.class_names, test) == (None, None)
    none, _ = data.load(config(images, labels='none'))
    assert set(none.labels) == {-1}


def test_train_and_val_folders_are_the_splits(images):
    write_classes(images / 'train', count=6)
    write_classes(images / 'val', classes=('ant', 'bee'), count=4)
    (images / 'val' / 'ant' / 'other.png').write_bytes(encode(photo(500), 'PNG'))
    train, test = data.load(config(images))
    assert (len(train), train.class_names) == (12, ('ant', 'bee'))
    assert len(test) == 1  # the others are also in train
    assert test.labels.tolist() == [0]


def test_labels_by_csv(images, tmp_path):
    write_classes(images)
    (tmp_path / 'labels.csv').write_text('label,path\nred,bee/1.png\nblue,ant/3.png\nred,./ant/2.png\nred,gone.png\n')
    train, _ = data.load(config(images, labels=str(tmp_path / 'labels.csv'), test_fraction=0.0))
    assert train.class_names == ('blue', 'red')
    assert [(label == -1).sum() for label in [train.labels]] == [17]
    assert train.labels[[2, 3, 11]].tolist() == [1, 0, 1]  # ant/2, ant/3, bee/1
    for text, message in (
        ('bee/1.png', r'line 1 has 1 columns'),
        ('bee/1.png,a\nbee/1.png,b', r'line 2 gives bee/1\.png a second class'),
        ('x.png,a', r'names none of the images .* such as ant/0\.png'),
        ('\xff', 'names none|line 1'),
    ):
        (tmp_path / 'bad.csv').write_text(text)
        with pytest.raises(UserError, match=message):
            data.load(config(images, labels=str(tmp_path / 'bad.csv')))
    with pytest.raises(UserError, match=r'data\.labels=none\.csv: cannot be read'):
        data.load(config(images, labels='none.csv'))


def test_the_memory_budget_decides(images):
    write_classes(images)
    size = folder.stored_size(config(images))
    assert size == 19
    needed = 20 * size * size * 3
    small, small_test = data.load(config(images, memory_bytes=needed))
    large, large_test = data.load(config(images, memory_bytes=needed - 1))
    assert isinstance(small, ArraySource)
    assert isinstance(large, EncodedSource)
    for left, right in ((small, large), (small_test, large_test)):
        np.testing.assert_array_equal(left.examples(np.arange(len(left))), right.examples(np.arange(len(right))))
        np.testing.assert_array_equal(left.labels, right.labels)
        assert left.fingerprint == right.fingerprint
    limited, _ = data.load(config(images, limit=5))
    np.testing.assert_array_equal(
        limited.examples(np.arange(2)), small.examples(data.source.limit_indices(len(small), 5)[:2])
    )


def test_nothing_there(images, tmp_path):
    for path, message in (
        (images, 'no image of at least'),
        (tmp_path / 'nowhere', 'no such folder'),
        ('', 'is empty'),
        ('gs://x', 'local'),
    ):
        with pytest.raises(UserError, match=r'data\.path.*' + message):
            data.load(config(path))


def test_the_cache_saves_examining_and_follows_changes(images, cache, monkeypatch):
    write_classes(images)
    os.utime(images / 'ant', (1, 1))
    os.utime(images / 'bee', (1, 1))
    os.utime(images, (1, 1))
    first = index.open_index(str(images))
    assert list(cache.glob('*.npz'))
    examined = []
    real = index.examine_file
    monkeypatch.setattr(index, 'examine_file', lambda path, *rest: examined.append(path) or real(path, *rest))
    again = index.open_index(str(images))
    assert examined == []
    assert again.report() == first.report()
    np.testing.assert_array_equal(again.digests, first.digests)

    changed = images / 'ant' / '3.png'
    changed.write_bytes(encode(photo(700), 'PNG'))
    shutil.copy(images / 'ant' / '4.png', images / 'ant' / 'z.png')
    (images / 'bee' / '9.png').unlink()
    third = index.open_index(str(images))
    assert sorted(examined) == [str(changed), str(images / 'ant' / 'z.png')]
    assert len(third) == 20
    assert third.report()['duplicate'] == 1

    for damaged in (b'', b'PK\x03\x04 no archive'):
        next(cache.glob('*.npz')).write_bytes(damaged)
        assert index.open_index(str(images)).report() == third.report()


@pytest.mark.parametrize('channels', [0, 3])
@pytest.mark.parametrize('problem', [OSError(errno.EMFILE, 'Too many open files'), MemoryError()])
def test_a_file_that_could_not_be_read_is_examined_again(images, monkeypatch, problem, channels):
    write_classes(images)
    for folder_ in ('ant', 'bee', ''):
        os.utime(images / folder_, (1, 1))

    def fail(*args):
        raise problem

    with monkeypatch.context() as patch:
        if isinstance(problem, OSError):
            patch.setattr(scan, 'open', fail, raising=False)
        else:
            patch.setattr(decode, 'open_image', fail)
        found = index.open_index(str(images), channels).report()
        assert {file['outcome'] for file in found['files']} == {'skipped'}
        assert {file['reason'] for file in found['files']} <= {
            'cannot be read: Too many open files',
            'cannot be read: not enough memory',
        }
    assert index.open_index(str(images), channels).report()['used'] == 20


@pytest.mark.parametrize('case', ['shared', 'own copies', 'changes meanwhile'])
def test_one_process_examines_a_folder_that_others_share(images, tmp_path, monkeypatch, two_processes, case):
    write_classes(images)
    roots = [str(images), str(images)]
    if case == 'own copies':
        roots[1] = shutil.copytree(images, tmp_path / 'copy')
    for root in roots:
        for below in ('ant', 'bee', ''):
            os.utime(os.path.join(root, below), (1, 1))
    (tmp_path / 'run').mkdir()
    examined, found, real = [], {}, index.examine_file
    monkeypatch.setattr(index, 'examine_file', lambda path, *rest: examined.append(path) or real(path, *rest))
    monkeypatch.setattr(index, '_save', lambda known, cache: None)  # as if each process had a cache of its own
    monkeypatch.setattr(index.Index, 'is_fresh', lambda self, **_: case != 'changes meanwhile')

    def load(number):
        found[number] = index.open_index(str(roots[number]), shared=str(tmp_path / 'run'))

    assert two_processes(load) == [None, None]
    assert len(examined) == len(found[0]) * (1 if case == 'shared' else 2)
    np.testing.assert_array_equal(found[0].digests, found[1].digests)
    np.testing.assert_array_equal(found[0].names, found[1].names)
    assert (found[0].folders, found[0].notes) == (found[1].folders, found[1].notes)


@pytest.mark.parametrize('moment', ['first start', 'later start'])
def test_what_process_0_could_not_read_is_left_out_by_all(images, tmp_path, monkeypatch, two_processes, moment):
    write_classes(images)
    for below in ('ant', 'bee', ''):
        os.utime(images / below, (1, 1))
    (tmp_path / 'run').mkdir()
    unread = images / 'bee' / '3.png'
    failing, examined, found, real = [unread], [], {}, index.examine_file

    def examine(path, *rest):
        examined.append(path)
        if Path(path) in failing:
            failing.pop()  # the next attempt succeeds
            return scan.Finding(scan.SKIPPED, f'{scan.UNREAD}: Too many open files')
        return real(path, *rest)

    monkeypatch.setattr(index, 'examine_file', examine)
    if moment == 'later start':
        index.open_index(str(images))
        examined.clear()
        failing.append(unread)
    monkeypatch.setattr(index, '_save', lambda known, cache: None)  # as if each process had a cache of its own

    def load(number):
        found[number] = index.open_index(str(images), shared=str(tmp_path / 'run'))

    assert two_processes(load) == [None, None]
    assert examined.count(str(unread)) == 1
    for known in found.values():
        assert known.report()['skipped'] == 1
        assert known.report()['files'][0]['path'] == 'bee/3.png'


def test_only_files_that_could_not_be_read_are_examined_again(images, monkeypatch):
    write_classes(images)
    shutil.copy(images / 'ant' / '3.png', images / 'bee' / '3.png')
    for below in ('ant', 'bee', ''):
        os.utime(images / below, (1, 1))
    expected = index.open_index(str(images)).report()
    shutil.rmtree(os.environ['XDG_CACHE_HOME'])
    unread, attempts, real = images / 'ant' / '3.png', [], index.examine_file

    def examine(path, *rest):
        attempts.append(path)
        failed = Path(path) == unread and attempts.count(path) < 3
        return scan.Finding(scan.SKIPPED, f'{scan.UNREAD}: Input/output error') if failed else real(path, *rest)

    monkeypatch.setattr(index, 'examine_file', examine)
    assert index.open_index(str(images)).report()['duplicate'] == 0
    assert len(attempts) == 20
    monkeypatch.setattr(index, 'scan', None)
    for _ in range(2):
        found = index.open_index(str(images)).report()
    assert found == expected
    assert found['duplicate'] == 1
    assert attempts[20:] == [str(unread)] * 2
    assert index.open_index(str(images)).report() == expected
    assert len(attempts) == 22


def test_a_file_that_changes_later_is_named(images):
    write_classes(images)
    train, _ = data.load(config(images, memory_bytes=0, labels='none'))
    path = images / 'ant' / '0.png'
    path.write_bytes(encode(photo(900), 'PNG'))
    with pytest.raises(UserError, match=r'ant/0\.png: changed since'):
        train.examples(np.array([0]))
    path.unlink()
    with pytest.raises(UserError, match=r'ant/0\.png: cannot be read'):
        train.examples(np.array([0]))


@pytest.mark.parametrize('number', [errno.EMFILE, errno.EIO])
def test_a_file_that_cannot_be_read_now_is_read_after_a_restart(images, monkeypatch, number):
    write_classes(images)
    train, _ = data.load(config(images, memory_bytes=0, labels='none'))

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(index, 'open', fail, raising=False)
    with pytest.raises(RestartError, match=r'ant/0\.png: cannot be read \(.*\); run the same command again$') as caught:
        train.examples(np.array([0]))
    assert ending(pickle.loads(pickle.dumps(caught.value)))[0] == EXIT_RESTART  # workers send it without its cause


@pytest.mark.parametrize('where', ['reading', 'decoding'])
def test_a_lack_of_memory_is_no_damage(images, monkeypatch, where):
    write_classes(images)
    train, _ = data.load(config(images, memory_bytes=0, labels='none'))

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(*((index.Index, 'read') if where == 'reading' else (decode, 'cut')), fail)
    crops = train.host_views(CropRecipe(((0.5, 1.0),), ((1.0, 1.0),), 8))
    message = r'ant/0\.png: not enough memory to decode it; free some, and run the same command again$'
    for read in (
        lambda: train.examples(np.array([0])),
        lambda: crops.make(np.array([0]), np.array([0]), 0, 0, crops.blank(1)),
    ):
        with pytest.raises(RestartError, match=message) as caught:
            read()
        assert ending(pickle.loads(pickle.dumps(caught.value)))[0] == EXIT_RESTART  # workers send it by pickle


def test_copies_with_classes_are_found_in_little_memory():
    """With under 100 bytes for each file of the folder: arrays, no Python object for each."""
    count = 200_000
    digests = np.random.default_rng(0).integers(256, size=(count, 16), dtype=np.uint8)
    digests[-1] = digests[0]
    column, sizes = np.zeros(count, np.int32), np.zeros(count, np.int64)
    ends, names = np.arange(1, count + 1), np.full(count, ord('x'), np.uint8)
    outcomes = np.zeros(count, np.uint8)
    outcomes[-1] = scan.DUPLICATE
    shapes, conversions = np.zeros((count, 2), np.int32), np.zeros(count, np.uint16)
    files = (column, names, ends, sizes, sizes, shapes, outcomes, conversions, digests)
    known = index.Index('', ('',), sizes[:1], *files, {count - 1: 'same content as x'})
    labels, rows = np.full(count, -1, np.int32), np.arange(count, dtype=np.int32)
    labels[-1] = 0
    tracemalloc.start()
    try:
        chosen = folder._with_classes(known, rows, labels, np.zeros(count, np.int8))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (chosen.outcomes[0], chosen.outcomes[-1]) == (scan.DUPLICATE, scan.USED)
    assert peak / count < 100


@pytest.mark.slow
def test_an_index_of_a_million_files_opens_in_seconds(tmp_path, cache):
    """It takes under 5 s and 200 MB in its own process, including Python and the package."""
    import subprocess
    import sys

    code = Path(__file__).with_name('million.py')
    done = subprocess.run([sys.executable, code, tmp_path], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stdout.split()[-2:])
    assert seconds < 5
    assert megabytes < 200
