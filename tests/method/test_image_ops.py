"""Compares every operation on images with float64 NumPy, Pillow or colorsys."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dualcl_jax.method.views import image_ops
from dualcl_jax.method.views.image_draws import Crop
from tests.reference.images import photo, ref_blur, ref_crop, ref_gray, ref_hue


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
    ('operation', 'reference', 'values'),
    [
        (image_ops.gaussian_blur, ref_blur, (0.1, 0.8, 2.0, 5.0)),
        (image_ops.solarize, lambda x, t: np.where(x >= t, 1 - x, x), (0.0, 0.5, 0.9, 1.0)),
    ],
    ids=['blur', 'solarize'],
)
def test_operations_match_float64(operation, reference, values, channels):
    image = photo(13, 18, channels)
    compiled = jax.jit(operation)
    for value in values:
        got = compiled(image, jnp.float32(value))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, reference(image.astype(np.float64), np.float32(value)), atol=3e-6)


def test_luma_and_flip_match_float64():
    image = photo(13, 18, 3)
    gray = ref_gray(image.astype(np.float64))[..., 0]
    np.testing.assert_allclose(image_ops.luma(*jnp.moveaxis(image, -1, 0)), gray, atol=1e-6)
    np.testing.assert_array_equal(image_ops.flip(jnp.asarray(image)), image[:, ::-1])


@jax.jit
def shifted(image, shift):
    return jnp.stack(image_ops.shift_hue(*jnp.moveaxis(image, -1, 0), shift), axis=-1)


def test_hue_matches_float64():
    image = photo(13, 18, 3)
    for shift in (-0.5, -0.13, 0.0, 0.3):
        expected = ref_hue(image.astype(np.float64), np.float32(shift))
        np.testing.assert_allclose(shifted(image, jnp.float32(shift)), expected, atol=3e-6)


def test_hue_of_every_corner_and_of_gray():
    corners = np.array(list(itertools.product([0.0, 0.5, 1.0], repeat=3)), np.float32).reshape(3, 9, 3)
    for shift in (-0.5, -1 / 3, 0.0, 1 / 6, 0.25):
        np.testing.assert_allclose(shifted(corners, shift), ref_hue(corners, shift), atol=1e-6)


BOXES = [(0, 0, 37, 45), (3, 5, 11, 9), (20, 1, 7, 40), (0, 30, 37, 3), (36, 44, 1, 1), (5, 4, 16, 16)]


@pytest.mark.parametrize('channels', [1, 3])
def test_crop_matches_brute_force(channels):
    image = photo(37, 45, channels)
    crop = jax.jit(lambda box: image_ops.crop_and_resize(jnp.asarray(image), *box, 16))
    for box in BOXES:
        np.testing.assert_allclose(crop(Crop(*box)), ref_crop(image.astype(np.float64), *box, 16), atol=2e-6)


@pytest.mark.parametrize('size', [8, 16, 32])
def test_crop_matches_pillow(size):
    pixels = (photo(37, 45, 3) * 255).round().astype(np.uint8)
    crop = jax.jit(lambda box: image_ops.crop_and_resize(jnp.float32(pixels / 255), *box, size))
    for top, left, height, width in BOXES:
        inside = pixels[top : top + height, left : left + width]
        box = (0, 0, width, height)  # Pillow's own box argument would include pixels outside it
        expected = np.asarray(Image.fromarray(inside).resize((size, size), Image.Resampling.BILINEAR, box=box))
        np.testing.assert_allclose(crop(Crop(top, left, height, width)) * 255, expected, atol=1.01)


def test_crop_of_the_whole_image_is_the_image_and_nothing_outside_the_box_counts():
    crop = jax.jit(image_ops.crop_and_resize, static_argnames='size')
    image = jnp.asarray(photo(16, 16, 3))
    np.testing.assert_array_equal(crop(image, 0, 0, 16, 16, size=16), image)
    outside = np.ones((20, 30, 1), np.float32)
    outside[4:9, 11:29] = 0.0
    for size in (3, 40):
        np.testing.assert_array_equal(crop(outside, 4, 11, 5, 18, size=size), np.zeros((size, size, 1)))


def test_blur_keeps_constants_and_tiny_images():
    image = np.full((5, 1, 3), 0.7, np.float32)
    np.testing.assert_allclose(jax.jit(image_ops.gaussian_blur)(image, 3.0), image, rtol=1e-6)


@pytest.mark.parametrize('flipped', [False, True])
@pytest.mark.parametrize('sigma', [0.1, 2.0, 30.0])
def test_blur_and_flip_are_one_product(sigma, flipped):
    image, both = photo(17, 17, 3), jax.jit(image_ops.blur_and_flip)
    expected = ref_blur(image.astype(np.float64), np.float32(sigma))
    np.testing.assert_allclose(both(image, sigma, True, flipped), expected[:, ::-1] if flipped else expected, atol=3e-6)
    np.testing.assert_array_equal(both(image, sigma, False, flipped), image[:, ::-1] if flipped else image)
    weights = image_ops._blur_weights_at_once(17, jnp.float32(sigma))  # of accelerators
    np.testing.assert_allclose(weights, image_ops._blur_weights(17, sigma), atol=1e-6)
