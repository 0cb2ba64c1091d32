"""Functions of images over a source, block by block: every image once, in order, resized if necessary."""

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
