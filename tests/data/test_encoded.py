"""Sets decoded for every batch: the crops, and that they depend only on (seed, step, position)."""

import itertools
import os

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualcl_jax import data
from dualcl_jax.data import Batch
from dualcl_jax.data.images.crops import central_square, crop_rng, draw_box
from dualcl_jax.data.images.decode import Box, cut
from dualcl_jax.data.images.encoded import EncodedSource
from dualcl_jax.data.order import batch_indices
from dualcl_jax.method.views.image_draws import draw_crop
from tests.support.bad_files import encode, photo
from tests.support.batches import RECIPE, STEPS, B, batches
from tests.support.config_parts import data_config

N = 40


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> EncodedSource:
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(N):
        kind = ('JPEG', 'PNG', 'WEBP')[i % 3]
        height, width = rng.integers(20, 200, 2).tolist()
        (root / f'{i:02d}.{kind.lower()}').write_bytes(encode(photo(i, height, width), kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        fields = {'labels': 'none', 'test_fraction': 0.0, 'memory_bytes': 0, 'max_skipped': 0.0}
        train, _ = data.load(data_config(name='folder', path=str(root), image_size=12, **fields))
    assert isinstance(train, EncodedSource)
    return train


@pytest.fixture(scope='module')
def expected(source) -> list[Batch]:
    return Batches(batches(source))


class Batches(list):
    """A list that Hypothesis can print."""

    def __repr__(self) -> str:
        return f'{len(self)} batches'


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_batches_are_crops_of_the_ordered_images(source, expected):
    for step, batch in enumerate(expected):
        assert batch.examples.shape == (B, 2, 12, 12, 3)
        assert batch.examples.dtype == np.uint8
        ids = batch_indices(3, step, N, B)
        np.testing.assert_array_equal(batch.ids, ids)
        for row in (0, B - 1):
            rng = crop_rng(3, step, row)

            def place(height, width, rng=rng):
                pairs = zip(RECIPE.scales, RECIPE.ratios, strict=True)
                return [draw_box(rng.random(22), height, width, *pair) for pair in pairs]

            np.testing.assert_array_equal(batch.examples[row], cut(source.files.read(int(ids[row])), place, 12))
    assert not np.array_equal(expected[0].examples[:, 0], expected[0].examples[:, 1])


@pytest.mark.parametrize('count', [1, 4])
def test_any_number_of_workers_gives_the_same_batches(source, expected, count):
    assert_same(batches(source, workers=count), expected)
    assert_same(batches(source, workers=count, start=3), expected[3:])


@settings(max_examples=8)
@given(start=st.integers(0, STEPS - 1), cuts=st.lists(st.integers(0, B), max_size=2))
def test_resuming_anywhere_and_dividing_anyhow(source, expected, start, cuts):
    bounds = [0, *sorted(cuts), B]
    shares = [batches(source, rows=np.arange(a, b), start=start) for a, b in itertools.pairwise(bounds) if b > a]
    joined = [Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_same(joined, expected[start:])


def test_an_error_in_a_worker_is_the_same_error(source, monkeypatch):
    path = source.files.where(7)
    before = os.stat(path)
    os.utime(path, (1, 1))
    try:
        with pytest.raises(data.UserError, match='changed since'):
            batches(source, workers=1)
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (48, 20), (24, 60), (10, 90)])
def test_boxes_are_those_of_the_device(height, width):
    """The same draws give the same box as `draw_crop`, except if float32 rounds a side the other way."""
    draws = np.random.default_rng(0).random((2000, 22), np.float32)
    on_device = jax.jit(jax.vmap(lambda d: draw_crop(d, height, width, (0.2, 1.0), (3 / 4, 4 / 3))))(draws)
    here = np.array([draw_box(row.astype(np.float64), height, width, (0.2, 1.0), (3 / 4, 4 / 3)) for row in draws])
    assert np.all(np.stack(on_device, 1) == here, axis=1).mean() > 0.999


def test_draws_of_neighbours_are_independent():
    draws = np.stack([crop_rng(s, t, p).random(22) for s in (0, 1) for t in range(20) for p in range(20)])
    assert len(np.unique(draws.round(12))) == draws.size
    assert abs(draws.mean() - 0.5) < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(22)).max() < 0.2


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_decoding_at_a_scale_keeps_the_picture(kind):
    """A crop decoded at a smaller scale is close to the crop decoded from all pixels; boxes keep their place."""
    from PIL import Image

    pixels = photo(5, 40, 60).repeat(16, 0).repeat(16, 1)
    pixels[:64] = 255
    encoded = encode(pixels, kind, **({'quality': 95} if kind == 'JPEG' else {}))
    boxes = [Box(0, 0, 640, 960), Box(100, 300, 400, 320), Box(0, 0, 64, 64)]
    for box in boxes:
        got = cut(encoded, lambda h, w, box=box: [box], 32)[0].astype(int)
        top, left, height, width = box
        inside = Image.fromarray(pixels[top : top + height, left : left + width])
        reference = np.asarray(inside.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(got - reference).mean() < 2.5


def test_the_central_square():
    assert central_square(30, 50) == [Box(0, 10, 30, 30)]
    assert central_square(51, 8) == [Box(21, 0, 8, 8)]
