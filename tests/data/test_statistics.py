"""Mean and standard deviation of the channels of a data set."""

import numpy as np
import pytest

from dualcl_jax.data import ArraySource
from dualcl_jax.data.images import statistics
from dualcl_jax.data.images.source import image_source
from dualcl_jax.data.images.statistics import channel_statistics


def source(images: np.ndarray) -> ArraySource:
    return image_source('toy', images, np.zeros(len(images), np.int32), ('a',))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('block', [1, 7, 100])
def test_channel_statistics(channels: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, 'BLOCK_PIXELS', block * 6 * 5)
    rng = np.random.default_rng(0)
    images = (rng.uniform(0, 1, (50, 6, 5, channels)) ** np.arange(1, channels + 1) * 255).astype(np.uint8)
    mean, std = channel_statistics(source(images))
    pixels = images.astype(np.float64).reshape(-1, channels) / 255
    np.testing.assert_array_equal(mean, pixels.mean(0).round(4))
    np.testing.assert_array_equal(std, pixels.std(0).round(4))
    assert all(type(value) is float for value in mean + std)


@pytest.mark.parametrize(('channels', 'count'), [(1, 28), (3, 28), (4, 28), (5, 22), (200, 1)])
def test_images_of_many_channels_are_measured_few_at_a_time(monkeypatch, channels: int, count: int) -> None:
    """Images of up to four channels are measured as many at a time as ever: sums of floating point depend on it."""
    monkeypatch.setattr(statistics, 'BLOCK_PIXELS', 6 * 5 * 28 + 5)
    images = np.random.default_rng(0).uniform(0, 1, (50, 6, 5, channels)).astype(np.float32)
    assert len(next(statistics._blocks(source(images)))) == count
    mean, std = channel_statistics(source(images), (0.0, 1.0))
    np.testing.assert_allclose(mean, images.mean((0, 1, 2), np.float64), rtol=1e-5)
    np.testing.assert_allclose(std, images.std((0, 1, 2), np.float64), rtol=1e-5)


def test_channel_statistics_of_one_colour() -> None:
    """The standard deviation is not 0, and sums of large values are exact."""
    mean, std = channel_statistics(source(np.full((300, 64, 64, 3), 255, np.uint8)))
    assert mean == (1.0, 1.0, 1.0)
    assert std == (1e-4, 1e-4, 1e-4)
