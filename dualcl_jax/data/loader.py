"""Batches prepared ahead in a background thread. NumPy only: the transfer to a device is the caller's."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from dualcl_jax.data.images.crops import CropRecipe
from dualcl_jax.data.images.encoded import EncodedSource
from dualcl_jax.data.order import batch_indices, steps_per_epoch
from dualcl_jax.data.source import Source
from dualcl_jax.data.workers import computed

T = TypeVar('T')
Array = Any  # NumPy as the loader makes it, a device array once it is placed
CHUNK = 16
"""Images of a batch that a worker decodes at a time."""


class Batch(NamedTuple):
    """The rows of one global batch that a process owns.

    examples: uint8 [b, H, W, C], or [b, V, size, size, C] where the host has cut a crop for each view; ids: int32 [b],
    the index in the training split; labels: int32 [b], -1 where unknown; positions: int32 [b], the position in the
    global batch, from which an example's random key is made.
    """

    examples: Array
    ids: Array
    labels: Array
    positions: Array


def make_batch(source: Source, rows: np.ndarray, *, seed: int, step: int, batch_size: int) -> Batch:
    """The rows `rows` (integers [b], positions in the global batch) of the global batch at `step`."""
    ids = batch_indices(seed, step, len(source), batch_size)[rows]
    return _batch(source, source.examples(ids), ids, rows)


def _batch(source: Source, images: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> Batch:
    return Batch(images, ids.astype(np.int32), source.labels[ids], rows.astype(np.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class _CropChunks:
    """The crops of a process's rows, `CHUNK` at a time: a function of a chunk's number, counted over all steps."""

    source: EncodedSource
    recipe: CropRecipe
    rows: np.ndarray
    seed: int
    batch_size: int

    @property
    def per_step(self) -> int:
        return -(-len(self.rows) // CHUNK)

    def __call__(self, number: int, out: np.ndarray) -> int:
        step, chunk = divmod(number, self.per_step)
        rows = self.rows[chunk * CHUNK : (chunk + 1) * CHUNK]
        ids = batch_indices(self.seed, step, len(self.source), self.batch_size)[rows]
        self.source.crops(ids, rows, self.recipe, self.seed, step, out[: len(rows)])
        return len(rows)

    def batches(self, start_step: int, stop_step: int, workers: int) -> Generator[Batch, None, None]:
        """The batches of these steps, decoded by `workers` processes."""
        first, last = start_step * self.per_step, stop_step * self.per_step
        chunks = computed(self, (CHUNK, *self.recipe.shape), first, last, workers)
        with contextlib.closing(chunks):
            for step in range(start_step, stop_step):
                images = np.empty((len(self.rows), *self.recipe.shape), np.uint8)
                for chunk in range(self.per_step):
                    images[chunk * CHUNK : (chunk + 1) * CHUNK] = next(chunks)
                ids = batch_indices(self.seed, step, len(self.source), self.batch_size)[self.rows]
                yield _batch(self.source, images, ids, self.rows)


class Loader(Generic[T]):
    """Iterates over `place(batch)` for the steps from `start_step` up to, not including, `stop_step`.

    At most `depth` batches are prepared ahead, each passed through `place` in the same background thread, so that the
    transfer overlaps with the step. To be used as a context manager, once: the thread starts on entry and has ended
    after exit, also in the middle. An exception in the thread is raised by `next` at the batch where it happened, after
    all batches before it. What comes out depends on the arguments alone.

    Args:
      source: the training split.
      rows: integers [b]: the positions in the global batch that this process owns, in any order, each at most once.
      seed: of the data order.
      batch_size: of the global batch.
      place: moves a batch to where the step wants it; called from the background thread.
      depth: how many batches to prepare ahead, at least 1.
      recipe: the crops that the host cuts from whole images where the source is an `EncodedSource`; without it, and of
        any other source, whole images come out.
      workers: processes that cut them; with 0 the thread does it.

    Attributes:
      wait_seconds: the time that `next` has spent waiting for the thread, in all.

    Raises:
      UserError: the split has fewer examples than one batch takes.
    """

    def __init__(
        self,
        source: Source,
        *,
        rows: np.ndarray,
        seed: int,
        batch_size: int,
        start_step: int,
        stop_step: int,
        place: Callable[[Batch], T],
        depth: int = 2,
        recipe: CropRecipe | None = None,
        workers: int = 0,
    ) -> None:
        steps_per_epoch(len(source), batch_size)  # too small a set shows here, not in the thread
        rows = np.asarray(rows)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer) or len(np.unique(rows)) != len(rows):
            raise ValueError(f'rows: expected distinct integers [b], got {rows.dtype} {rows.shape}')
        if len(rows) and not 0 <= rows.min() <= rows.max() < batch_size:
            raise ValueError(f'rows: expected positions in 0..{batch_size - 1}, got {rows.min()}..{rows.max()}')
        if start_step < 0 or depth < 1:
            raise ValueError(f'expected start_step >= 0 and depth >= 1, got {start_step} and {depth}')
        self.wait_seconds = 0.0
        self._place = place
        if recipe and isinstance(source, EncodedSource) and len(rows):
            cropped = _CropChunks(dataclasses.replace(source, report=None), recipe, rows, seed, batch_size)
            self._batches: Generator[Batch, None, None] = cropped.batches(start_step, stop_step, workers)
        else:
            self._batches = (
                make_batch(source, rows, seed=seed, step=step, batch_size=batch_size)
                for step in range(start_step, stop_step)
            )
        self._next_step, self._stop_step = start_step, stop_step
        self._free = threading.Semaphore(depth)
        self._ready: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._entered = False
        self._thread = threading.Thread(target=self._work, name='dualcl-loader', daemon=True)

    def _work(self) -> None:
        try:
            with contextlib.closing(self._batches) as batches:
                while True:
                    self._free.acquire()
                    if self._stopping.is_set():
                        return
                    batch = next(batches, None)
                    if batch is None:
                        return
                    self._ready.put((self._place(batch), None))
        except BaseException as error:
            self._ready.put((None, error))

    def __enter__(self) -> 'Loader[T]':
        self._thread.start()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._next_step = self._stop_step
        self._free.release()  # wakes the thread where it waits for room
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._entered:
            raise RuntimeError('a Loader is a context manager: use it in a with statement')
        if self._next_step >= self._stop_step:
            raise StopIteration
        start = time.perf_counter()
        item, error = self._ready.get()
        self.wait_seconds += time.perf_counter() - start
        if error is not None:
            self._next_step = self._stop_step
            raise error
        self._next_step += 1
        self._free.release()
        return item  # type: ignore[return-value]
