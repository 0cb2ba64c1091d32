"""Compares the draws of views with their distributions, and whole recipes with float64 NumPy."""

import dataclasses
import functools
import itertools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax.method.views import images as views
from dualcl_jax.method.views.image_draws import CROP_DRAWS, JITTER_DRAWS, Jitter, draw_crop, draw_jitter
from dualcl_jax.method.views.image_ops import color_jitter
from dualcl_jax.method.views.images import PRESETS, ViewSpec
from dualcl_jax.system.errors import UserError
from tests.reference.images import photo, ref_crop_box, ref_jitter, ref_view
from tests.support.runs import REPOSITORY

BARE = ViewSpec(**dict.fromkeys(views.PROBABILITIES, 0.0))  # only the crop
make_views = jax.jit(views.make_views, static_argnames=('specs', 'size'))


def uniform(count: int, width: int, seed: int = 0) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (count, width))


def chi_square(counts: np.ndarray) -> float:
    """The chi-square statistic, in standard deviations above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


# Colour jitter.


def jittered(image: jax.Array, jitter: Jitter, applied: bool = True) -> jax.Array:
    planes = tuple(jnp.moveaxis(image, -1, 0))
    return jnp.stack(color_jitter(planes, jitter, applied), axis=-1)


@pytest.mark.parametrize('channels', [1, 3])
def test_color_jitter_in_all_24_orders(channels):
    image = photo(9, 12, channels)
    positions = np.array(list(itertools.permutations(range(4))), np.int32)
    factors = (1.7, 1.5, 1.6, -0.2)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def jitter(position, factors):
        return jittered(jnp.asarray(image), Jitter(*factors, position))

    got = jitter(positions, jnp.float32(factors))
    expected = [ref_jitter(image.astype(np.float64), factors, position) for position in positions]
    np.testing.assert_allclose(got, expected, atol=3e-6)
    distinct = {tuple(np.round(value, 5).ravel()) for value in expected}
    assert len(distinct) == (24 if channels == 3 else 2), 'the case must tell the orders apart'


@pytest.mark.parametrize('absent', [(0,), (3,), (1, 3), (0, 1, 2), (0, 1, 2, 3)])
def test_color_jitter_without_some_operations(absent):
    image = photo(9, 12, 3)
    factors = [None if i in absent else jnp.float32(f) for i, f in enumerate((1.35, 0.62, 1.4, -0.09))]
    for position in ([2, 0, 3, 1], [3, 2, 1, 0]):
        jitter = Jitter(*factors, jnp.array(position))
        got = jax.jit(jittered)(image, jitter)
        np.testing.assert_allclose(got, ref_jitter(image.astype(np.float64), factors, position), atol=3e-6)
    np.testing.assert_allclose(jax.jit(jittered)(image, jitter, False), image, atol=1e-6)


# Draws.


@pytest.mark.parametrize(
    ('height', 'width', 'scale'),
    [(32, 32, (0.08, 1.0)), (48, 20, (0.3, 0.9)), (24, 60, (0.2, 1.0)), (10, 90, (0.9, 1.0))],
)
def test_crop_draw_is_get_params(height, width, scale):
    ratio = (3 / 4, 4 / 3)
    draws = uniform(3000, CROP_DRAWS, seed=height * width)
    got = jax.jit(jax.vmap(lambda d: draw_crop(d, height, width, scale, ratio)))(draws)
    expected = [ref_crop_box(d, height, width, scale, ratio) for d in np.asarray(draws, np.float64)]
    if (height, width) == (10, 90):
        assert set(expected) == {(0, 38, 10, 13)}, 'no try fits: the central box'
    # In float32 a side within 1e-5 of a half may round the other way; then the rest cannot be compared.
    same = np.all(np.stack(got, 1) == np.array(expected), axis=1)
    assert same.mean() > 0.999
    assert all(value.dtype == jnp.int32 for value in got)
    assert np.all((got.top >= 0) & (got.top + got.height <= height))
    assert np.all((got.left >= 0) & (got.left + got.width <= width))
    assert np.all((got.height > 0) & (got.width > 0))


def test_crop_draw_distribution():
    draws = uniform(40_000, CROP_DRAWS)
    crop = jax.jit(jax.vmap(lambda d: draw_crop(d, 200, 200, (0.1, 0.5), (3 / 4, 4 / 3))))(draws)
    area = np.asarray(crop.height * crop.width) / 200**2
    ratio = np.log(np.asarray(crop.width) / np.asarray(crop.height))
    # Boxes of at most half the area always fit: areas and log ratios are uniform up to whole pixels.
    assert abs(area.mean() - 0.3) < 0.003
    assert abs(area.std() - 0.4 / math.sqrt(12)) < 0.002
    assert abs(ratio.mean()) < 0.005
    assert abs(ratio.std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.003
    # Spread over the pixel, so that whole pixels do not favour a bin.
    spread = np.random.default_rng(0).uniform(size=40_000)
    for corner, side in ((crop.top, crop.height), (crop.left, crop.width)):
        place = (np.asarray(corner) + spread) / (200 - np.asarray(side) + 1)
        assert chi_square(np.histogram(place, bins=10, range=(0, 1))[0]) < 4


def test_jitter_draw_ranges_and_orders():
    draws = uniform(24_000, JITTER_DRAWS)
    jitter = jax.jit(jax.vmap(lambda d: draw_jitter(d, 0.4, 1.5, 0.2, 0.1)))(draws)
    for values, low, high in zip(jitter[:4], (0.6, 0.0, 0.8, -0.1), (1.4, 2.5, 1.2, 0.1), strict=True):
        unit = (np.asarray(values, np.float64) - low) / (high - low)
        assert unit.min() > -1e-6
        assert unit.max() < 1 + 1e-6
        assert chi_square(np.histogram(unit, bins=20, range=(-1e-6, 1 + 1e-6))[0]) < 4
    codes = np.asarray(jitter.position) @ np.array([64, 16, 4, 1])
    orders, counts = np.unique(codes, return_counts=True)
    assert len(orders) == 24
    assert chi_square(counts) < 4
    assert np.abs(np.corrcoef(np.column_stack([*jitter[:4], jitter.position[:, :3]]).T)[:4, 4:]).max() < 0.03


def test_jitter_draw_omits_operations_without_strength():
    jitter = jax.eval_shape(lambda draws: draw_jitter(draws, 0.0, 0.4, 0.0, 0.0), np.zeros(8, np.float32))
    assert [value is None for value in jitter] == [True, False, True, True, False]


def test_view_draw_probabilities():
    spec = ViewSpec(jitter_probability=0.8, grayscale=0.2, blur_probability=0.1, solarize_probability=0.35, flip=0.5)
    drawn = jax.jit(jax.vmap(lambda d: views.draw_view(d, spec, 32, 32)))(uniform(20_000, views.VIEW_DRAWS))
    for name, chosen in drawn.applied.items():
        assert abs(float(np.mean(chosen)) - getattr(spec, name)) < 0.015
    assert np.abs(np.corrcoef(np.array(list(drawn.applied.values()), float)) - np.eye(5)).max() < 0.03
    assert chi_square(np.histogram(drawn.sigma, bins=10, range=spec.blur_sigma)[0]) < 4


@pytest.mark.parametrize('probability', [0.0, 1.0])
def test_view_draw_of_certain_operations(probability):
    spec = ViewSpec(**dict.fromkeys(views.PROBABILITIES, probability))
    applied = jax.jit(lambda draws: views.draw_view(draws, spec, 8, 8).applied)
    for edge in (0.0, 1 - 2**-23):
        assert all(bool(value) == (probability == 1) for value in applied(jnp.full(views.VIEW_DRAWS, edge)).values())


# Whole views.

COUNT = 8
V3 = dataclasses.replace(PRESETS['moco_v3'][1], blur_probability=0.5, solarize_probability=0.5)
GRAY_FIRST = dataclasses.replace(PRESETS['moco_v1'][0], brightness=0.0, grayscale=0.5, jitter_probability=0.5)
RECIPES = {
    'moco_v1': PRESETS['moco_v1'][:1],
    'moco_v2': PRESETS['moco_v2'],
    'unlike': (V3, GRAY_FIRST),
    'three': (ViewSpec(flip=1.0), dataclasses.replace(V3, hue=0.0, solarize_threshold=0.3), GRAY_FIRST),
}


@pytest.mark.parametrize(
    ('recipe', 'channels'), [('moco_v1', 3), ('moco_v2', 3), ('unlike', 3), ('unlike', 1), ('three', 3)]
)
def test_views_match_float64(recipe, channels):
    specs, keys = RECIPES[recipe], jax.random.split(jax.random.key(7), COUNT)
    images = np.stack([(photo(20, 26, channels, seed) * 255).round().astype(np.uint8) for seed in range(COUNT)])
    made = np.asarray(make_views(keys, images, specs, 16))
    assert made.shape == (len(specs), COUNT, 16, 16, channels)
    assert made.dtype == np.float32
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


@pytest.fixture(scope='module')
def batch():
    images = np.stack([(photo(24, 30, 3, seed) * 255).round().astype(np.uint8) for seed in range(8)])
    return jax.random.split(jax.random.key(7), 8), images


SPECS = PRESETS['moco_v3']


@pytest.fixture(scope='module')
def made(batch):
    return make_views(*batch, SPECS, 16)


def test_views_shape_range_and_difference(made):
    assert made.shape == (2, 8, 16, 16, 3)
    assert made.dtype == jnp.float32
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    assert float(jnp.abs(made[0] - made[1]).mean(axis=(1, 2, 3)).min()) > 0.01
    assert float(jnp.std(made)) > 0.1


def test_a_view_depends_on_its_key_only(batch, made):
    """It does not depend on the size of the batch, the position in it, or the device."""
    keys, images = batch
    order = np.array([5, 2, 7, 0, 1, 3, 6, 4])
    np.testing.assert_allclose(make_views(keys[order], images[order], SPECS, 16), made[:, order], atol=1e-6)

    per_device = jax.pmap(lambda k, x: views.make_views(k, x, SPECS[:1], 16)[0])
    stacked = per_device(keys.reshape(4, 2), images.reshape(4, 2, 24, 30, 3))
    np.testing.assert_allclose(stacked.reshape(made[0].shape), made[0], atol=1e-6)

    np.testing.assert_allclose(make_views(keys[3:4], images[3:4], SPECS, 16), made[:, 3:4], atol=1e-6)


def test_draws_are_bit_identical_in_any_batch():
    @jax.jit
    @jax.vmap
    def draw(key):
        return views.draw_view(jax.random.uniform(key, (views.VIEW_DRAWS,)), SPECS[0], 224, 300)

    keys = jax.random.split(jax.random.key(3), 67)
    whole = jax.device_get(draw(keys))
    for start, stop in ((0, 19), (31, 50), (48, 67)):
        part = jax.device_get(draw(keys[start:stop]))
        jax.tree.map(lambda a, b, s=slice(start, stop): np.testing.assert_array_equal(a, b[s]), part, whole)


def test_uint8_equals_float_and_raw_keys_equal_typed_keys():
    keys = jax.random.split(jax.random.key(1), 4)
    images = np.stack([(photo(12, 40, 1, seed) * 255).round().astype(np.uint8) for seed in range(4)])
    made = make_views(keys, images, (BARE,), 8)
    assert made.shape == (1, 4, 8, 8, 1)
    as_float = np.float32(images) / np.float32(255)
    np.testing.assert_allclose(make_views(jax.random.key_data(keys), as_float, (BARE,), 8), made, atol=1e-6)


def test_products_have_the_highest_precision_and_operations_without_probability_are_left_out(batch):
    for specs, count in ((SPECS, 4), ((BARE, BARE), 2)):  # crop and blur, two axes
        lowered = make_views.lower(*batch, specs, 16).as_text()
        products = [line for line in lowered.splitlines() if 'dot_general' in line]
        assert len(products) == count
        assert all('precision = [HIGHEST, HIGHEST]' in line for line in products)


LOWERED = """
import hashlib
import jax
from dualcl_jax.method.views import images
specs = (images.ViewSpec(crop_scale=(0.5, 1.0)), images.PRESETS['moco_v3'][1])
inputs = jax.eval_shape(lambda: (jax.random.split(jax.random.key(0), 2), jax.numpy.zeros((2, 8, 8, 3))))
lowered = jax.jit(lambda keys, pixels: images.make_views(keys, pixels, specs=specs, size=16)).lower(*inputs)
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


