"""Batches prepared ahead in a background thread. NumPy only: the transfer to a device is the caller's."""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from dualcl_jax.data.order import batch_indices, steps_per_epoch
from dualcl_jax.data.source import HostViews, Source
from dualcl_jax.data.tree import ArraySpec, batch_of, map_tree, row_spec
from dualcl_jax.data.workers import computed
from dualcl_jax.system.tree import Tree

T = TypeVar('T')
Array = Any  # NumPy in the loader, a device array once it is placed
CHUNK = 8
"""Examples of a batch that a worker prepares at a time."""


class Batch(NamedTuple):
    """The rows of one global batch that a process owns.

    examples: a tree of arrays [b, ...], whole examples or the views that the host has made: for images [b, H, W, C] or
    [b, V, size, size, C]; ids: int32 [b], see `Source.ids`; labels: int32 [b], -1 where unknown;
    positions: int32 [b], the position in the global batch, from which an example's random key is made.
    """

    examples: Tree
    ids: Array
    labels: Array
    positions: Array


def batch_spec(example: Tree, size: int) -> Batch:
    """Shapes and dtypes of a batch of `size` examples: a `Batch` of `ArraySpec`.

    Args:
      example: those of one example, such as `example_spec(source, recipe)` with the recipe of the loader.
      size: b.
    """
    column = ArraySpec((size,), np.dtype(np.int32))
    return Batch(batch_of(example, size), column, column, column)


def make_batch(source: Source, rows: np.ndarray, *, seed: int, step: int, batch_size: int) -> Batch:
    """Makes a batch of whole examples: those at `rows`, integers [b], positions in the global batch at `step`."""
    indices = batch_indices(seed, step, len(source), batch_size)[rows]
    return _batch(source, source.examples(indices), indices, rows)


def _batch(source: Source, examples: Tree, indices: np.ndarray, rows: np.ndarray) -> Batch:
    return Batch(examples, source.ids[indices], source.labels[indices], rows.astype(np.int32))


class _Chunk(NamedTuple):
    """Some of the rows of a batch: `indices` [n] of the examples at positions `rows` [n] of the global batch."""

    step: int
    indices: np.ndarray
    rows: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _HostWork:
    """Makes the host's views of chunks; sent to the workers by pickle."""

    views: HostViews
    seed: int

    def prepare(self) -> None:
        self.views.prepare()

    def __call__(self, chunk: _Chunk, out: Tree) -> int:
        count = len(chunk.rows)
        made = map_tree(lambda array: array[:count], out)
        self.views.make(chunk.indices, chunk.rows, self.seed, chunk.step, made)
        return count


def _host_batches(
    source: Source, views: HostViews, rows: np.ndarray, seed: int, batch_size: int, steps: range, workers: int
) -> Generator[Batch, None, None]:
    """Yields the batches of these steps, prepared by `workers` processes."""

    def indices(step: int) -> np.ndarray:
        return batch_indices(seed, step, len(source), batch_size)[rows]

    parts = [slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)]
    # Workers get indices, not the order of an epoch: each would need its own copy, 10 MB for a million examples.
    chunks = (_Chunk(step, indices(step)[part], rows[part]) for step in steps for part in parts)
    room = batch_of(row_spec(views.blank(0)), CHUNK)
    results = computed(_HostWork(views, seed), chunks, room, min(workers, len(steps) * len(parts)))
    with contextlib.closing(results):
        for step in steps:
            examples = views.blank(len(rows))
            for part in parts:
                map_tree(lambda out, made, part=part: np.copyto(out[part], made), examples, next(results))
            yield _batch(source, examples, indices(step), rows)


class Loader(Generic[T]):
    """Iterates over `place(batch)` for the steps from `start_step` up to, not including, `stop_step`.

    At most `depth` batches are prepared ahead, each passed through `place` in the same background thread, so that the
    transfer overlaps with the step. Use it as a context manager, once: the thread starts on entry and has ended after
    exit, also before the last batch. An exception in the thread is raised by `next` at the batch where it happened,
    after all batches before it. The batches depend on the arguments alone.

    Args:
      source: the training split.
      rows: integers [b]: the positions in the global batch that this process owns, in any order, each at most once.
      seed: the seed of the data order.
      batch_size: the size of the global batch.
      place: moves a batch to where the step wants it; called from the background thread.
      start_step, stop_step: the steps whose batches are loaded, from start_step >= 0 on, without stop_step.
      depth: how many batches to prepare ahead, at least 1.
      recipe: for the source's `host_views`; if these are None, the batches hold whole examples.
      workers: the number of processes that make the host's views; with 0 the thread makes them.

    Attributes:
      wait_seconds: the total time that `next` has spent waiting for the thread.

    Raises:
      UserError: the split has fewer examples than one batch takes.
      ValueError: rows that are not distinct positions in a batch, a negative start_step, or depth below 1.
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
        recipe: Any = None,
        workers: int = 0,
    ) -> None:
        steps_per_epoch(len(source), batch_size)  # raises here, not in the thread, if the set is too small
        rows = np.asarray(rows)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer) or len(np.unique(rows)) != len(rows):
            raise ValueError(f'rows: expected distinct integers [b], got {rows.dtype} {rows.shape}')
        if len(rows) and not 0 <= rows.min() <= rows.max() < batch_size:
            raise ValueError(f'rows: expected positions in 0..{batch_size - 1}, got {rows.min()}..{rows.max()}')
        if start_step < 0 or depth < 1:
            raise ValueError(f'expected start_step >= 0 and depth >= 1, got {start_step} and {depth}')
        self.wait_seconds = 0.0
        self._place, self._depth = place, depth
        self._left = range(start_step, stop_step)
        views = source.host_views(recipe) if recipe is not None and len(rows) else None
        if views is not None:
            self._batches: Generator[Batch, None, None] = _host_batches(
                source, views, rows, seed, batch_size, self._left, workers
            )
        else:
            self._batches = (
                make_batch(source, rows, seed=seed, step=step, batch_size=batch_size) for step in self._left
            )
        self._ahead: deque[Future[T]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> 'Loader[T]':
        if self._thread is not None:
            raise RuntimeError('a Loader can be entered only once')
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix='dualcl-loader')
        for _ in range(self._depth):
            self._prepare_next()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._thread.submit(self._batches.close)  # ends the workers, even if Ctrl-C interrupts the next line
        self._thread.shutdown()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            raise RuntimeError('a Loader is a context manager: use it in a with statement')
        if not self._ahead:
            raise StopIteration
        start = time.perf_counter()
        try:
            placed = self._ahead.popleft().result()
        except BaseException:
            self._ahead.clear()
            raise
        self.wait_seconds += time.perf_counter() - start
        self._prepare_next()
        return placed

    def _prepare_next(self) -> None:
        """Lets the thread prepare the batch of the next step, if there is one."""
        assert self._thread is not None
        if self._left:
            self._left = self._left[1:]
            self._ahead.append(self._thread.submit(self._load))

    def _load(self) -> T:
        return self._place(next(self._batches))
