"""The cache of a run in its workdir: machines without a cache of their own neither examine nor read data again."""

import errno
import hashlib
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from configs import default
from dualcl_jax import data
from dualcl_jax.data import run_cache
from dualcl_jax.data.images import index, index_cache, tfds_records
from dualcl_jax.data.run_cache import RunCache
from tests.support.bad_files import encode, photo
from tests.support.image_folders import make_old, write_classes
from tests.support.tfds_sets import LABEL, examples, image_feature, write_set

pytestmark = pytest.mark.usefixtures('cache')


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / 'run').mkdir()
    return tmp_path / 'run'


@pytest.fixture
def examined(monkeypatch) -> list[str]:
    """The files that are examined."""
    paths, real = [], index.examine_file
    monkeypatch.setattr(index, 'examine_file', lambda path, *rest: paths.append(path) or real(path, *rest))
    return paths


@pytest.fixture
def old_images(images) -> Path:
    """Twenty images in folders that have not changed for long."""
    write_classes(images)
    make_old(images)
    return images


def new_machine() -> None:
    shutil.rmtree(os.environ['XDG_CACHE_HOME'], ignore_errors=True)


def opened(images: Path, run: Path, *, trains: bool = True) -> index.Index:
    """The index on a new machine."""
    new_machine()
    return index_cache.open_index(str(images), 0, RunCache(str(run), trains))


def test_a_new_machine_takes_the_index_from_the_workdir(old_images, run, examined):
    first = opened(old_images, run)
    assert len(examined) == 20
    again = opened(old_images, run)
    assert len(examined) == 20
    assert again.report() == first.report()
    np.testing.assert_array_equal(again.digests, first.digests)
    index_cache.open_index(str(old_images))  # its own cache has it, too
    assert len(examined) == 20


def test_the_workdir_gets_what_the_machine_knows(old_images, run, examined):
    index_cache.open_index(str(old_images))
    index_cache.open_index(str(old_images), 0, RunCache(str(run), trains=True))
    assert len(examined) == 20
    opened(old_images, run)
    assert len(examined) == 20


def test_what_has_changed_is_examined_and_kept(old_images, run, examined):
    opened(old_images, run)
    changed = old_images / 'ant' / '3.png'
    changed.write_bytes(encode(photo(700), 'PNG'))
    for _ in range(2):
        opened(old_images, run)
        assert examined[20:] == [str(changed)]
    assert len(list((run / run_cache.FOLDER).iterdir())) == 1


def test_another_folder_or_number_of_channels_has_its_own_file(old_images, run, examined, tmp_path):
    opened(old_images, run)
    copy = Path(shutil.copytree(old_images, tmp_path / 'copy'))
    opened(copy, run)
    new_machine()
    index_cache.open_index(str(old_images), 3, RunCache(str(run), trains=True))
    assert len(examined) == 60
    opened(old_images, run)
    assert len(examined) == 60


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 no archive'])
def test_a_damaged_file_is_replaced(old_images, run, examined, content, capsys):
    opened(old_images, run)
    file = next((run / run_cache.FOLDER).iterdir())
    file.write_bytes(content)
    opened(old_images, run)
    assert len(examined) == 40
    assert 'the images are examined again' in capsys.readouterr().out
    opened(old_images, run)
    assert len(examined) == 40


def test_a_run_that_is_only_read_is_not_changed(old_images, run, examined):
    opened(old_images, run, trains=False)
    assert list(run.iterdir()) == []
    opened(old_images, run)
    assert len(examined) == 40
    before = {path: path.read_bytes() for path in (run / run_cache.FOLDER).iterdir()}
    opened(old_images, run, trains=False)
    assert len(examined) == 40
    (old_images / 'ant' / '3.png').write_bytes(encode(photo(700), 'PNG'))
    opened(old_images, run, trains=False)
    assert len(examined) == 41
    assert {path: path.read_bytes() for path in (run / run_cache.FOLDER).iterdir()} == before


def test_a_full_disk_is_noted(old_images, run, monkeypatch, capsys):
    def fail(path, content):
        raise OSError(errno.ENOSPC, 'No space left on device', str(path))

    monkeypatch.setattr(run_cache, 'write_bytes', fail)
    assert len(opened(old_images, run)) == 20
    assert 'cannot be written (No space left on device)' in capsys.readouterr().out


