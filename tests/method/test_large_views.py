"""Views of large images: compared with float64 NumPy and with the views of small images, on small images here."""

import dataclasses
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.method.views import images as views
from dualcl_jax.method.views import large_images
from dualcl_jax.method.views.images import PRESETS, ViewSpec
from tests.reference.images import photo, ref_blur, ref_view
from tests.support.runs import REPOSITORY

COUNT = 8
SOLARIZED = dataclasses.replace(PRESETS['moco_v3'][1], blur_probability=0.5, solarize_probability=0.5)
GRAY_FIRST = dataclasses.replace(PRESETS['moco_v1'][0], brightness=0.0, grayscale=0.5, jitter_probability=0.5)
RECIPES = {
    'moco_v2': PRESETS['moco_v2'],
    'unlike': (SOLARIZED, GRAY_FIRST),
    'three': (ViewSpec(flip=1.0), dataclasses.replace(SOLARIZED, hue=0.0, solarize_threshold=0.3), GRAY_FIRST),
}


def uint8(height: int, width: int, channels: int) -> np.ndarray:
    pixels = np.stack([photo(height, width, channels, seed) for seed in range(COUNT)])
    return (pixels * 255).round().astype(np.uint8)


def make(monkeypatch, images, specs, size, *, large: bool) -> jax.Array:
    monkeypatch.setattr(views, 'LARGE', 0 if large else 10**9)
    return jax.jit(partial(views.make_views, specs=specs, size=size))(
        jax.random.split(jax.random.key(7), COUNT), images
    )


@pytest.mark.parametrize(('recipe', 'channels'), [('moco_v2', 3), ('unlike', 3), ('unlike', 1), ('three', 3)])
def test_views_match_float64(monkeypatch, recipe, channels):
    specs, images = RECIPES[recipe], uint8(20, 26, channels)
    made = np.asarray(make(monkeypatch, images, specs, 16, large=True))
    assert made.shape == (len(specs), COUNT, 16, 16, channels)
    assert made.dtype == np.float32
    keys = jax.random.split(jax.random.key(7), COUNT)
    for number, spec in enumerate(specs):

        def draw(key, number=number, spec=spec):
            draws = jax.random.uniform(jax.random.fold_in(key, number), (views.VIEW_DRAWS,))
            return views.draw_view(draws, spec, 20, 26)

        drawn = jax.device_get(jax.jit(jax.vmap(draw))(keys))
        for row, view in enumerate(made[number]):
            one = jax.tree.map(lambda leaf, row=row: leaf[row], drawn)
            expected = ref_view(images[row] / 255.0, one, spec, 16)
            if spec.solarize_probability > 0:  # float32 may put a pixel at the threshold on the other side
                expected = np.where(np.abs(expected - spec.solarize_threshold) < 1e-5, view, expected)
            np.testing.assert_allclose(view, expected, atol=1e-5)


@pytest.mark.parametrize(('recipe', 'channels'), [('moco_v2', 3), ('unlike', 3), ('unlike', 5)])
def test_crops_of_the_host_give_the_views_of_small_images(monkeypatch, recipe, channels):
    crops = np.stack([uint8(16, 16, channels), 255 - uint8(16, 16, channels)], axis=1)
    small, large = (make(monkeypatch, crops, RECIPES[recipe], 16, large=large) for large in (False, True))
    apart = np.abs(np.asarray(small) - np.asarray(large))
    assert np.mean(apart > 1e-5) < 1e-3  # pixels at the threshold of solarize
    assert len({view.tobytes() for view in np.asarray(large).reshape(2 * COUNT, -1)}) == 2 * COUNT


@pytest.mark.parametrize('flips', [False, True])
@pytest.mark.parametrize('sigma', [0.1, 2.0, 30.0])
def test_blur_and_flip_are_one_product(sigma, flips):
    image, weights = photo(17, 17, 3), jax.jit(partial(large_images._blur_weights, 17))
    on, off, reverse = jnp.bool_(True), jnp.bool_(False), jnp.bool_(flips)
    expected = ref_blur(image.astype(np.float64), np.float32(sigma))
    got = np.einsum('oh,pw,hwc->opc', weights(sigma, on, off), weights(sigma, on, reverse), image)
    np.testing.assert_allclose(got, expected[:, ::-1] if flips else expected, atol=3e-6)
    plain = np.einsum('oh,pw,hwc->opc', weights(sigma, off, off), weights(sigma, off, reverse), image)
    np.testing.assert_array_equal(plain, image[:, ::-1] if flips else image)


def test_views_of_224_pixels_are_large_and_those_of_96_are_not():
    assert 96 < views.LARGE <= 224


def test_products_have_the_highest_precision_and_operations_without_probability_are_left_out(monkeypatch):
    monkeypatch.setattr(views, 'LARGE', 0)
    bare = ViewSpec(**dict.fromkeys(views.PROBABILITIES, 0.0))
    keys, images = jax.random.split(jax.random.key(7), COUNT), uint8(20, 26, 3)
    for specs, count in ((PRESETS['moco_v3'], 4), ((bare, bare), 2)):  # crop and blur, two axes
        lowered = jax.jit(partial(views.make_views, specs=specs, size=16)).lower(keys, images).as_text()
        products = [line for line in lowered.splitlines() if 'dot_general' in line]
        assert len(products) == count
        assert all('precision = [HIGHEST, HIGHEST]' in line for line in products)


LOWERED = """
import hashlib
import jax
from dualcl_jax.method.views import images
specs = (images.ViewSpec(crop_scale=(0.5, 1.0)), images.PRESETS['moco_v3'][1])
inputs = jax.eval_shape(lambda: (jax.random.split(jax.random.key(0), 2), jax.numpy.zeros((2, 8, 8, 3))))
lowered = jax.jit(lambda keys, pixels: images.make_views(keys, pixels, specs=specs, size=images.LARGE)).lower(*inputs)
print(hashlib.sha256(lowered.as_text().encode()).hexdigest())
"""


def test_the_program_does_not_depend_on_the_order_of_sets():
    """All processes of a run must compile the same program, and a compilation cache must find it again."""
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'JAX_PLATFORMS': 'cpu'}
    programs = [
        subprocess.run(
            [sys.executable, '-c', LOWERED],
            env=environment | {'PYTHONHASHSEED': seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ('1', '2')  # a set of the names of the jitter then has different orders
    ]
    assert len(set(programs)) == 1
