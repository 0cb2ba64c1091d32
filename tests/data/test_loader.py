"""The loader: its batches, and how its thread ends."""

import concurrent.futures
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualcl_jax.data import ArraySource, Batch, Loader
from dualcl_jax.data.images.source import image_source
from dualcl_jax.data.order import batch_indices
from dualcl_jax.system.errors import UserError

N, B = 50, 12


def make_source() -> ArraySource:
    """Every pixel of image i has the value i; its label is 2 i."""
    pixels = np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None], (N, 2, 3, 1)).copy()
    return image_source('numbered', pixels, 2 * np.arange(N, dtype=np.int32))


def make_loader(place=lambda batch: batch, **changes) -> Loader:
    arguments = {'rows': np.arange(B), 'seed': 1, 'batch_size': B, 'start_step': 0, 'stop_step': 9, 'place': place}
    return Loader(make_source(), **(arguments | changes))


def batches(**changes) -> list[Batch]:
    with make_loader(**changes) as loader:
        return list(loader)


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('dualcl-loader')]


def test_batches_follow_the_order():
    found = batches(start_step=2)
    assert len(found) == 7
    for step, batch in enumerate(found, 2):
        ids = batch_indices(1, step, N, B)
        np.testing.assert_array_equal(batch.ids, ids)
        np.testing.assert_array_equal(batch.labels, 2 * ids)
        np.testing.assert_array_equal(batch.examples, np.broadcast_to(ids[:, None, None, None], (B, 2, 3, 1)))
        np.testing.assert_array_equal(batch.positions, np.arange(B))
        assert [a.dtype for a in batch] == [np.uint8, np.int32, np.int32, np.int32]


@settings(max_examples=30)
@given(rows=st.lists(st.integers(0, B - 1), unique=True))
def test_rows_select_from_the_global_batch(rows):
    rows = np.array(rows, np.int64)
    expected = [Batch(*(array[rows] for array in batch)) for batch in batches()]
    assert_same(batches(rows=rows), expected)


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, B), max_size=4))
def test_any_number_of_processes_sees_the_same_global_batch(cuts):
    bounds = [0, *sorted(cuts), B]
    shares = [batches(rows=np.arange(a, b)) for a, b in itertools.pairwise(bounds)]
    joined = [Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_same(joined, batches())


@given(start=st.integers(0, 9))
def test_resuming_at_any_step_gives_the_same_batches(start):
    assert_same(batches(start_step=start), batches()[start:])


def test_nothing_is_left_to_do_at_the_stop_step():
    assert batches(start_step=9) == []
    assert batches(start_step=10) == []


def test_leaving_in_the_middle_stops_the_thread():
    with make_loader(stop_step=10**9) as loader:
        next(loader)
    assert list(loader) == []


def test_an_error_of_the_consumer_stops_the_thread():
    def train() -> None:
        with make_loader(stop_step=10**9) as loader:
            for _ in loader:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_depth_batches_are_prepared_ahead_and_no_more(depth):
    """The thread has placed exactly `depth` more batches than were taken once it has nothing left to do."""
    placed = []
    with make_loader(placed.append, depth=depth) as loader:
        for taken in range(5):
            concurrent.futures.wait(loader._ahead, 10)
            assert len(placed) == taken + depth
            next(loader)


def test_place_runs_in_the_background_and_its_result_comes_out():
    with make_loader(lambda batch: (threading.current_thread().name, int(batch.ids[0]))) as loader:
        found = list(loader)
    assert found == [('dualcl-loader_0', int(batch.ids[0])) for batch in batches()]


def test_an_error_is_raised_at_its_batch_and_ends_the_iteration():
    calls = itertools.count()

    def place(batch: Batch) -> Batch:
        if next(calls) == 3:
            raise OSError('the disk is gone')
        return batch

    with make_loader(place) as loader:
        assert_same([next(loader) for _ in range(3)], batches()[:3])
        with pytest.raises(OSError, match='the disk is gone'):
            next(loader)
        assert list(loader) == []


def test_an_error_that_nobody_waits_for_does_not_hang():
    def place(batch: Batch) -> Batch:
        raise OSError('the disk is gone')

    with make_loader(place):
        pass


def test_waiting_is_counted():
    released = threading.Event()

    def place(batch: Batch) -> Batch:
        released.wait(10)
        return batch

    with make_loader(place) as loader:
        timer = threading.Timer(0.5, released.set)
        timer.start()
        next(loader)
        waited = loader.wait_seconds
        assert waited > 0.1
        for _ in loader:
            pass
        timer.join()
        assert loader.wait_seconds >= waited


def test_a_loader_is_a_context_manager():
    with pytest.raises(RuntimeError, match='context manager'):
        next(make_loader())


@pytest.mark.parametrize(
    'rows', [[0, 0], [-1], [B], [[0]], [0.0]], ids=['twice', 'negative', 'past the end', 'two axes', 'floats']
)
def test_rows_are_positions_in_the_global_batch(rows):
    with pytest.raises(ValueError, match='rows'):
        make_loader(rows=np.array(rows))


def test_too_small_a_set_is_a_user_error():
    with pytest.raises(UserError, match=r'train\.batch_size=51'):
        make_loader(batch_size=51)
