"""Sources and the loader with examples that are trees of arrays of several dtypes."""

import dataclasses

import jax
import numpy as np
import pytest

from dualcl_jax.data import ArraySource, Batch, Loader, batch_spec, example_spec
from dualcl_jax.data.order import batch_indices
from dualcl_jax.data.source import hold_out, limit_train
from dualcl_jax.data.tree import ArraySpec, describe, leaves, map_tree, num_rows

N, B = 40, 20


def make_arrays() -> dict:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (N, 5), np.int32)
    return {'tokens': tokens, 'pair': (rng.normal(size=(N, 2, 3)).astype(np.float32), np.arange(N) % 2 == 0)}


def make_source(arrays=None) -> ArraySource:
    return ArraySource('trees', arrays or make_arrays(), np.arange(N, dtype=np.int32) % 3, kind='trees')


def assert_equal(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for ours, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Host views that contain the tokens at some indices with the step and the seed, once for each of two views."""

    tokens: np.ndarray
    scale: float

    def prepare(self) -> None:
        pass

    def blank(self, count: int) -> dict:
        return {'tokens': np.empty((count, 2, 5), np.int32), 'noise': np.empty(count, np.float64)}

    def make(self, indices, positions, seed, step, out) -> None:
        out['tokens'][:] = self.tokens[indices][:, None]
        out['noise'][:] = self.scale * positions + 100 * step + seed


@dataclasses.dataclass(frozen=True, eq=False)
class WithViews(ArraySource):
    def host_views(self, recipe) -> Repeated:
        return Repeated(self.arrays['tokens'], recipe)


def batches(source, workers=0, rows=None, **changes) -> list[Batch]:
    rows = np.arange(B) if rows is None else rows
    arguments = {'rows': rows, 'seed': 7, 'batch_size': B, 'start_step': 0, 'stop_step': 4} | changes
    with Loader(source, place=lambda batch: batch, workers=workers, **arguments) as loader:
        return list(loader)


def test_trees_agree_with_jax():
    arrays = make_arrays()
    assert [id(leaf) for leaf in leaves(arrays)] == [id(leaf) for leaf in jax.tree.leaves(arrays)]
    assert_equal(map_tree(np.add, arrays, arrays), jax.tree.map(np.add, arrays, arrays))
    batch = Batch(arrays, np.arange(3), np.arange(3), np.arange(3))
    assert_equal(map_tree(lambda leaf: leaf[:1], batch), jax.tree.map(lambda leaf: leaf[:1], batch))
    spec = batch_spec(example_spec(make_source()), 6)
    assert jax.tree.structure(spec) == jax.tree.structure(batch)
    assert num_rows(arrays) == N
    for wrong in ({}, {'a': np.zeros(3), 'b': np.zeros(4)}, np.zeros(())):
        with pytest.raises(ValueError, match='leading axis'):
            num_rows(wrong)


def test_shapes_in_words():
    assert describe(ArraySpec((4, 5, 3), np.dtype(np.uint8))) == [4, 5, 3]
    assert describe(example_spec(make_source())) == {
        'pair': [{'shape': [2, 3], 'dtype': 'float32'}, {'shape': [], 'dtype': 'bool'}],
        'tokens': {'shape': [5], 'dtype': 'int32'},
    }


def test_a_source_gives_examples_by_index():
    source, arrays, rows = make_source(), make_arrays(), np.array([3, 0, 3])
    assert_equal(source.examples(rows), jax.tree.map(lambda array: array[rows], arrays))
    assert len(source) == N
    assert source.host_views('any') is None


def test_the_fingerprint_is_that_of_every_array():
    source, found = make_source(), set()
    assert source.fingerprint == make_source().fingerprint
    for change in ('tokens', 'pair'):
        arrays = jax.tree.map(np.copy, make_arrays())
        leaf = jax.tree.leaves(arrays[change])[-1]
        leaf[-1] = 1 - leaf[-1] if leaf.dtype != bool else ~leaf[-1]
        found.add(make_source(arrays).fingerprint)
    as_int64 = make_arrays() | {'tokens': make_arrays()['tokens'].view(np.uint32)}
    assert len({source.fingerprint, make_source(as_int64).fingerprint} | found) == 4


def test_parts_of_a_source():
    source = make_source()
    limited = limit_train(source, 30)
    train, validation = hold_out(limited, 0.2, 'random')
    assert validation is not None
    assert [len(part) for part in (limited, train, validation)] == [30, 24, 6]
    assert {part.kind for part in (limited, train, validation)} == {'trees'}
    together = [part.examples(np.arange(len(part)))['tokens'] for part in (train, validation)]
    ordered = limited.examples(np.arange(30))['tokens']
    assert sorted(map(bytes, np.concatenate(together))) == sorted(map(bytes, ordered))


def test_batches_of_whole_examples():
    source = make_source()
    for step, batch in enumerate(batches(source)):
        ids = batch_indices(7, step, N, B)
        assert_equal(batch.examples, source.examples(ids))
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch_spec(example_spec(source), B))


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_that_the_host_makes(workers):
    arrays = make_arrays()
    source = WithViews('trees', arrays, np.zeros(N, np.int32), kind='trees')
    rows = np.array([19, 2, 3])
    found = batches(source, workers, rows, recipe=0.5)
    for step, batch in enumerate(found):
        ids = batch_indices(7, step, N, B)[rows]
        tokens = np.repeat(arrays['tokens'][ids][:, None], 2, axis=1)
        assert_equal(batch.examples, {'tokens': tokens, 'noise': 0.5 * rows + 100 * step + 7})
    whole = batches(source, workers, recipe=0.5)
    assert_equal([jax.tree.map(lambda leaf: leaf[rows], batch) for batch in whole], found)
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), whole[0])
    expected = batch_spec(example_spec(source, 0.5), B)
    assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected)
    assert_equal(batches(source, workers, rows)[0].examples, source.examples(batch_indices(7, 0, N, B)[rows]))
