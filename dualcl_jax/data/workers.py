"""Worker processes that compute arrays ahead. They start no JAX backend.

One process is spawned, imports and unpickles what the work needs, and forks itself into the workers: they start at
once, and share one copy of whatever the work holds, such as the columns of an index. The training process itself must
not be forked, because JAX has threads.

Results are written into memory that the processes share, which costs one copy. Grain's workers send each result
through a pipe, or make a file in /dev/shm for it, which took a fifth of the time of decoding when it was measured. The
memory here is an anonymous file, which needs no space in /dev/shm or TMPDIR and ends with its processes. Writing to a
file for which those folders have no space would kill the process.
"""

import contextlib
import gc
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import traceback
import types
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from dualcl_jax.data.tree import ArraySpec, empty, leaves, map_tree
from dualcl_jax.system.errors import RestartError, UserError, reason_of
from dualcl_jax.system.processes.supervisor import STOPPING, allow_many_sockets
from dualcl_jax.system.tree import Tree

AHEAD = 2
"""The least number of results that each worker keeps ready."""
READY = 16
"""The least number of results that all workers together keep ready."""
FORKS = sys.platform == 'linux'
"""Whether workers are forked. On other systems, whose libraries do not allow it, each one is spawned."""
RETAINED = 31 * 2**20
"""Bytes. Once a block of this size has been freed, glibc keeps memory that is freed later, up to its largest limit."""

ALIGNMENT = 64
"""Every array in shared memory begins at a multiple of this many bytes."""
BLOCK = 2**20
"""Bytes that are written at a time."""

T = TypeVar('T')
Task = TypeVar('Task', contravariant=True)


class Work(Protocol[Task]):
    """The work of workers; sent to them by pickle."""

    def prepare(self) -> None:
        """Imports and reads what all workers need, before they are forked. It must not start a thread."""
        ...

    def __call__(self, task: Task, out: Tree, /) -> int:
        """Writes the result of a task into the first rows of a tree of arrays, and returns their number."""
        ...


