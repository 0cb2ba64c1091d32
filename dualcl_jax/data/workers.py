"""Worker processes that compute ahead, by Grain. They are spawned, and start no JAX backend."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

from absl import flags

T = TypeVar('T')
AHEAD = 4
"""Results that each worker keeps ready."""
NO_SHARED_MEMORY = 2**62
"""Bytes. Results come through pipes: containers have 64 MB of shared memory, and what is left in it leaks."""


def computed(function: Callable[[int], T], start: int, stop: int, workers: int) -> Generator[T, None, None]:
    """function(i) for i from `start` up to, not including, `stop`: by `workers` processes, or here where that is 0.

    The results are those of the function, in this order, whatever the number of workers: nothing has to be saved to go
    on from any place. An exception is raised where it happened. To be closed if not used up.

    Args:
      function: pure; goes to the workers by pickle; its results are NumPy arrays or tuples of them.
    """
    if not workers or start >= stop:
        yield from map(function, range(start, stop))
        return
    import grain  # half a second: only when used

    if not flags.FLAGS.is_parsed():  # Grain reads absl flags of its own, which no command of ours parses
        flags.FLAGS.mark_as_parsed()

    numbers = grain.MapDataset.range(start, stop).map(function)
    ordered = numbers.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=min(workers, stop - start), per_worker_buffer_size=AHEAD)
    piped = grain.experimental.WithOptionsIterDataset(
        ordered.mp_prefetch(options, worker_init_fn=_start_worker),
        grain.experimental.DatasetOptions(min_shm_size=NO_SHARED_MEMORY),
    )
    iterator = iter(piped)
    try:
        yield from iterator
    finally:
        iterator.close()


def _start_worker(index: int, count: int) -> None:
    """Leaves signals to the training process, and ends with it, however that ends."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name='dualcl-watch', daemon=True).start()
