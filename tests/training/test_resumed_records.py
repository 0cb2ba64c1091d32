"""The records of a run of several processes, when it resumes."""

import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from dualcl_jax.training import loop
from dualcl_jax.workdir import metrics
from dualcl_jax.workdir.metrics import MetricsLog
from dualcl_jax.workdir.trackers import Tracker


def test_the_file_is_replaced_when_all_have_read_it(
    two_processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On network file systems, a file that is replaced while another host reads it may give an error there."""
    with closing(MetricsLog(epath.Path(tmp_path), 0)) as log:
        log.write(1, 0.0, {'train/loss': 1.0})
    order, read, write, found = [], metrics.read_records, metrics.write_text, {}
    here, waiting = threading.local(), threading.Event()

    def read_records(path: epath.Path) -> list:
        if here.index:
            waiting.wait(0.5)  # long enough for process 0 to come first
        order.append(f'{here.index} reads')
        return read(path)

    def write_text(path: epath.Path, text: str) -> None:
        order.append(f'{here.index} writes')
        write(path, text)

    monkeypatch.setattr(metrics, 'read_records', read_records)
    monkeypatch.setattr(metrics, 'write_text', write_text)

    def open_log(index: int) -> None:
        here.index = index
        plan, past = SimpleNamespace(folder=epath.Path(tmp_path), start_step=1), SimpleNamespace(waiting=())
        run = SimpleNamespace(plan=plan, past=past, writes=index == 0)
        with closing(loop._open_log(run, Tracker('', plan.folder, None, 1))) as log:  # type: ignore[arg-type]
            found[index] = log.records

    assert two_processes(open_log) == [None, None]
    assert order == ['1 reads', '0 reads', '0 writes']
    assert [record['step'] for record in found[0]] == [1]
    assert found[0] == found[1]