@pytest.mark.parametrize('where', ['machine', 'workdir'])
def test_an_examination_that_is_interrupted_goes_on(old_images, run, monkeypatch, where):
    """With whole findings of the files that it did not reach, too."""
    opened(old_images, run)
    for number in (1, 6, 8):
        (old_images / 'ant' / f'{number}.png').write_bytes(encode(photo(700 + number), 'PNG'))
    monkeypatch.setattr(index, 'SAVE_S', 0.0)
    monkeypatch.setattr(index, 'BLOCK', 1)
    examined, real = [], index.examine_file

    def examine(path, *rest):
        if len(examined) == 2:
            raise KeyboardInterrupt
        examined.append(path)
        return real(path, *rest)

    monkeypatch.setattr(index, 'examine_file', examine)
    with pytest.raises(KeyboardInterrupt):
        index_cache.open_index(str(old_images), 0, RunCache(str(run), trains=True))
    assert not any(known.is_fresh() for known in saved(old_images, run))
    (shutil.rmtree(run) if where == 'machine' else new_machine())
    run.mkdir(exist_ok=True)
    monkeypatch.setattr(index, 'examine_file', lambda path, *rest: examined.append(path) or real(path, *rest))
    found = index_cache.open_index(str(old_images), 0, RunCache(str(run), trains=True))
    assert [Path(path).name for path in examined] == ['1.png', '6.png', '8.png']
    monkeypatch.setattr(index, 'examine_file', real)
    shutil.rmtree(run)
    new_machine()
    np.testing.assert_array_equal(found.digests, index_cache.open_index(str(old_images)).digests)


def saved(images: Path, run: Path) -> list[index.Index]:
    """The indices on the machine and in the workdir."""
    files = [next(Path(os.environ['XDG_CACHE_HOME']).rglob('*.npz')), next((run / run_cache.FOLDER).iterdir())]
    found = [index_cache._load(file, str(images)) for file in files]
    assert all(known is not None for known in found)
    return found


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The splits whose labels are read from the records."""
    splits, real = [], tfds_records._read_labels
    monkeypatch.setattr(tfds_records, '_read_labels', lambda *given: splits.append(given[1]) or real(*given))
    return splits


@pytest.fixture
def records(tmp_path) -> Path:
    features = {'image': image_feature(-1, -1, 3), 'label': LABEL}
    return write_set(tmp_path / 'sets', {'train': examples(5, 20, 12, 3), 'test': examples(3, 20, 12, 3)}, features)


def load(records: Path, **fields: str) -> data.Splits:
    found = default.get_config().data
    with found.unlocked():
        found.update(name='tiny', data_dir=str(records), stored_size=12, memory_bytes=0, **fields)
    return data.load(found)


def loaded(records: Path, **fields: str) -> data.Splits:
    """The set on a new machine."""
    new_machine()
    return load(records, **fields)


def test_a_new_machine_takes_the_labels_from_the_workdir(records, run, read):
    expected = [label for _, label in examples(5, 20, 12, 3)]
    for _ in range(2):
        found = loaded(records, shared=str(run))
        assert sorted(read) == ['test', 'train']
        assert found.train.labels.tolist() == expected
    assert loaded(records, workdir=str(run)).train.fingerprint == found.train.fingerprint
    assert sorted(read) == ['test', 'train']


def test_labels_of_other_files_are_not_taken(records, run, read):
    loaded(records, shared=str(run))
    file = next(records.rglob('tiny-train*'))
    os.utime(file, (1, 1))
    for _ in range(2):
        loaded(records, shared=str(run))
        assert sorted(read) == ['test', 'train', 'train']
    assert len(list((run / run_cache.FOLDER).iterdir())) == 2


def test_the_workdir_gets_the_labels_that_the_machine_knows(records, run, read):
    load(records)
    load(records, shared=str(run))
    loaded(records, shared=str(run))
    assert sorted(read) == ['test', 'train']


def test_damaged_labels_are_replaced(records, run, read):
    loaded(records, shared=str(run))
    for file in (run / run_cache.FOLDER).iterdir():
        file.write_bytes(file.read_bytes()[:-50])
    for _ in range(2):
        loaded(records, shared=str(run))
        assert len(read) == 4


def test_labels_of_a_run_that_is_only_read(records, run, read):
    loaded(records, workdir=str(run))
    assert list(run.iterdir()) == []
    assert len(read) == 2


def test_shards_are_looked_at_together(tmp_path, monkeypatch):
    """With one look at the length and the time of each: on gs:// it is a request."""
    paths = [epath.Path(tmp_path / f'{number}') for number in range(8)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (tfds_records.TAIL_BYTES - 1 + number))
        os.utime(path, (number, number))
    stat, together, looks = type(paths[0]).stat, threading.Barrier(2), []

    def look(path):
        looks.append(path.name)
        together.wait(timeout=60)
        return stat(path)

    monkeypatch.setattr(type(paths[0]), 'stat', look)
    shards, times = tfds_records._shards(paths)
    assert sorted(looks) == [path.name for path in paths]
    assert times == list(range(8))
    for number, path in enumerate(paths):
        content = path.read_bytes()
        end = hashlib.sha256(content[-tfds_records.TAIL_BYTES :]).hexdigest()
        assert shards[number] == (path.name, len(content), end)
