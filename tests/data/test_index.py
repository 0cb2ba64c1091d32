"""The index of a folder of images: its cache, several processes, and files that cannot be read for the moment."""

import errno
import os
import pickle
import shutil
import stat
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jax._src import distributed

from dualcl_jax import data
from dualcl_jax.data.images import decode, folder, index, index_cache, scan
from dualcl_jax.data.images.crops import CropRecipe
from dualcl_jax.data.run_cache import RunCache
from dualcl_jax.system.errors import EXIT_RESTART, RestartError, UserError, ending
from tests.support.bad_files import encode, photo
from tests.support.image_folders import folder_config, make_old, write_classes

pytestmark = pytest.mark.usefixtures('cache')


def test_the_cache_saves_examining_and_follows_changes(images, cache, monkeypatch):
    write_classes(images)
    make_old(images)
    first = index_cache.open_index(str(images))
    assert list(cache.glob('*.npz'))
    examined = []
    real = index.examine_file
    monkeypatch.setattr(index, 'examine_file', lambda path, *rest: examined.append(path) or real(path, *rest))
    again = index_cache.open_index(str(images))
    assert examined == []
    assert again.report() == first.report()
    np.testing.assert_array_equal(again.digests, first.digests)

    changed = images / 'ant' / '3.png'
    changed.write_bytes(encode(photo(700), 'PNG'))
    shutil.copy(images / 'ant' / '4.png', images / 'ant' / 'z.png')
    (images / 'bee' / '9.png').unlink()
    third = index_cache.open_index(str(images))
    assert sorted(examined) == [str(changed), str(images / 'ant' / 'z.png')]
    assert len(third) == 20
    assert third.report()['duplicate'] == 1

    for damaged in (b'', b'PK\x03\x04 no archive'):
        next(cache.glob('*.npz')).write_bytes(damaged)
        assert index_cache.open_index(str(images)).report() == third.report()


@pytest.mark.parametrize('channels', [0, 3])
@pytest.mark.parametrize('problem', [OSError(errno.EMFILE, 'Too many open files'), MemoryError()])
def test_a_file_that_could_not_be_read_is_examined_again(images, monkeypatch, problem, channels):
    write_classes(images)
    make_old(images)

    def fail(*args):
        raise problem

    with monkeypatch.context() as patch:
        if isinstance(problem, OSError):
            patch.setattr(scan, 'open', fail, raising=False)
        else:
            patch.setattr(decode, 'open_image', fail)
        found = index_cache.open_index(str(images), channels).report()
        assert {file['outcome'] for file in found['files']} == {'skipped'}
        assert {file['reason'] for file in found['files']} <= {
            'cannot be read: Too many open files',
            'cannot be read: not enough memory',
        }
    assert index_cache.open_index(str(images), channels).report()['used'] == 20


@pytest.mark.parametrize(
    ('case', 'count'), [('shared', 20), ('own copies', 40), ('own mounts', 20), ('changes meanwhile', 21)]
)
def test_one_process_examines_a_folder_that_others_share(images, tmp_path, monkeypatch, two_processes, case, count):
    write_classes(images)
    roots = [str(images), str(images)]
    if case == 'own copies':
        roots[1] = shutil.copytree(images, tmp_path / 'copy')
    for root in roots:
        make_old(root)
    (tmp_path / 'run').mkdir()
    examined, found, real = [], {}, index.examine_file
    monkeypatch.setattr(index, 'examine_file', lambda path, *rest: examined.append(path) or real(path, *rest))
    monkeypatch.setattr(index_cache, '_save', lambda known, cache: None)  # as if each process had a cache of its own

    def own_mount(path, *args, real=os.stat, **options):
        about = real(path, *args, **options)
        fields = {name: getattr(about, name) for name in dir(about) if name.startswith('st_')}
        if stat.S_ISDIR(about.st_mode):  # gcsfuse numbers and dates folders in each mount
            number = distributed.global_state.process_id
            fields |= {'st_ino': about.st_ino + (number << 40), 'st_mtime_ns': about.st_mtime_ns + number}
        return SimpleNamespace(**fields)

    def changes(caches, real=index_cache._Caches.of_run):
        known = real(caches)
        if distributed.global_state.process_id:
            (images / 'ant' / '3.png').write_bytes(encode(photo(700), 'PNG'))
        return known

    def load(number):
        found[number] = index_cache.open_index(
            str(roots[number]), run_cache=RunCache(str(tmp_path / 'run'), trains=True)
        )

    with monkeypatch.context() as patch:
        if case == 'own mounts':
            patch.setattr(os, 'stat', own_mount)
        elif case == 'changes meanwhile':
            patch.setattr(index_cache._Caches, 'of_run', changes)
        assert two_processes(load) == [None, None]
    assert len(examined) == count
    differing = (found[0].digests != found[1].digests).any(axis=1)
    assert [found[0].path(row) for row in np.flatnonzero(differing)] == ['ant/3.png'] * (case == 'changes meanwhile')
    np.testing.assert_array_equal(found[0].names, found[1].names)
    assert (found[0].folders, found[0].notes) == (found[1].folders, found[1].notes)


