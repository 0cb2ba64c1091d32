"""Functions of images over a source, block by block: every image once, in order, resized if necessary."""

import threading
import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.data.images.source import image_source
from dualcl_jax.evaluators import embed
from dualcl_jax.evaluators.derived import Derived
from dualcl_jax.evaluators.embed import Blocks
from dualcl_jax.models.images import resized
from dualcl_jax.system.devices import device_mesh


def source(count, side=6):
    pixels = np.random.default_rng(0).integers(256, size=(count, side, side, 3)).astype(np.uint8)
    return image_source('toy', pixels, np.arange(count, dtype=np.int32) % 3, ('a', 'b', 'c'))


@pytest.mark.parametrize('count', [1, 3, 8, 21])
def test_every_image_once(count, monkeypatch):
    monkeypatch.setattr(embed, 'BLOCK', 2)
    images = source(30)
    rows = np.random.default_rng(1).permutation(30)[:count]
    calls = []

    def function(scale, examples):
        pixels = resized(examples, 6, 6)
        return scale * pixels, pixels.sum((1, 2, 3))

    blocks = Blocks(function, device_mesh())
    scaled, sums = blocks(jnp.float32(2), images, rows, lambda: calls.append(0))
    np.testing.assert_allclose(scaled, 2 * (images.arrays[rows] / 255), rtol=1e-6)
    np.testing.assert_allclose(sums, images.arrays[rows].sum((1, 2, 3)) / 255, rtol=1e-5)
    assert len(calls) == blocks.num_blocks(count) == -(-count // 8)


def test_images_of_another_size_are_resized():
    images = source(5, side=12)
    (found,) = Blocks(lambda _, examples: (resized(examples, 6, 6),), device_mesh())((), images, np.arange(5))
    expected = jax.image.resize(images.arrays.astype(np.float32) / 255, (5, 6, 6, 3), 'linear')
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_derived_sources():
    images, rows = source(9), np.array([7, 2, 5])
    some = Derived(images, rows)
    assert len(some) == 3
    np.testing.assert_array_equal(some.labels, images.labels[rows])
    np.testing.assert_array_equal(some.examples(np.array([2, 0])), images.arrays[[5, 7]])
    assert (some.name, some.kind, some.class_names) == (images.name, images.kind, images.class_names)
    changed = Derived(images, rows, lambda pixels, at: pixels // 2 + at[:, None, None, None].astype(np.uint8))
    np.testing.assert_array_equal(changed.examples(np.array([1])), images.arrays[[2]] // 2 + 2)


class Recorded(Derived):
    """Records which images are read, in which order, and whether a device works meanwhile."""

    reads: ClassVar[list[list[int]]] = []

    def examples(self, indices):
        self.reads.append(indices.tolist())
        return super().examples(indices)


def test_the_next_block_is_read_while_the_devices_work(monkeypatch):
    monkeypatch.setattr(embed, 'BLOCK', 2)
    images, read_ahead = Recorded(source(30), np.arange(30)), threading.Event()
    images.reads.clear()
    blocks = Blocks(lambda _, examples: (examples.sum((1, 2, 3)),), device_mesh())
    run = blocks._run

    def slow(variables, examples):
        if len(images.reads) < 3:  # of a block that is not the last
            end = time.monotonic() + 20
            before = len(images.reads)
            while len(images.reads) == before and time.monotonic() < end:
                time.sleep(0.001)
            read_ahead.set()
        return run(variables, examples)

    monkeypatch.setattr(blocks, '_run', slow)
    (sums,) = blocks((), images, np.arange(21))
    np.testing.assert_array_equal(sums, images.source.arrays[:21].sum((1, 2, 3)))
    assert read_ahead.is_set()
    assert images.reads == [list(range(8)), list(range(8, 16)), [*range(16, 21), 20, 20, 20]]


def test_a_process_reads_its_own_rows_alone(monkeypatch):
    """Of two processes, each with half of the devices."""
    mesh = device_mesh()
    blocks = Blocks(lambda _, examples: (examples,), mesh)
    found = []
    for process in (0, 1):
        owned = np.arange(4) + 4 * process
        monkeypatch.setattr(embed, 'process_rows', lambda mesh, size, owned=owned: owned)
        images = Recorded(source(30), np.arange(30))
        images.reads.clear()
        blocks._own(images, np.arange(10, 17), 8)
        found += images.reads
    assert found == [[10, 11, 12, 13], [14, 15, 16, 16]]


def test_an_error_of_a_source_is_raised():
    class Broken(Derived):
        def examples(self, indices):
            raise OSError('gone')

    with pytest.raises(OSError, match='gone'):
        Blocks(lambda _, examples: (examples,), device_mesh())((), Broken(source(5), np.arange(5)), np.arange(5))
