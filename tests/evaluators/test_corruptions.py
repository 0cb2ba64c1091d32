"""Corruptions: their amounts, their seeds by image, and the effect of each."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import hsv2rgb, rgb2hsv

from dualcl_jax.evaluators.measures.corruptions import CORRUPTIONS, STRENGTHS, corrupt, pixelate
from tests.support.bad_files import photo


def images(count=3, side=32, channels=3):
    return np.stack([photo(seed, side, side, channels).reshape(side, side, channels) for seed in range(count)])


def one(name, strength, image, row=0):
    return corrupt(image[None], np.array([row]), name=name, strength=strength, seed=0)[0]


PUBLISHED = {
    # Of the code of 1903.12261: for CIFAR-10-C and for ImageNet-C.
    'noise': ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    'blur': ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    'contrast': ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    'brightness': ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    'jpeg': ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    'pixelate': ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
}


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_amounts_are_the_published_ones(name, monkeypatch):
    used = []

    def keep(image, amount, rng):
        used.append(amount)
        return image

    monkeypatch.setitem(CORRUPTIONS, name, (keep, *CORRUPTIONS[name][1:]))
    for height, width in ((95, 200), (96, 96)):
        for strength in STRENGTHS:
            one(name, strength, np.zeros((height, width, 3), np.uint8))
    assert (tuple(used[:5]), tuple(used[5:])) == PUBLISHED[name]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('side', [32, 96])
@pytest.mark.parametrize('name', CORRUPTIONS)
def test_stronger_is_farther_from_the_image(name, side, channels):
    clean = images(side=side, channels=channels)
    before = clean.copy()
    found = [corrupt(clean, np.arange(3), name=name, strength=strength, seed=0) for strength in STRENGTHS]
    np.testing.assert_array_equal(clean, before)
    assert all(x.dtype == np.uint8 and x.shape == clean.shape for x in found)
    errors = [np.abs(x.astype(int) - clean).mean() for x in found]
    assert errors[0] > 0
    assert (np.diff(errors) > 0).all()


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_an_image_is_changed_by_its_own_draws(name):
    clean = images()
    together = corrupt(clean, np.array([7, 8, 9]), name=name, strength=3, seed=0)
    np.testing.assert_array_equal(one(name, 3, clean[1], row=8), together[1])
    other_seed = corrupt(clean, np.array([7, 8, 9]), name=name, strength=3, seed=1)
    assert np.array_equal(together, other_seed) == (name != 'noise')


def test_noise():
    flat = np.full((64, 64, 3), 128, np.uint8)
    changed = one('noise', 5, flat).astype(float) / 255
    assert changed.std() == pytest.approx(0.1, rel=0.03)
    assert changed.mean() == pytest.approx(128 / 255, abs=0.003)


def test_contrast_and_brightness():
    image = images(1)[0]
    pixels = image / 255
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    np.testing.assert_allclose(one('contrast', 2, image), 255 * (mean + 0.5 * (pixels - mean)), atol=0.51)
    hsv = rgb2hsv(pixels)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.2, 0, 1)
    np.testing.assert_allclose(one('brightness', 4, image), 255 * hsv2rgb(hsv), atol=0.6)


def test_blur_is_a_gaussian():
    image = images(1)[0]
    expected = gaussian_filter(image.astype(float), (1, 1, 0), mode='mirror', truncate=8)
    np.testing.assert_allclose(one('blur', 5, image), expected, atol=0.6)


def test_jpeg_and_pixelate():
    image = images(1)[0]
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=58)
    np.testing.assert_array_equal(one('jpeg', 3, image), np.asarray(Image.open(file)))
    large = images(1, side=96)[0]
    blocks = large.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3)).round().repeat(2, axis=0).repeat(2, axis=1)
    half = np.round(pixelate(large.astype(np.float32) / 255, 0.5, np.random.default_rng(0)) * 255)
    np.testing.assert_allclose(half, blocks, atol=1)
