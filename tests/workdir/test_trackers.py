"""Trackers receive the records of metrics.jsonl, each once, whatever interrupts the run."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from dualcl_jax import main
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir import trackers
from dualcl_jax.workdir.metrics import MetricsLog
from dualcl_jax.workdir.trackers import TRACKERS, Sink, Started, Tracker
from tests.support.runs import QUICK, REPOSITORY, Trainer, records

CONFIG = ConfigDict({'seed': 3, 'loss': {'temperature': 0.1, 'symmetric': True}, 'data': {'mean': (0.5,)}})
Sent = list[tuple[int, dict[str, float]]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What the tracker `list` was sent; it raises where a is above 100, and ends with step -1 or -2."""
    received: Sent = []

    def open_list(run: Started) -> Sink:
        def send(step: int, values: dict[str, float]) -> None:
            if values.get('a', 0.0) > 100:
                raise ConnectionError('the server is away')
            received.append((step, values))

        return Sink(send, lambda complete: received.append((-1 if complete else -2, {})))

    monkeypatch.setitem(TRACKERS, 'list', open_list)
    monkeypatch.setitem(sys.modules, 'list', json)  # a module that can be found
    return received


def log_steps(folder: Path, name: str, resume_step: int, *steps: int, ends: bool = True) -> MetricsLog:
    """Logs a training record for each step, and an accuracy for every fifth."""
    tracker = Tracker(name, epath.Path(folder), CONFIG, total_steps=12)
    log = MetricsLog(epath.Path(folder), resume_step, tracker=tracker)
    for step in steps:
        log.write(step, step / 2, {'train/loss': 1 / step, 'train/rate': float('nan')})
        if step % 5 == 0:
            log.write(step, step / 2, {'monitor/knn': step / 100})
    if ends:
        tracker.close()
    log.close()
    return log


def test_same_records_as_the_file(sent: Sent, tmp_path: Path) -> None:
    log = log_steps(tmp_path, 'list', 0, 1, 5, 12)
    assert sent.pop() == (-1, {})
    expected = [
        (record['step'], {name: value for name, value in record.items() if name != 'step' and value is not None})
        for record in log.records
    ]
    assert sent == expected
    assert (5, {'monitor/knn': 0.05, 'wall_time_s': 2.5}) in sent


@pytest.mark.parametrize('interrupted_after', [5, 7, 10])
def test_nothing_is_sent_twice(sent: Sent, tmp_path: Path, interrupted_after: int) -> None:
    """The run dies after step 10 and goes back to an earlier step."""
    log_steps(tmp_path, 'list', 0, *range(1, 11), ends=False)
    log_steps(tmp_path, 'list', interrupted_after, *range(interrupted_after + 1, 13))
    keys = [(step, *sorted(values)) for step, values in sent]
    assert len(keys) == len(set(keys)) == 12 + 2 + 1
    assert [step for step, _ in sent] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12, -1]


def test_tracker_that_is_added_later(sent: Sent, tmp_path: Path) -> None:
    log_steps(tmp_path, '', 0, 1, 5)
    assert not (tmp_path / 'tracker.json').exists()
    log_steps(tmp_path, 'list', 5, 6, 7)
    assert [step for step, _ in sent] == [1, 5, 5, 6, 7, -2]


def test_server_that_goes_away(sent: Sent, tmp_path: Path) -> None:
    tracker = Tracker('list', epath.Path(tmp_path), CONFIG, total_steps=12)
    log = MetricsLog(epath.Path(tmp_path), 0, tracker=tracker)
    for value in (1.0, 101.0, 2.0):
        log.write(int(value), 0.0, {'a': value})
    assert 'list: ConnectionError: the server is away; no further records' in log.problem()
    assert log.problem() == ''
    assert [step for step, _ in sent] == [1]
    assert len(log.records) == 3
    log.close()