@pytest.mark.parametrize('case', ['first start', 'changed folder'])
def test_processes_with_one_home_write_the_cache_once(images, tmp_path, monkeypatch, two_processes, case):
    write_classes(images)
    make_old(images)
    (tmp_path / 'run').mkdir()
    if case == 'changed folder':
        index_cache.open_index(str(images))
        (images / 'ant' / '3.png').unlink()
        os.utime(images / 'ant', (2, 2))
    saved, save = [], index_cache._save
    monkeypatch.setattr(index_cache, '_save', lambda known, cache: saved.append(cache) or save(known, cache))
    run = RunCache(str(tmp_path / 'run'), trains=True)
    assert two_processes(lambda number: index_cache.open_index(str(images), 0, run)) == [None, None]
    assert len(saved) == 1


@pytest.mark.parametrize('moment', ['first start', 'later start'])
def test_what_process_0_could_not_read_is_left_out_by_all(images, tmp_path, monkeypatch, two_processes, moment):
    write_classes(images)
    make_old(images)
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
        index_cache.open_index(str(images))
        examined.clear()
        failing.append(unread)
    monkeypatch.setattr(index_cache, '_save', lambda known, cache: None)  # as if each process had a cache of its own

    def load(number):
        found[number] = index_cache.open_index(str(images), run_cache=RunCache(str(tmp_path / 'run'), trains=True))

    assert two_processes(load) == [None, None]
    assert examined.count(str(unread)) == 1
    for known in found.values():
        assert known.report()['skipped'] == 1
        assert known.report()['files'][0]['path'] == 'bee/3.png'


def test_only_files_that_could_not_be_read_are_examined_again(images, monkeypatch):
    write_classes(images)
    shutil.copy(images / 'ant' / '3.png', images / 'bee' / '3.png')
    make_old(images)
    expected = index_cache.open_index(str(images)).report()
    shutil.rmtree(os.environ['XDG_CACHE_HOME'])
    unread, attempts, real = images / 'ant' / '3.png', [], index.examine_file

    def examine(path, *rest):
        attempts.append(path)
        failed = Path(path) == unread and attempts.count(path) < 3
        return scan.Finding(scan.SKIPPED, f'{scan.UNREAD}: Input/output error') if failed else real(path, *rest)

    monkeypatch.setattr(index, 'examine_file', examine)
    assert index_cache.open_index(str(images)).report()['duplicate'] == 0
    assert len(attempts) == 20
    for _ in range(2):
        found = index_cache.open_index(str(images)).report()
    assert found == expected
    assert found['duplicate'] == 1
    assert attempts[20:] == [str(unread)] * 2
    monkeypatch.setattr(index, 'scan', None)
    assert index_cache.open_index(str(images)).report() == expected
    assert len(attempts) == 22


def test_a_file_that_changes_later_is_named(images):
    write_classes(images)
    train, _ = data.load(folder_config(images, memory_bytes=0, labels='none'))
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
    train, _ = data.load(folder_config(images, memory_bytes=0, labels='none'))

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(index, 'open', fail, raising=False)
    with pytest.raises(RestartError, match=r'ant/0\.png: cannot be read \(.*\); run the same command again$') as caught:
        train.examples(np.array([0]))
    assert ending(pickle.loads(pickle.dumps(caught.value)))[0] == EXIT_RESTART  # workers send it without its cause


@pytest.mark.parametrize('where', ['reading', 'decoding'])
def test_a_lack_of_memory_is_no_damage(images, monkeypatch, where):
    write_classes(images)
    train, _ = data.load(folder_config(images, memory_bytes=0, labels='none'))

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
