"""The folder of a run: its files, and the configs with which a run may resume."""

import errno
import fcntl
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from etils.epath import gpath

from configs import default
from dualcl_jax.data import ArraySource, Splits
from dualcl_jax.data.images.source import image_source
from dualcl_jax.system.config import override
from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.files import matching, replacing, write_json, write_text
from dualcl_jax.workdir import folder as folders
from dualcl_jax.workdir.folder import (
    check_same_run,
    open_workdir,
    read_summary,
    stored_config,
    write_config,
    write_data_report,
)


def source(images: np.ndarray, classes: int = 3) -> ArraySource:
    labels = np.arange(len(images), dtype=np.int32) % classes
    return image_source('toy', images, labels, tuple('abc'[:classes]))


def test_open_workdir(tmp_path: Path) -> None:
    folder = open_workdir(str(tmp_path / 'new' / 'run'))
    assert folder.is_dir()
    (folder / 'kept').write_text('as it is')
    assert open_workdir(str(folder)) == folder
    assert [path.name for path in folder.iterdir()] == ['kept']


@pytest.mark.parametrize('path', ['', '{tmp}/file', '{tmp}/file/run'])
def test_open_workdir_refuses(tmp_path: Path, path: str) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--workdir'):
        open_workdir(path.format(tmp=tmp_path))


@pytest.mark.parametrize('name', ['lr[0.1]', 'back\\slash', 'lr[0.1]/run'])
def test_names_that_orbax_takes_for_patterns_are_refused(tmp_path: Path, name: str) -> None:
    """It would write checkpoints there that nothing can read."""
    with pytest.raises(UserError, match=r'checkpoints cannot be stored below a folder with (\[0.1\]|\\) in its name'):
        open_workdir(str(tmp_path / name))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['a*', 'what?', 'open[', 'closed]', 'a[b/c]d'])
def test_other_names_are_not_refused(tmp_path: Path, name: str) -> None:
    assert open_workdir(str(tmp_path / name)).is_dir()


def test_only_the_pattern_has_wildcards(tmp_path: Path) -> None:
    folder = tmp_path / 'set[1]' / 'inner'
    folder.mkdir(parents=True)
    for name in ('a.json', '.hidden.json'):
        (folder / name).write_text('')
    found = matching(epath.Path(folder.parent), '*.json', '*/*.json')
    assert found == [epath.Path(folder / 'a.json')]
    assert matching(epath.Path(tmp_path / 'missing'), '*') == []


def test_check_same_run(tmp_path: Path) -> None:
    folder, config = epath.Path(tmp_path), default.get_config()
    check_same_run(folder, stored_config(folder), config)  # nothing there yet
    config.data.mean, config.data.std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    write_config(folder, config)
    check_same_run(folder, stored_config(folder), config)
    override(config, ['monitor.k=3'])
    check_same_run(folder, stored_config(folder), config)
    override(config, ['data.mean=0.1,0.4,0.3'])
    with pytest.raises(UserError, match=r'data\.mean \(\(0\.5, .*\n.*the images of that run'):
        check_same_run(folder, stored_config(folder), config)
    override(config, ['loss.symmetric=False'])
    with pytest.raises(UserError, match=r'loss\.symmetric \(True, now False\)\n.*the config of that run'):
        check_same_run(folder, stored_config(folder), config)
    for damaged in (b'', b'[', b'{"seed": 0', b'[]', b'null', b'\x00\xff'):
        (folder / 'config.json').write_bytes(damaged)
        with pytest.raises(UserError, match=r'config\.json: not a valid config'):
            check_same_run(folder, stored_config(folder), config)


def test_data_report(tmp_path: Path) -> None:
    train = source(np.zeros((10, 4, 6, 3), np.uint8))
    test = image_source('toy', np.zeros((2, 4, 6, 3), np.uint8), np.full(2, -1, np.int32))
    write_data_report(epath.Path(tmp_path), Splits(train, test))
    report = json.loads((tmp_path / 'data_report.json').read_text())
    assert report['train'] == {
        'name': 'toy',
        'kind': 'images',
        'examples': 10,
        'image_shape': [4, 6, 3],
        'labelled': 10,
        'class_names': ['a', 'b', 'c'],
        'fingerprint': train.fingerprint,
    }
    assert (report['test']['labelled'], report['test']['class_names']) == (0, None)
    write_data_report(epath.Path(tmp_path), Splits(train, None))
    assert json.loads((tmp_path / 'data_report.json').read_text())['test'] is None


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = epath.Path(tmp_path) / 'file.json'
    write_json(path, {'a': [1, None]})
    assert json.loads(path.read_text()) == {'a': [1, None]}
    with pytest.raises(ValueError, match='not JSON compliant'):
        write_json(path, {'a': float('nan')})
    (tmp_path / 'file.json.new').mkdir()
    with pytest.raises(OSError, match=r'directory') as failed:
        write_text(path, '')
    assert failed.value.filename == str(path)
    assert json.loads(path.read_text()) == {'a': [1, None]}


def test_half_a_file_makes_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(self: epath.Path, content: bytes) -> None:
        with self.open('wb') as file:
            file.write(content[:2])
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(gpath.PosixGPath, 'write_bytes', write_bytes)
    with pytest.raises(OSError, match='No space left') as failed:
        write_text(epath.Path(tmp_path) / 'file', 'text')
    assert failed.value.filename == str(tmp_path / 'file')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_changes_nothing(tmp_path: Path, shared: bool, error: type[BaseException]) -> None:
    path = tmp_path / 'file'
    path.write_text('before')
    with pytest.raises(error), replacing(path, shared=shared) as partial, partial.open('w'):
        raise error
    assert [file.read_text() for file in tmp_path.iterdir()] == ['before']


def test_processes_that_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    with replacing(path, shared=True) as first, replacing(path, shared=True) as second:
        first.write_text('first')
        second.write_text('second')
    assert [file.read_text() for file in tmp_path.iterdir()] == ['first']  # it ended last


def test_read_summary(tmp_path: Path) -> None:
    found = {'step': 3, 'loss': 1.0, 'knn_top1': None, 'wall_time_s': 2.0, 'state_sha256': ''}
    assert read_summary(epath.Path(tmp_path)) is None
    write_json(epath.Path(tmp_path) / 'summary.json', found)
    assert read_summary(epath.Path(tmp_path)) == found


@pytest.mark.parametrize(('here', 'kind'), [(True, UserError), (False, RestartError)])
def test_a_lock_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool, kind: type) -> None:
    """By a second run on this machine, which is a mistake, or on another one, as by the last attempt of this run."""
    monkeypatch.setattr(folders, 'LOCK_S', 0.2)
    if not here:
        monkeypatch.setattr(folders, '_holder', lambda path: '')
    with (tmp_path / '.lock').open('w') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match='trains in it; wait until it ends') as raised:
            folders.lock(epath.Path(tmp_path))
    assert type(raised.value) is kind
    assert (f'another process ({os.getpid()})' in str(raised.value)) is here


def test_a_lock_that_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process that was killed and takes a moment to end."""
    monkeypatch.setattr(folders, 'LOCK_S', 60)
    monkeypatch.setattr(folders, '_locks', {})
    with (tmp_path / '.lock').open('w') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.3, fcntl.flock, [other, fcntl.LOCK_UN]).start()
        folders.lock(epath.Path(tmp_path))
    for file in folders._locks.values():
        file.close()
