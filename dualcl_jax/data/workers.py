"""Worker processes that compute arrays ahead. They are spawned, and start no JAX backend.

Results are written into memory that the processes share, which costs one copy. Grain's workers send each result
through a pipe, or make a file of /dev/shm for it: measured, that took a fifth of the time of decoding. The memory here
is that of an anonymous file, which needs no space in /dev/shm or TMPDIR: writing to a file that they cannot hold would
kill the process.
"""

import contextlib
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import types
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

from dualcl_jax.data.tree import ArraySpec, Tree, empty, leaves, map_tree
from dualcl_jax.system.errors import RestartError
from dualcl_jax.system.processes.supervisor import STOPPING

AHEAD = 4
"""Results that each worker keeps ready."""
RETAINED = 31 * 2**20
"""Bytes. Once a block of this size was freed, glibc keeps what is freed later, up to its largest limit."""

ALIGNMENT = 64
"""Bytes of which every array in shared memory begins at a multiple."""

Work = Callable[[int, Tree], int]
"""Writes the result for a number into the first rows of a tree of arrays, and returns how many rows these are."""


def computed(work: Work, spec: Tree, start: int, stop: int, workers: int) -> Generator[Tree, None, None]:
    """The results for the numbers from `start` up to, not including, `stop`: by `workers` processes, or here with 0.

    The results come in this order and depend on the work alone, not on the number of workers: to resume at any number,
    nothing has to be saved. Each is valid until the next one is asked for. An exception is raised where it happened.
    Close the generator if it is not used up.

    Args:
      work: pure; sent to the workers by pickle.
      spec: shapes and dtypes of the largest result, a tree of `ArraySpec`.

    Raises:
      RestartError: a worker was killed.
    """
    shared = _allocate(min(workers, stop - start), _num_bytes(spec))
    if not shared:
        out = empty(spec)
        for number in range(start, stop):
            yield _first_rows(out, work(number, out))
        return
    workers = len(shared)
    context = multiprocessing.get_context('spawn')
    processes, connections, memories = [], [], []
    try:
        for index, memory in enumerate(shared):
            connection, its_end = context.Pipe()
            arguments = (work, range(start + index, stop, workers), spec, memory, its_end)
            process = context.Process(target=_work, args=arguments, name=f'dualcl-worker-{index}', daemon=True)
            _start(process)
            its_end.close()
            processes.append(process)
            connections.append(connection)
            memories.append(_slots(memory.buffer, spec))
        for count in range(stop - start):
            turn, index = divmod(count, workers)
            yield _first_rows(memories[index][turn % AHEAD], _receive(connections[index], processes[index]))
            with contextlib.suppress(ConnectionError):  # it was killed; its finished results can still be read
                connections[index].send(None)  # the slot is free
    finally:
        for connection in connections:
            connection.close()  # which ends its worker
        for process in processes:
            process.join()


def _receive(connection: Connection, process: Any) -> int:
    """How many rows of the next slot are a result; or raises what the worker raised."""
    try:
        answer = connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise RestartError(
            f'parallel.workers: one of the processes that load examples was killed (exit status {process.exitcode})\n'
            'run the same command to resume from the last checkpoint; if memory ran out, with fewer workers'
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _first_rows(tree: Tree, count: int) -> Tree:
    return map_tree(lambda array: array[:count], tree)


def _num_bytes(spec: Tree) -> int:
    """Bytes of `AHEAD` results in shared memory."""
    return sum(_stacked_bytes(leaf) for leaf in leaves(spec))


def _stacked_bytes(leaf: ArraySpec) -> int:
    """Bytes of one array of `AHEAD` results, rounded up to `ALIGNMENT`."""
    return -(-AHEAD * math.prod(leaf.shape) * leaf.dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _slots(memory: Any, spec: Tree) -> list[Tree]:
    """The room for `AHEAD` results in shared memory."""
    place = 0

    def stack(leaf: ArraySpec) -> np.ndarray:
        nonlocal place
        array = np.frombuffer(memory, leaf.dtype, AHEAD * math.prod(leaf.shape), place)
        place += _stacked_bytes(leaf)
        return array.reshape(AHEAD, *leaf.shape)

    stacked = map_tree(stack, spec)
    return [map_tree(lambda array, slot=slot: array[slot], stacked) for slot in range(AHEAD)]


class SharedMemory:
    """Memory that a process shares with those that it starts.

    Args:
      size: bytes.

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
                file.write(bytes(size))  # a file with holes would seem to fit anywhere
                file.flush()
                self._file = os.dup(file.fileno())
        self.buffer = mmap.mmap(self._file, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (DupFd(self._file), len(self.buffer))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self._file)  # the mapping stays


def _attach(descriptor: Any, size: int) -> mmap.mmap:
    """The same memory in a process that was started; the descriptor is a `DupFd`."""
    file = descriptor.detach()
    try:
        return mmap.mmap(file, size)
    finally:
        os.close(file)


def _allocate(count: int, size: int) -> list[SharedMemory]:
    """Shared memory for each of some workers; none where there is no space, which is noted."""
    try:
        return [SharedMemory(size) for _ in range(count)]
    except OSError as error:
        print(f'note: no shared memory for parallel.workers ({error.strerror}): the training process decodes by itself')
        return []


def _start(process: Any) -> None:
    """Starts a worker, without the main script unless its work is defined there."""
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
    """A context in which new processes start with the signals blocked that stop a run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(work: Work, numbers: range, spec: Tree, memory: Any, connection: Connection) -> None:
    """The main function of a worker. Signals are left to the training process; the worker ends when its pipe closes."""
    for sent in STOPPING:
        signal.signal(sent, signal.SIG_IGN)
    np.empty(RETAINED, np.uint8)  # or the memory of every decoded image is mapped anew: a quarter of the time
    slots, free = _slots(memory, spec), AHEAD
    with contextlib.suppress(EOFError, ConnectionError):
        for turn, number in enumerate(numbers):
            if not free:
                connection.recv()
                free += 1
            try:
                answer: int | Exception = work(number, slots[turn % AHEAD])
            except Exception as error:
                answer = error
            connection.send(answer)
            free -= 1
        while True:
            connection.recv()  # until it is closed