# Recipes and mistakes.


def test_presets_are_the_published_recipes():
    v2 = ViewSpec()
    jitter = (v2.brightness, v2.contrast, v2.saturation, v2.hue, v2.jitter_probability)
    assert jitter == (0.4, 0.4, 0.4, 0.1, 0.8)
    assert (v2.crop_scale, v2.crop_ratio, v2.flip, v2.grayscale) == ((0.2, 1.0), (3 / 4, 4 / 3), 0.5, 0.2)
    assert (v2.blur_probability, v2.blur_sigma, v2.solarize_probability) == (0.5, (0.1, 2.0), 0.0)
    v1 = PRESETS['moco_v1'][0]
    assert (v1.grayscale_first, v1.jitter_probability, v1.hue, v1.blur_probability) == (True, 1.0, 0.4, 0.0)
    first, second = PRESETS['moco_v3']
    assert (first.saturation, first.blur_probability, first.solarize_probability) == (0.2, 1.0, 0.0)
    assert (second.saturation, second.blur_probability, second.solarize_probability) == (0.2, 0.1, 0.2)
    assert PRESETS['moco_cifar'][0] == dataclasses.replace(v2, crop_scale=(0.08, 1.0), blur_probability=0.0)
    assert PRESETS['small'][0] == dataclasses.replace(v2, blur_probability=0.0)
    plain = {'saturation': 0.0, 'hue': 0.0, 'grayscale': 0.0, 'blur_probability': 0.0}
    assert PRESETS['small_gray'][0] == dataclasses.replace(v2, brightness=0.8, contrast=0.8, **plain)
    assert all(PRESETS[name][0] == PRESETS[name][1] for name in PRESETS if name != 'moco_v3')
    assert all(len(specs) == 2 and hash(specs) for specs in PRESETS.values())