def computed(work: Work[T], tasks: Iterable[T], spec: Tree, workers: int) -> Generator[Tree, None, None]:
    """Computes the results of tasks, in order, in `workers` processes, or in this process with 0.

    They depend on the tasks alone, not on the number of workers. Each is valid until the next one is requested. An
    exception is raised at the task where it happened. Close the generator if it is not exhausted.

    Args:
      work: the work, a pure function of a task.
      tasks: sent to the workers by pickle, a few ahead of the results.
      spec: shapes and dtypes of the largest result, a tree of `ArraySpec`.
      workers: the number of processes.

    Raises:
      RestartError: a worker was killed.
      UserError: this many processes cannot be started.
    """
    slots = workers * max(AHEAD, -(-READY // max(workers, 1)))
    memory = _allocate(slots * _num_bytes(spec))
    if memory is None:
        out = empty(spec)
        for task in tasks:
            yield _first_rows(out, work(task, out))
        return
    results = _slots(memory.buffer, spec, slots)
    with _Workers(work, spec, memory, slots, workers) as started:
        sent = 0
        for sent, task in enumerate(tasks, start=1):
            if sent > slots:  # the next task needs the slot of an earlier result
                yield _first_rows(results[(sent - 1) % slots], started.receive(sent - 1 - slots))
            started.send(sent - 1, task)
        for number in range(max(sent - slots, 0), sent):
            yield _first_rows(results[number % slots], started.receive(number))


class _Group(NamedTuple):
    """Workers that one process forks: that process, a connection to each of them, and one on which it reports."""

    process: Any
    connections: Sequence[Connection]
    report: Connection


class _Workers:
    """Running workers. Task n goes to worker n modulo their number, and has slot n modulo the number of slots."""

    def __init__(self, work: Work[Any], spec: Tree, memory: 'SharedMemory', slots: int, workers: int) -> None:
        self._groups: list[_Group] = []
        self._size = workers if FORKS else 1
        try:
            for first in range(0, workers, self._size):
                owned = [range(index, slots, workers) for index in range(first, first + self._size)]
                self._groups.append(_start(work, spec, memory, slots, owned))
        except BaseException:
            self.close()
            raise
        self._connections = [connection for group in self._groups for connection in group.connections]

    def __enter__(self) -> '_Workers':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        for group in self._groups:
            for connection in group.connections:
                connection.close()  # which ends its worker
        for group in self._groups:
            group.process.join()
            group.report.close()

    def send(self, number: int, task: Any) -> None:
        with contextlib.suppress(ConnectionError):  # the worker was killed; its finished results can still be read
            self._connections[number % len(self._connections)].send(task)

    def receive(self, number: int) -> int:
        """Returns the number of rows in a task's slot, or raises what the worker raised."""
        worker = number % len(self._connections)
        try:
            answer = self._connections[worker].recv()
        except (EOFError, ConnectionError):
            raise self._ended(worker) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ended(self, worker: int) -> Exception:
        """The error to raise for a worker that has ended."""
        group, place = self._groups[worker // self._size], worker % self._size
        ended: int | None = -1
        try:
            while ended not in (place, None):
                ended, why = group.report.recv()
        except (EOFError, ConnectionError):  # the process that forks was killed
            group.process.join()
            why = group.process.exitcode
        if ended is None:
            return UserError(
                f'parallel.workers: only {why[0]} of {len(self._connections)} processes can be started ({why[1]}); '
                'set fewer, or raise the limit'
            )
        return RestartError(
            f'parallel.workers: one of the processes that load examples was killed (exit status {why})\n'
            'run the same command to resume from the last checkpoint; if memory ran out, with fewer workers'
        )


def _first_rows(tree: Tree, count: int) -> Tree:
    return map_tree(lambda array: array[:count], tree)


def _num_bytes(spec: Tree) -> int:
    """Bytes of a slot, the room for one result in shared memory."""
    return sum(_padded_bytes(leaf) for leaf in leaves(spec))


def _padded_bytes(leaf: ArraySpec) -> int:
    """Bytes of one array, rounded up to `ALIGNMENT`."""
    return -(-math.prod(leaf.shape) * leaf.dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _slots(memory: Any, spec: Tree, count: int) -> list[Tree]:
    """The slots in shared memory."""
    place = 0

    def take(leaf: ArraySpec) -> np.ndarray:
        nonlocal place
        array = np.frombuffer(memory, leaf.dtype, math.prod(leaf.shape), place)
        place += _padded_bytes(leaf)
        return array.reshape(leaf.shape)

    return [map_tree(take, spec) for _ in range(count)]


class SharedMemory:
    """Memory that a process shares with the processes that it starts.

    Args:
      size: the number of bytes.

    Attributes:
      buffer: the memory.

    Raises OSError if there is no space for it.
    """

    def __init__(self, size: int) -> None:
        if hasattr(os, 'memfd_create'):
            self._file = os.memfd_create('dualcl')
            os.ftruncate(self._file, size)
        else:
            with tempfile.TemporaryFile() as file:
                for start in range(0, size, BLOCK):  # a sparse file would seem to fit anywhere
                    file.write(bytes(min(BLOCK, size - start)))
                file.flush()
                self._file = os.dup(file.fileno())
        self.buffer = mmap.mmap(self._file, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (DupFd(self._file), len(self.buffer))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self._file)  # the mapping stays


def _attach(descriptor: Any, size: int) -> mmap.mmap:
    """Maps shared memory in a process that was started; the descriptor is a `DupFd`."""
    file = descriptor.detach()
    try:
        return mmap.mmap(file, size)
    finally:
        os.close(file)


def _allocate(size: int) -> SharedMemory | None:
    """Allocates shared memory. Returns None for no bytes, or if there is no space, which is noted."""
    try:
        return SharedMemory(size) if size else None
    except OSError as error:
        print(f'note: no shared memory for parallel.workers ({reason_of(error)}): the training process decodes itself')
        return None


def _start(work: Work[Any], spec: Tree, memory: SharedMemory, slots: int, owned: Sequence[range]) -> _Group:
    """Starts a process that forks workers for the slots that each of them owns.

    Raises:
      UserError: the process cannot be started.
    """
    context = multiprocessing.get_context('spawn')
    with contextlib.ExitStack() as here, contextlib.ExitStack() as theirs:
        try:
            pipes = [context.Pipe() for _ in owned]
            report, its_report = context.Pipe(duplex=False)
            for connection in (*(mine for mine, _ in pipes), report):
                here.callback(connection.close)
            for connection in (*(other for _, other in pipes), its_report):
                theirs.callback(connection.close)
            arguments = work, spec, memory, slots, owned, [other for _, other in pipes], its_report
            process = context.Process(target=_fork, args=arguments, name='dualcl-workers', daemon=True)
            _spawn(process)
        except OSError as error:
            raise UserError(
                f'parallel.workers: processes cannot be started ({reason_of(error)}); set fewer, or raise the limit'
            ) from error
        here.pop_all()
        return _Group(process, [mine for mine, _ in pipes], report)


def _spawn(process: Any) -> None:
    """Starts a process, without the main script unless its work is defined there."""
    with _signals_blocked():
        try:
            with _nothing_to_import():
                process.start()
        except (AttributeError, pickle.PicklingError):
            process.start()


@contextlib.contextmanager
def _nothing_to_import() -> Iterator[None]:
    """A context in which new processes do not run the main script, which may lack a guard and start training again."""
    main = sys.modules['__main__']
    sys.modules['__main__'] = types.ModuleType('__main__')
    try:
        yield
    finally:
        sys.modules['__main__'] = main


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A context in which new processes start with the signals that stop a run blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork(
    work: Work[Any],
    spec: Tree,
    memory: Any,
    slots: int,
    owned: Sequence[range],
    connections: Sequence[Connection],
    report: Connection,
) -> None:
    """The main function of the process that forks workers. It ends after all of them, and reports how each ended.

    The training process alone handles signals.
    """
    for sent in STOPPING:
        signal.signal(sent, signal.SIG_IGN)
    allow_many_sockets()  # and open files: a set may have a thousand shards
    results = _slots(memory, spec, slots)
    work.prepare()
    np.empty(RETAINED, np.uint8)  # else mapping memory for every decoded image takes a quarter of the time
    if not FORKS:
        _work(work, [results[slot] for slot in owned[0]], connections[0])
        return
    gc.collect()
    gc.freeze()  # a collection would write to every object and so copy its page
    workers: dict[int, int] = {}
    with contextlib.suppress(ConnectionError):
        for number, slots_of in enumerate(owned):
            try:
                pid = _forked()
            except OSError as error:
                for connection in connections[number:]:
                    connection.close()
                report.send((None, (number, error.strerror)))
                break
            if not pid:
                for other in (*connections[number + 1 :], report):
                    other.close()
                _work_and_exit(work, [results[slot] for slot in slots_of], connections[number])
            connections[number].close()
            workers[pid] = number
    while workers:
        pid, status = os.wait()
        with contextlib.suppress(ConnectionError):
            report.send((workers.pop(pid), os.waitstatus_to_exitcode(status)))


def _forked() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # the only threads are OpenBLAS's, which handles a fork
        return os.fork()


def _work_and_exit(work: Work[Any], slots: Sequence[Tree], connection: Connection) -> None:
    """Works, then ends this process without running its exit handlers."""
    status = 1
    try:
        _work(work, slots, connection)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _work(work: Work[Any], slots: Sequence[Tree], connection: Connection) -> None:
    """Works on tasks, each in the next slot, until the connection is closed."""
    turn = 0
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                answer: int | Exception = work(task, slots[turn % len(slots)])
            except Exception as error:
                answer = error
            connection.send(answer)
            turn += 1
