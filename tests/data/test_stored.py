"""Images of any number of channels, read as they are stored: values, refusals, and folders of them."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from dualcl_jax import data
from dualcl_jax.data.images import folder, npz, stored
from dualcl_jax.data.images.crops import CropRecipe
from dualcl_jax.data.images.decode import TURNED, Box, UnusableError
from dualcl_jax.data.images.encoded import EncodedSource
from dualcl_jax.data.images.statistics import channel_statistics, measured_range, values_in_use
from dualcl_jax.data.loader import Loader
from dualcl_jax.system.errors import UserError
from tests.support.bad_files import encode, photo
from tests.support.cases import case
from tests.support.image_folders import folder_config
from tests.support.stored_images import scene, write_scenes

pytestmark = pytest.mark.usefixtures('cache')


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def tif(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def whole(encoded: bytes, channels: int, side: int = 20) -> np.ndarray:
    """The pixels of a square image [side, side, C]."""
    return stored.cut(encoded, lambda height, width: [Box(0, 0, height, width)], side, channels)[0]


FIVE, PLANES = scene(1), np.moveaxis(scene(1), -1, 0)
READ = {
    'npy': (npy(FIVE), FIVE),
    'npy in the order of Fortran': (npy(np.asfortranarray(FIVE)), FIVE),
    'npy of big endians': (npy(FIVE.astype('>u2')), FIVE),
    'npy of one channel': (npy(FIVE[..., 0]), FIVE[..., :1]),
    'npy of floats': (npy(scene(1, dtype='float64')), scene(1, dtype='float64').astype(np.float32)),
    'npy of half floats': (npy(scene(1, dtype='float16')), scene(1, dtype='float16').astype(np.float32)),
    'npy of signed values': (npy(FIVE.astype(np.int16) - 99), FIVE.astype(np.float32) - 99),
    'pages': (tif(PLANES, photometric='minisblack'), FIVE),
    'pages with other metadata': (tif(PLANES, photometric='minisblack', metadata=None), FIVE),
    'ImageJ': (tif(PLANES, imagej=True, metadata={'axes': 'CYX'}), FIVE),
    'BigTIFF': (tif(PLANES, photometric='minisblack', bigtiff=True), FIVE),
    'planes': (tif(PLANES, photometric='minisblack', planarconfig='separate'), FIVE),
    'samples': (tif(FIVE, photometric='minisblack', planarconfig='contig'), FIVE),
    'samples of floats': (
        tif(scene(1, dtype='float32'), photometric='minisblack', planarconfig='contig'),
        scene(1, dtype='float32'),
    ),
    'compressed': (tif(PLANES, photometric='minisblack', compression='zlib'), FIVE),
    'one page of 16 bits': (tif(FIVE[..., 2], photometric='minisblack'), FIVE[..., 2:3]),
    'colours of 16 bits': (tif(FIVE[..., :3], photometric='rgb'), FIVE[..., :3]),
    'gray PGM of 16 bits': (b'P5 20 20 65535\n' + FIVE[..., 0].astype('>u2').tobytes(), FIVE[..., :1]),
    'gray PNG of 16 bits': (encode(FIVE[..., 0], 'PNG'), FIVE[..., :1]),
    'colours of a PNG': (encode(photo(3, 20, 20), 'PNG'), photo(3, 20, 20)),
    'colours and transparency': (encode(photo(3, 20, 20, 4), 'PNG'), photo(3, 20, 20, 4)),
}


@pytest.mark.parametrize('name', READ)
def test_values_are_those_of_the_file(name):
    encoded, expected = READ[name]
    facts = stored.examine(encoded, expected.shape[2])
    assert (facts.height, facts.width, stored.type_of(facts.conversions)) == (20, 20, expected.dtype.name)
    found = whole(encoded, expected.shape[2])
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_reduced_pages_are_no_channels():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(FIVE[..., 0], photometric='minisblack', metadata=None)
        writer.write(FIVE[::2, ::2, 0], photometric='minisblack', subfiletype=1, metadata=None)
        writer.write(FIVE[..., 1], photometric='minisblack', metadata=None)
    np.testing.assert_array_equal(whole(file.getvalue(), 2), FIVE[..., :2])


def test_colours_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(photo(4, 20, 24), 'PNG', exif=exif)
    facts = stored.examine(encoded, 3)
    assert (facts.height, facts.width, facts.conversions) == (24, 20, TURNED)


def test_crops_are_resized_by_channel():
    """Of 8 bits as the colours of a photograph; of others within rounding of the mean, and never out of range."""
    pixels, box = photo(5, 40, 48), Box(3, 5, 31, 37)
    expected = np.asarray(Image.fromarray(pixels).resize((12, 12), Image.Resampling.BILINEAR, box=(5, 3, 42, 34)))
    np.testing.assert_array_equal(stored.cut(npy(pixels), lambda *_: [box], 12, 3)[0], expected)
    wide = pixels.astype(np.uint16) * 257
    found = stored.cut(npy(wide), lambda *_: [box], 12, 3)[0]
    assert found.dtype == np.uint16
    assert np.abs(found / 257 - expected).max() < 1.01
    bright = np.full((40, 40, 2), 65535, np.uint16)
    np.testing.assert_array_equal(stored.cut(npy(bright), lambda *_: [Box(0, 0, 31, 37)], 12, 2)[0], bright[:12, :12])


def with_nan() -> np.ndarray:
    values = scene(1, dtype='float32')
    values[3, 4, 2] = np.nan
    return values


COLOURS, GRAY = (b'P6 20 20 65535\n' + bytes(2 * 20 * 20 * 3), b'P5 20 20 4095\n' + bytes(2 * 20 * 20))

REFUSED = {
    'empty': (b'', 'empty file'),
    'words': (b'neither an image nor an array', 'not an image'),
    'three channels': (npy(FIVE[..., :3]), 'not 5 channels, as data.channels says: 3'),
    'channels first': (npy(PLANES), 'not 5 channels, as data.channels says: 20'),
    'four axes': (npy(FIVE[None]), r'another shape than \[H, W\] or \[H, W, C\]: \[1, 20, 20, 5\]'),
    'objects': (npy(np.array([[object()]]), allow_pickle=True), 'Python objects, which are never unpickled'),
    'whole numbers of 32 bits': (npy(FIVE.astype(np.int32)), 'pixels of type int32'),
    'complex': (npy(FIVE.astype(np.complex64)), 'pixels of type complex64'),
    'truth': (npy(FIVE > 0), 'pixels of type bool'),
    'not a number': (npy(with_nan()), 'NaN or infinite'),
    'beyond float32': (npy(np.full((20, 20, 5), 1e300)), 'NaN or infinite'),
    'infinite in a TIFF': (tif(np.full((5, 20, 20), np.inf, np.float32), photometric='minisblack'), 'NaN or infinite'),
    'tiny': (npy(FIVE[:4]), 'shorter than 8'),
    'cut short': (npy(FIVE)[:-100], 'damaged'),
    'a TIFF cut short': (tif(PLANES, photometric='minisblack')[:900], 'fewer pages than its description says'),
    'pages of colours': (tif(np.stack([FIVE[..., :3]] * 2), photometric='rgb'), 'pages that are no channels: 2'),
    'two pages': (tif(PLANES[:2], photometric='minisblack'), 'not 5 channels, as data.channels says: 2'),
    'colours of 16 bits in a PPM': (COLOURS, 'another depth'),
    'gray of 12 bits in a PGM': (GRAY, 'another depth'),
    'colours in JPEG 2000': (encode(photo(3, 20, 20), 'JPEG2000'), 'JPEG 2000'),
    'a palette': (encode(Image.fromarray(photo(1, 20, 20)).quantize(16), 'PNG'), 'mode P'),
    'an animation': (
        encode(
            Image.fromarray(photo(1, 20, 20)), 'GIF', save_all=True, append_images=[Image.fromarray(photo(2, 20, 20))]
        ),
        'animation',
    ),
}


CHANNELS = {'a palette': 1, 'gray of 12 bits in a PGM': 1, 'colours of 16 bits in a PPM': 3, 'colours in JPEG 2000': 3}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name):
    encoded, reason = REFUSED[name]
    with pytest.raises(UnusableError, match=reason):
        stored.examine(encoded, CHANNELS.get(name, 5))


def test_pages_that_differ_are_refused():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(FIVE[..., 0], photometric='minisblack', metadata=None)
        writer.write(FIVE[..., 1].astype(np.uint8), photometric='minisblack', metadata=None)
    with pytest.raises(UnusableError, match='several shapes or types'):
        stored.examine(file.getvalue(), 2)


def test_claims_are_refused_before_memory_is_taken():
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': (10**6, 10**6, 5)})
    with pytest.raises(UnusableError, match='pixels: more than'):
        stored.examine(file.getvalue(), 5)


@pytest.mark.parametrize(
    ('name', 'channels'),
    [
        ('two_channel_minisblack.tif', 2),
        ('two_channel_planar.tif', 2),
        ('rgb_nir_extrasample0.tif', 4),
        ('rgb_nir_as_alpha.tif', 4),
    ],
)
def test_files_that_are_refused_otherwise(name, channels):
    encoded = case(name).read_bytes()
    facts = stored.examine(encoded, channels)
    expected = tifffile.imread(io.BytesIO(encoded))
    expected = np.moveaxis(expected, 0, -1) if expected.shape[0] == channels else expected
    found = stored.cut(encoded, lambda height, width: [Box(0, 0, 16, 16)], 16, channels)[0]
    assert (facts.height, facts.width) == expected.shape[:2]
    np.testing.assert_array_equal(found, expected[:16, :16])


# Folders and arrays.


@pytest.mark.parametrize('suffix', ['.npy', '.tif'])
def test_a_folder(tmp_path, suffix):
    root = write_scenes(tmp_path / 'images', suffix)
    train, test = data.load(folder_config(root, channels=5, stored_size=20))
    assert test is not None
    assert train.arrays.dtype == np.uint16
    assert len(train) + len(test) == 24
    assert train.class_names == ('forest', 'lake')
    assert train.report['pixels'] == 'as stored, 5 channels of uint16'
    expected = {scene(seed).tobytes() for seed in range(24)}
    assert {image.tobytes() for source in (train, test) for image in source.arrays} == expected
    assert train.report['converted'] == 0
    again, _ = data.load(folder_config(root, channels=5, stored_size=20))
    assert again.fingerprint == train.fingerprint


def test_crops_of_a_set_that_is_not_in_memory(tmp_path):
    root = write_scenes(tmp_path / 'images', '.npy', 12, dtype='float32')
    train, _ = data.load(folder_config(root, channels=5, memory_bytes=0, test_fraction=0.0))
    assert isinstance(train, EncodedSource)
    recipe = CropRecipe(((0.2, 1.0),) * 2, ((0.75, 1.33),) * 2, 8)
    found = []
    for workers in (0, 1):
        arguments = {'seed': 0, 'batch_size': 4, 'start_step': 0, 'stop_step': 2, 'recipe': recipe, 'workers': workers}
        with Loader(train, rows=np.arange(4), place=lambda batch: batch, **arguments) as batches:
            found.append(np.stack([batch.examples for batch in batches]))
    assert found[0].shape == (2, 4, 2, 8, 8, 5)
    assert found[0].dtype == np.float32
    assert found[0].min() < -20
    np.testing.assert_array_equal(*found)


def test_mistakes_of_a_folder(tmp_path):
    root = write_scenes(tmp_path / 'images', '.npy', 8)
    with pytest.raises(UserError, match=r'no image of at least.*\n.*NumPy array; data.channels=C reads images'):
        data.load(folder_config(root))
    np.save(root / 'lake' / 'three.npy', FIVE[..., :3])
    np.save(root / 'lake' / 'objects.npy', np.array([[object()]]), allow_pickle=True)
    with pytest.raises(UserError) as error:
        data.load(folder_config(root, channels=5))
    first, second, _ = str(error.value).splitlines()
    assert '2 of 10 images cannot be used' in first
    assert 'objects.npy (an array of Python objects' in second
    assert 'three.npy (not 5 channels, as data.channels says: 3)' in second
    report = data.load(folder_config(root, channels=5, max_skipped=0.5)).train.report
    assert report['skipped'] == 2
    np.save(root / 'lake' / 'eight.npy', FIVE.astype(np.uint8))
    with pytest.raises(UserError, match='several types, 1 of uint8 and 8 of uint16; convert them to one'):
        data.load(folder_config(root, channels=5, max_skipped=0.5))


def test_every_image(tmp_path):
    root = write_scenes(tmp_path / 'images', '.tif', 6)
    found = folder.every_image(folder_config(root, channels=5, stored_size=20))
    assert found.source.examples(np.arange(6)).dtype == np.uint16
    assert found.source.display(np.arange(1)) == ['forest/1.tif']


def test_arrays(tmp_path):
    images = np.stack([scene(seed) for seed in range(6)])

    def load(channels=5, **arrays):
        np.savez(tmp_path / 'set.npz', **arrays)
        return npz.load(folder_config(tmp_path / 'set.npz', channels=channels))

    train, test = load(train_images=images, test_images=images[:2])
    assert train.arrays.dtype == test.arrays.dtype == np.uint16
    assert train.report['pixels'] == 'as stored, 5 channels of uint16'
    assert load(1, images=images[..., 0].astype(np.float64)).train.arrays.dtype == np.float32
    with pytest.raises(UserError, match=r"'images' is uint16 \[6, 20, 20, 5\]; it must be uint8 .* data.channels=C"):
        load(0, images=images)
    with pytest.raises(UserError, match=r'with C 4, as set by data\.channels'):
        load(4, images=images)
    with pytest.raises(UserError, match='train and test differ in type, uint16 and uint8'):
        load(train_images=images, test_images=images.astype(np.uint8))
    strange = np.stack([with_nan(), scene(2, dtype='float32'), with_nan()])
    with pytest.raises(UserError, match="'images': 2 of its 3 images have NaN or infinite values"):
        load(images=strange)


def test_range_mean_and_deviation(tmp_path):
    images = np.stack([scene(seed, dtype='float32') for seed in range(8)])
    np.savez(tmp_path / 'set.npz', images=images)
    settings = folder_config(tmp_path / 'set.npz', name='npz', channels=5, value_range=())
    train, _ = data.load(settings)
    low, high = measured_range(train)
    assert (low, high) == (images.min(), images.max()) == values_in_use(settings, train)
    mean, std = channel_statistics(train, (low, high))
    scaled = (images.astype(np.float64) - low) / (high - low)
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-5)
    clipped = channel_statistics(train, (-20.0, 0.0))[0]
    np.testing.assert_allclose(clipped, np.clip((images.astype(np.float64) + 20) / 20, 0, 1).mean((0, 1, 2)), rtol=1e-5)
    eight = data.load(folder_config('', name='photo_patches', channels=3)).train
    with pytest.raises(UserError, match='holds images of 8 bits'):
        values_in_use(folder_config('', value_range=(0.0, 9.0)), eight)


def test_channels_of_other_sets():
    with pytest.raises(UserError, match=r'data\.channels=5: the images of photo_patches have 3; use 3, or 0'):
        data.load(folder_config('', name='photo_patches', channels=5))
