"""Worker processes that compute arrays ahead. They are spawned, and start no JAX backend.

Results are written into memory that the processes share, which costs one copy. Grain's workers send each result
through a pipe, or make a file of /dev/shm for it: measured, that took a fifth of the time of decoding.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from dualcl_jax.system.errors import UserError

AHEAD = 4
"""Results that each worker keeps ready."""
RETAINED = 31 * 2**20
"""Bytes. Once a block of this size was freed, glibc keeps what is freed later, up to its largest limit."""

Work = Callable[[int, np.ndarray], int]
"""Writes the result for a number into the first rows of a uint8 array, and returns how many rows these are."""


def computed(
    work: Work, shape: Sequence[int], start: int, stop: int, workers: int
) -> Generator[np.ndarray, None, None]:
    """The results for the numbers from `start` up to, not including, `stop`: by `workers` processes, or here with 0.

    They come in this order, and depend on the work alone, whatever the number of workers: nothing has to be saved to go
    on from any place. Each is valid until the next one is asked for. An exception is raised where it happened. To be
    closed if not used up.

    Args:
      work: pure; goes to the workers by pickle.
      shape: of the largest result.

    Raises:
      UserError: a worker was killed.
    """
    if not workers or start >= stop:
        out = np.empty(shape, np.uint8)
        for number in range(start, stop):
            yield out[: work(number, out)]
        return
    workers = min(workers, stop - start)
    context = multiprocessing.get_context('spawn')
    processes, connections, memories = [], [], []
    try:
        for index in range(workers):
            memory = context.RawArray('B', AHEAD * int(np.prod(shape)))
            connection, its_end = context.Pipe()
            arguments = (work, range(start + index, stop, workers), shape, memory, its_end)
            process = context.Process(target=_work, args=arguments, name=f'dualcl-worker-{index}', daemon=True)
            process.start()
            its_end.close()
            processes.append(process)
            connections.append(connection)
            memories.append(_slots(memory, shape))
        for count in range(stop - start):
            turn, index = divmod(count, workers)
            yield memories[index][turn % AHEAD, : _receive(connections[index], processes[index])]
            with contextlib.suppress(ConnectionError):  # killed: what it had done can still be read
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
        raise UserError(
            f'parallel.workers: one of the processes that prepare images was killed (exit status {process.exitcode})\n'
            'run the same command to go on from the last checkpoint; if memory ran out, with fewer workers'
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _slots(memory: Any, shape: Sequence[int]) -> np.ndarray:
    return np.frombuffer(memory, np.uint8).reshape(AHEAD, *shape)


def _work(work: Work, numbers: range, shape: Sequence[int], memory: Any, connection: Connection) -> None:
    """What a worker does. It leaves signals to the training process, and ends when that has, or has no more need."""
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, signal.SIG_IGN)
    np.empty(RETAINED, np.uint8)  # or every image's memory would be mapped anew: a quarter of the time
    slots, free = _slots(memory, shape), AHEAD
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


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
