"""Worker processes: their results, how they start and end, and that they share memory."""

import contextlib
import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator

import numpy as np
import pytest

from dualcl_jax.data import workers
from dualcl_jax.data.tree import ArraySpec
from dualcl_jax.system.errors import RestartError, UserError
from tests.support.runs import REPOSITORY


def test_workers_do_not_import_jax_and_end_with_a_killed_parent(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(
        'import os, sys, time\n'
        'import numpy as np\n'
        'from dualcl_jax.data.tree import ArraySpec\n'
        'from dualcl_jax.data.workers import computed\n'
        'class Pid:\n'
        '    def prepare(self):\n'
        '        pass\n'
        '    def __call__(self, number, out):\n'
        '        assert not {"jax", "tensorflow"} & set(sys.modules)\n'
        '        out[:] = os.getpid(), os.getppid()\n'
        '        return 2\n'
        'if __name__ == "__main__":\n'
        '    import dualcl_jax.data\n'
        '    values = computed(Pid(), range(10**6), ArraySpec((2,), np.dtype(np.int64)), 1)\n'
        '    print(*next(values), flush=True)\n'
        '    time.sleep(100)\n'
    )
    environment = os.environ | {'PYTHONPATH': str(REPOSITORY)}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        started = [int(pid) for pid in parent.stdout.readline().split()]
        assert len({*started, parent.pid}) == 3
        for pid in started:
            os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while time.monotonic() < end and any(map(_runs, started)):
        time.sleep(0.1)
    assert not any(map(_runs, started))


def _runs(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(count: int) -> Generator[int, None, None]:
    """The processes that compute results of 1 to 9 rows; each row contains its number and its process."""
    room = {'number': ArraySpec((9,), np.dtype(np.uint8)), 'by': (ArraySpec((9, 2), np.dtype(np.float64)),)}
    with contextlib.closing(workers.computed(Numbers(), range(10**6), room, count)) as values:
        for number, rows in enumerate(values):
            assert rows['number'].tolist() == [number % 256] * (number % 9 + 1)
            assert rows['by'][0].tolist() == [[number / 3, rows['by'][0][0, 1]]] * (number % 9 + 1)
            yield int(rows['by'][0][0, 1])


class Numbers:
    prepared = False

    def prepare(self) -> None:
        self.prepared = True

    def __call__(self, number: int, out: dict) -> int:
        assert self.prepared
        out['number'][:] = number % 256
        out['by'][0][:] = number / 3, os.getpid()
        return number % 9 + 1


def test_leaving_early_ends_the_workers():
    values = pids(2)
    found = [next(values) for _ in range(30)]
    assert found == found[:2] * 15
    assert len(set(found)) == 2
    values.close()
    assert not any(map(_runs, found))


def test_a_killed_worker_is_reported():
    values = pids(2)
    first, second = next(values), next(values)
    os.kill(second, signal.SIGKILL)
    with pytest.raises(UserError, match=r'parallel\.workers: one of the processes .* was killed \(exit status -9\)'):
        list(itertools.islice(values, 20))
    assert not _runs(first)


def test_the_death_of_the_process_that_forks_changes_nothing_until_a_worker_is_killed():
    values = pids(2)
    first, second = next(values), next(values)
    with open(f'/proc/{first}/stat') as file:
        parent = int(file.read().rsplit(')', 1)[1].split()[1])
    assert parent != os.getpid()
    os.kill(parent, signal.SIGKILL)
    assert list(itertools.islice(values, 40)) == [first, second] * 20
    os.kill(first, signal.SIGKILL)
    with pytest.raises(RestartError, match=r'was killed \(exit status -9\)'):
        list(itertools.islice(values, 20))


@pytest.mark.parametrize(
    ('forks', 'count', 'tasks'), [(True, 1, 40), (True, 3, 40), (True, 3, 2), (False, 2, 20), (True, 0, 5)]
)
def test_results_come_in_the_order_of_their_tasks(monkeypatch, forks, count, tasks):
    monkeypatch.setattr(workers, 'FORKS', forks)
    room = ArraySpec((2, 3), np.dtype(np.int32))
    found = [made.copy() for made in workers.computed(Doubled(), iter(range(tasks)), room, count)]
    np.testing.assert_array_equal(np.array(found).ravel(), np.repeat(2 * np.arange(tasks), 3))


class Doubled:
    def prepare(self) -> None:
        pass

    def __call__(self, number: int, out: np.ndarray) -> int:
        out[0] = 2 * number
        return 1


def test_workers_that_cannot_be_started_are_a_user_error():
    with pytest.raises(UserError, match=r'parallel\.workers: only 1 of 3 processes .* \(Resource temporarily unavail'):
        list(workers.computed(FewProcesses(), range(100), ArraySpec((1,), np.dtype(np.int32)), 3))


class FewProcesses(Doubled):
    def prepare(self) -> None:
        fork, started = workers._forked, itertools.count()

        def forked() -> int:
            if next(started):
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return fork()

        workers._forked = forked


@pytest.mark.skipif(not workers.FORKS, reason='workers are forked on Linux alone')
def test_workers_share_what_the_work_holds():
    room = ArraySpec((2,), np.dtype(np.int64))
    column = np.arange(20_000_000)  # 160 MB
    values = workers.computed(Column(column), range(8), room, 2)
    with contextlib.closing(values):
        for sums, private in values:
            assert sums == column.sum()
            assert private < 80e6, 'a worker has a copy of its own'


class Column:
    def __init__(self, column: np.ndarray) -> None:
        self.column = column

    def prepare(self) -> None:
        pass

    def __call__(self, number: int, out: np.ndarray) -> int:
        with open('/proc/self/smaps_rollup') as file:
            sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(':') for line in list(file)[1:])}
        out[:] = self.column.sum(), 1024 * (sizes['Private_Dirty'] + sizes['Private_Clean'])
        return 2
