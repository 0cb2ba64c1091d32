"""metrics.jsonl: appended to, truncated when a run resumes, read after a crash."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from etils import epath

from dualcl_jax.workdir.metrics import MetricsLog, read_records


@contextmanager
def opened(folder: Path, resume_step: int, *, writes: bool = True) -> Iterator[MetricsLog]:
    with closing(MetricsLog(epath.Path(folder), resume_step, writes=writes)) as log:
        yield log


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def write_steps(folder: Path, *steps: int) -> None:
    with opened(folder, 0) as log:
        for step in steps:
            log.write(step, step / 2, {'train/loss': 1 / step})


def test_one_object_a_record(tmp_path: Path) -> None:
    with opened(tmp_path, 0) as log:
        record = log.write(3, 1.23456, {'train/loss': 2, 'train/rate': math.nan, 'train/norm': math.inf})
        assert lines(tmp_path) == [record]  # at once, not at the end
        assert record == {'step': 3, 'wall_time_s': 1.235, 'train/loss': 2.0, 'train/rate': None, 'train/norm': None}
        log.write(3, 2.0, {'monitor/knn': 0.5})
    assert [line['step'] for line in lines(tmp_path)] == [3, 3]
    assert any(path.stat().st_size > 0 for path in (tmp_path / 'tensorboard').iterdir())


def test_cut_back_on_resume(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 5, 10, 12)
    with opened(tmp_path, 10) as log:
        assert [record['step'] for record in log.records] == [1, 5, 10]
        assert lines(tmp_path) == log.records
        log.write(11, 7.0, {'train/loss': 0.0})
    assert [line['step'] for line in lines(tmp_path)] == [1, 5, 10, 11]


def test_new_run_starts_empty(tmp_path: Path) -> None:
    """Also after a run that died before its first checkpoint, whose records of step 0 are rewritten."""
    with opened(tmp_path, 0) as log:
        log.write(0, 0.1, {'monitor/knn': 0.2})
    with opened(tmp_path, 0) as log:
        assert log.records == []
    assert lines(tmp_path) == []


@pytest.mark.parametrize('torn', ['{"step": 7, "wall_ti', '{"step": 7, "wall_time_s": 1.0}'])
def test_torn_last_line(tmp_path: Path, torn: str) -> None:
    """The process died while it wrote the last line."""
    write_steps(tmp_path, 1, 5)
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write(torn)
    assert [record['step'] for record in read_records(epath.Path(tmp_path / 'metrics.jsonl'))] == [1, 5]
    with opened(tmp_path, 7) as log:
        log.write(8, 1.0, {'train/loss': 1.0})
    assert [line['step'] for line in lines(tmp_path)] == [1, 5, 8]


def test_records_that_could_not_be_written(tmp_path: Path) -> None:
    """A checkpoint stores waiting records: a run that resumes from it has all of them, whatever is in the file."""
    with opened(tmp_path, 0) as log:
        log.write(1, 0.1, {'train/loss': 1.0})
        assert log.waiting() == []
        (tmp_path / 'metrics.jsonl').rename(tmp_path / 'away')
        (tmp_path / 'metrics.jsonl' / 'in its way').mkdir(parents=True)
        log.write(2, 0.2, {'train/loss': 0.5})
        log.write(2, 0.3, {'monitor/knn': 0.5})
        log.flush()
        waiting = log.waiting()
        assert [record['step'] for record in waiting] == [2, 2]
        shutil.rmtree(tmp_path / 'metrics.jsonl')
        log.write(3, 0.4, {'train/loss': 0.4})
        assert log.waiting() == []
        expected = log.records[:3]
    for name in ('metrics.jsonl', 'away'):
        (tmp_path / name).rename(tmp_path / 'metrics.jsonl')
        with closing(MetricsLog(epath.Path(tmp_path), 2, waiting=waiting)) as log:
            assert log.records == lines(tmp_path) == expected


def test_no_file_yet(tmp_path: Path) -> None:
    assert read_records(epath.Path(tmp_path / 'metrics.jsonl')) == []


def test_at_start_and_last(tmp_path: Path) -> None:
    with opened(tmp_path, 0) as log:
        assert log.at_start('a') is log.last('a') is None
        log.write(0, 0.0, {'a': 1.0})
        log.write(2, 0.0, {'a': 2.0, 'b': 5.0})
        log.write(3, 0.0, {'c': 0.0})
        assert (log.at_start('a'), log.last('a'), log.last('c')) == (1.0, 2.0, 0.0)
        assert log.at_start('b') is None, 'it was measured later'


def test_reading_along(tmp_path: Path) -> None:
    """A process that writes no files has the same records."""
    write_steps(tmp_path, 1, 5, 9)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    with opened(tmp_path, 5, writes=False) as log:
        log.write(6, 0.0, {'train/loss': 3.0})
        assert [record['step'] for record in log.records] == [1, 5, 6]
        assert log.last('train/loss') == 3.0
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