def test_a_list_for_a_range_still_hashes():
    assert hash(ViewSpec(crop_scale=[0.2, 1.0])) == hash(ViewSpec())


@pytest.mark.parametrize(
    'field',
    [
        {'crop_scale': (0.0, 1.0)},
        {'crop_scale': (0.5, 1.2)},
        {'crop_ratio': (2.0, 1.0)},
        {'blur_sigma': (1.0,)},
        {'flip': 1.1},
        {'brightness': -0.1},
        {'hue': 0.6},
        {'solarize_threshold': float('nan')},
    ],
    ids=str,
)
def test_values_out_of_range_name_the_field(field):
    with pytest.raises(UserError, match=f'^views.{next(iter(field))}: '):
        ViewSpec(**field)


@pytest.mark.parametrize('preset', ['moco_v1', 'moco_v3'])
def test_each_of_many_channels_is_treated_as_a_gray_image(preset):
    """Crop, blur, solarize, flip, brightness and contrast; no operation mixes the channels."""
    keys = jax.random.split(jax.random.key(2), 6)
    images = np.stack([photo(18, 22, 5, seed) for seed in range(6)]).astype(np.float32)
    made = make_views(keys, images, PRESETS[preset], 12)
    assert made.shape == (2, 6, 12, 12, 5)
    for channel in range(5):
        alone = make_views(keys, images[..., channel : channel + 1], PRESETS[preset], 12)
        np.testing.assert_allclose(made[..., channel : channel + 1], alone, atol=2e-6)