def test_server_that_is_away_when_the_run_resumes(sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was restarted by a scheduler continues; at its first start, a mistake is more likely."""

    def refuse(run: Started) -> Sink:
        raise RuntimeError('Run initialization has timed out')

    monkeypatch.setitem(trackers.REMEDY, 'list', 'start its server')
    with monkeypatch.context() as away:
        away.setitem(TRACKERS, 'list', refuse)
        with pytest.raises(UserError, match="'list': RuntimeError: Run initialization has timed"):
            log_steps(tmp_path, 'list', 0, 1)
    log_steps(tmp_path, 'list', 0, 1, 5, ends=False)
    with monkeypatch.context() as away:
        away.setitem(TRACKERS, 'list', refuse)
        log = log_steps(tmp_path, 'list', 5, 6, 7)
        assert log.problem().startswith('list: RuntimeError: Run initialization has timed out; no further records are')
    log_steps(tmp_path, 'list', 7, 8, 12)
    assert [step for step, _ in sent] == [1, 5, 5, 6, 7, 8, 12, -1]


def test_damaged_file(sent: Sent, tmp_path: Path) -> None:
    for content in ('{"list": {}}', '[]', '{', '{"list": {"id": "a", "step": "x", "names": []}}'):
        (tmp_path / 'tracker.json').write_text(content)
        with pytest.raises(UserError, match=r'tracker\.json: damaged'):
            Tracker('list', epath.Path(tmp_path), CONFIG, total_steps=12)


def test_remote_workdir_sends_in_batches(sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker('list', epath.Path(tmp_path), CONFIG, total_steps=2)
    monkeypatch.setattr(tracker, '_local', False)
    tracker.add([{'step': 1, 'wall_time_s': 0.0, 'a': 1.0}])
    assert sent == []
    monkeypatch.setattr(trackers, 'REMOTE_SECONDS', 0.0)
    tracker.add([{'step': 2, 'wall_time_s': 0.0, 'a': 1.0}])
    assert [step for step, _ in sent] == [1, 2]


@pytest.mark.slow
def test_whole_run(sent: Sent, in_process: Callable[..., Any], trainer: Trainer, tmp_path: Path) -> None:
    """A run is sent as it is logged; extended, it continues where it ended."""
    flags = (f'--config={QUICK}', f'--workdir={tmp_path / "run"}', f'--config.data.path={trainer.data}')
    flags += ('--config.log.tracker=list', '--config.train.batch_size=64')
    assert in_process(main.main, *flags, '--config.train.steps=2').status == 0
    assert in_process(main.main, *flags, '--config.train.steps=2').status == 0  # complete: nothing is opened
    assert in_process(main.main, *flags, '--config.train.steps=3', '--extend').status == 0
    assert [step for step, _ in sent] == [1, 2, -1, 3, -1]
    by_file = {(record['step'], record['train/loss']) for record in records(tmp_path / 'run')}
    assert by_file == {(step, values['train/loss']) for step, values in sent if step > 0}


def test_unknown_or_missing(in_process: Callable[..., Any], trainer: Trainer, tmp_path: Path, monkeypatch) -> None:
    flags = (f'--config={QUICK}', f'--workdir={tmp_path / "run"}', f'--config.data.path={trainer.data}')
    found = in_process(main.main, *flags, '--config.log.tracker=neptune')
    assert found.status == 2
    assert "config.log.tracker='neptune': choose one of wandb, mlflow, trackio" in found.err
    monkeypatch.setitem(TRACKERS, 'no_such_package', TRACKERS['wandb'])
    found = in_process(main.main, *flags, '--config.log.tracker=no_such_package', '--dry_run')
    assert found.status == 2
    assert "not installed; pip install 'dualcl-jax[no_such_package]'" in found.err
    assert not (tmp_path / 'run').exists()


def log_entries(content: bytes) -> Iterator[bytes]:
    """The entries of a .wandb file, a LevelDB log after a header of 7 bytes, without their checksums."""
    position, entry = 7, b''
    while position + 7 <= len(content):
        if 2**15 - position % 2**15 < 7:  # the end of a block
            position += 2**15 - position % 2**15
            continue
        length, kind = struct.unpack('<HB', content[position + 4 : position + 7])
        entry += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield entry
            entry = b''


def read_wandb(folder: Path) -> Iterator[tuple[int, str, float]]:
    """The history in the files of an offline run; each start of the run writes one."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob('wandb/offline-run-*/run-*.wandb')):
        for entry in log_entries(path.read_bytes()):
            history = Record.FromString(entry).history
            values = {item.key or '.'.join(item.nested_key): json.loads(item.value_json) for item in history.item}
            yield from ((values['_step'], name, value) for name, value in values.items() if '/' in name)


def read_mlflow(folder: Path) -> Iterator[tuple[int, str, float]]:
    with sqlite3.connect(folder / 'mlflow.db') as database:
        rows = database.execute('select step, key, value from metrics order by step').fetchall()
        [(status,)] = database.execute('select status from runs').fetchall()
    assert status == 'FINISHED'
    yield from (row for row in rows if '/' in row[1])


def read_trackio(folder: Path) -> Iterator[tuple[int, str, float]]:
    with sqlite3.connect(folder / 'trackio' / 'dualcl_jax.db') as database:
        rows = database.execute('select step, metrics from metrics order by id').fetchall()
    yield from ((step, name, value) for step, text in rows for name, value in json.loads(text).items() if '/' in name)


@pytest.mark.slow  # importing each takes seconds, and mlflow makes a database
@pytest.mark.parametrize('name', ['wandb', 'mlflow', 'trackio'])
def test_real_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """Two starts of a run, without a network; the second repeats two steps of the first."""
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))  # read when the package is imported
    pytest.importorskip(name, reason=f"pip install 'dualcl-jax[{name}]'")
    log_steps(tmp_path, name, 0, *range(1, 8))
    log = log_steps(tmp_path, name, 5, *range(6, 13))
    assert log.problem() == ''
    found = list({'wandb': read_wandb, 'mlflow': read_mlflow, 'trackio': read_trackio}[name](tmp_path))
    expected = [
        (record['step'], key, value)
        for record in log.records
        for key, value in record.items()
        if '/' in key and value is not None
    ]
    assert sorted(found) == sorted(expected)
    assert capfd.readouterr().out == ''


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'variable'), [('wandb', ''), ('wandb', 'WANDB_BASE_URL'), ('mlflow', 'MLFLOW_TRACKING_URI')]
)
def test_no_login_and_no_network(name: str, variable: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"pip install 'dualcl-jax[{name}]'")
    code = f"""
from etils import epath
from ml_collections import ConfigDict
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.workdir import trackers
trackers.WANDB_SECONDS = 2.0
def main() -> int:
    trackers.Tracker({name!r}, epath.Path({str(tmp_path)!r}), ConfigDict({{'seed': 0}}), 1)
    return 0
raise SystemExit(exits_cleanly(main)())
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(('WANDB', 'MLFLOW'))}
    variables |= {'HOME': str(tmp_path)} | (
        {variable: 'http://127.0.0.1:1', 'WANDB_API_KEY': 40 * 'a'} if variable else {}
    )
    process = subprocess.run(
        [sys.executable, '-c', code], env=variables, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert process.returncode == 2, process
    assert process.stderr.startswith(f"error: config.log.tracker='{name}'"), process
    assert len(process.stderr.splitlines()) <= 3
    assert not (tmp_path / 'tracker.json').exists()