def test_values_of_a_range_become_0_to_1():
    specs = (BARE,)
    inputs = views.ImageViews(8, 2, (0.5,), (0.25,), specs, value_range=(-1.0, 3.0))
    values = np.linspace(-2, 4, 2 * 8 * 8 * 2, dtype=np.float32).reshape(2, 8, 8, 2)
    expected = (np.clip((values + 1) / 4, 0, 1) - 0.5) / 0.25
    np.testing.assert_allclose(inputs.plain(values), expected, atol=1e-6)
    whole = jnp.asarray((values + 2) * 9000, jnp.uint16)
    sixteen = dataclasses.replace(inputs, value_range=(0.0, 60_000.0))
    np.testing.assert_allclose(sixteen.pixels(whole), np.float32(whole) / 60_000, atol=1e-6)
    assert inputs.skipped == ()
    assert dataclasses.replace(inputs, specs=PRESETS['moco_v2']).skipped == views.OF_COLOURS


def test_other_images_are_refused():
    with pytest.raises(TypeError, match='int32'):
        make_views(jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 8, 8, 3), jnp.int32), (BARE,), 8)


def test_crops_made_on_the_host_get_the_rest_of_the_view():
    """If the crop is the whole image, views of crops equal views of the images."""
    whole = tuple(dataclasses.replace(spec, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)) for spec in SPECS)
    keys = jax.random.split(jax.random.key(2), 6)
    images = np.stack([(photo(16, 16, 3, seed) * 255).round().astype(np.uint8) for seed in range(6)])
    crops = np.stack([images, images], axis=1)
    np.testing.assert_allclose(make_views(keys, crops, SPECS, 16), make_views(keys, images, whole, 16), atol=2e-6)
    crops[:, 1] = 0
    second = make_views(keys, crops, (BARE, BARE), 16)
    np.testing.assert_array_equal(second[1], np.zeros((6, 16, 16, 3)))
    with pytest.raises(ValueError, match=r'expected crops \[B, 2, 8, 8, C\]'):
        make_views(keys, crops, SPECS, 8)
