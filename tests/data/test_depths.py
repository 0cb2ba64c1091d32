"""Images of unusual depths and channels: converted by the stated rule, or refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags

from configs import default
from dualcl_jax.data import load
from dualcl_jax.data.describe import describe_data
from dualcl_jax.data.images import stored
from dualcl_jax.data.images.decode import (
    INVERTED,
    LATE,
    SCALED,
    SIXTEEN_BIT,
    TURNED,
    Box,
    UnusableError,
    cut,
    examine,
)
from dualcl_jax.data.images.tiff import read_directory
from dualcl_jax.system.errors import UserError
from tests.support.bad_files import encode, photo
from tests.support.image_folders import folder_config


def tiff(pixels: np.ndarray, extra: int = 0, photometric: int = 2, *, big: bool = False, **tags: int) -> bytes:
    """An uncompressed TIFF or BigTIFF of [H, W, C] pixels; `tags` are t254=1 and the like."""
    height, width, channels = pixels.shape
    bits, kind = 8 * pixels.dtype.itemsize, {'u': 1, 'i': 2, 'f': 3}[pixels.dtype.kind]
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: channels, 278: height, 339: kind}
    entries |= {279: pixels.nbytes} | ({338: extra} if channels not in (1, 3) else {})
    entries |= {int(name[1:]): value for name, value in tags.items()}
    start = 16 + 8 + 20 * (len(entries) + 1) + 8 if big else 8 + 2 + 12 * (len(entries) + 1) + 4
    entries[273] = start
    body = b''.join(struct.pack('<HHQQ' if big else '<HHII', tag, 4, 1, entries[tag]) for tag in sorted(entries))
    head = b'II+\0' + struct.pack('<HHQQ', 8, 0, 16, len(entries)) + body + bytes(8)
    return (head if big else b'II*\0' + struct.pack('<IH', 8, len(entries)) + body + bytes(4)) + pixels.tobytes()


def whole(encoded: bytes, side: int = 16) -> np.ndarray:
    """The pixels of a square image, uint8 [side, side, 3]."""
    return cut(encoded, lambda height, width: [Box(0, 0, height, width)], side)[0]


def with_significant_bits(encoded: bytes, bits: int) -> bytes:
    """The PNG with the number of bits that its values use."""
    data = b'sBIT' + bytes([bits])
    return encoded[:33] + struct.pack('>I', 1) + data + struct.pack('>I', zlib.crc32(data)) + encoded[33:]


def ramp(dtype: type, largest: int) -> np.ndarray:
    return np.linspace(0, largest, 256).astype(dtype).reshape(16, 16)


@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
@pytest.mark.parametrize(('largest', 'bits', 'flag'), [(255, 8, SCALED), (4095, 12, SCALED), (65535, 16, SIXTEEN_BIT)])
def test_gray_keeps_the_upper_bits_that_it_uses(format, largest, bits, flag):
    values = ramp(np.uint16, largest)
    encoded = encode(values, format)
    assert examine(encoded).conversions & (SCALED | SIXTEEN_BIT) == flag
    np.testing.assert_array_equal(whole(encoded), np.repeat((values >> (bits - 8))[..., None], 3, axis=2))


def test_a_folder_whose_gray_images_are_taken_for_different_depths_says_so(tmp_path):
    """Not where one depth fits all of them, and not where the files declare theirs."""

    def pixels_of(name: str, *encoded: bytes) -> str | None:
        (tmp_path / name).mkdir()
        for number, content in enumerate(encoded):
            (tmp_path / name / f'{number}.png').write_bytes(content)
        data = default.get_config().data
        data.update(name='folder', path=str(tmp_path / name), image_size=8)
        return describe_data(load(data)).get('pixels')

    dark, bright, full = (encode(ramp(np.uint16, largest), 'PNG') for largest in (200, 4000, 60_000))
    said = pixels_of('camera', dark, bright, encode(photo(1, 16, 16), 'PNG'))
    assert 'largest value needs: 1 of 8 and 1 of 12 bits; if one camera took them, use --config.data.channels=1' in said
    assert '1 of 12 and 1 of 16 bits' in pixels_of('bright', bright, full)
    assert pixels_of('alike', bright, encode(ramp(np.uint16, 3000), 'PNG')) is None
    declared = [with_significant_bits(encode(ramp(np.uint16, largest), 'PNG'), 12) for largest in (200, 4000)]
    assert pixels_of('declared', *declared) is None


@pytest.mark.parametrize('big', [False, True])
def test_gray_in_which_zero_is_white_is_inverted(big):
    eight = tiff(ramp(np.uint8, 255)[..., None], photometric=0, big=big)
    np.testing.assert_array_equal(whole(eight)[..., 0], 255 - ramp(np.uint8, 255))
    for largest, shift, flag in ((65535, 8, SIXTEEN_BIT), (4095, 4, SCALED)):
        values = ramp(np.uint16, largest)
        encoded = tiff(values[..., None], photometric=0, big=big)
        assert examine(encoded).conversions & (SIXTEEN_BIT | SCALED | INVERTED) == flag | INVERTED
        np.testing.assert_array_equal(whole(encoded), np.repeat(255 - (values >> shift)[..., None], 3, axis=2))
        plain = tiff(values[..., None], photometric=1, big=big)
        assert not examine(plain).conversions & INVERTED
        np.testing.assert_array_equal(whole(plain), np.repeat((values >> shift)[..., None], 3, axis=2))


def test_a_bigtiff_that_is_cut_short_is_refused():
    encoded = tiff(photo(1, 16, 16), big=True)
    np.testing.assert_array_equal(whole(encoded), photo(1, 16, 16))
    for cut_short in (encoded[:8] + b'\xff' * 8 + encoded[16:], encoded[:30], encoded[:12]):
        with pytest.raises(UnusableError):
            examine(cut_short)


def test_declared_bits_decide():
    """A dark image of a camera with 12 bits stays dark; a declaration that the values contradict is not believed."""
    dark = ramp(np.uint16, 200)
    assert whole(with_significant_bits(encode(dark, 'PNG'), 12)).max() == 200 >> 4
    bright = ramp(np.uint16, 65535)
    assert whole(with_significant_bits(encode(bright, 'PNG'), 12)).max() == 255


REFUSED = {
    'two channels': (tiff(photo(1, 16, 16)[..., :2], photometric=1), '2 channels'),
    'four channels': (tiff(np.dstack([photo(1, 16, 16), photo(2, 16, 16)[..., :1]])), '4 channels'),
    'five channels': (tiff(np.dstack([photo(1, 16, 16), photo(2, 16, 16)[..., :2]])), '5 channels'),
    'infrared as alpha': (
        tiff(np.dstack([photo(1, 16, 16), np.full((16, 16), 40, np.uint8)]), extra=2),
        'declared as transparency',
    ),
    'float': (tiff(ramp(np.float32, 1)[..., None], photometric=1), 'floating-point'),
    'double': (tiff(ramp(np.float64, 1)[..., None], photometric=1), 'floating-point'),
    'integers of 32 bits': (tiff(ramp(np.int32, 19)[..., None], photometric=1), '32-bit pixels'),
    'unsigned integers of 32 bits': (tiff(ramp(np.uint32, 65535)[..., None], photometric=1, big=True), '32-bit pixels'),
    'signed': (tiff(ramp(np.int8, 100)[..., None], photometric=1), 'signed'),
    'dark colours of 16 bits': (tiff((photo(1, 16, 16) * 16).astype(np.uint16) // 16 * 15), 'few of their 16 bits'),
    'a thumbnail': (tiff(photo(1, 16, 16), t254=1), 'thumbnail'),
    'a digital negative': (tiff(photo(1, 16, 16), t50706=1), 'raw camera file'),
    'four channels in a BigTIFF': (
        tiff(np.dstack([photo(1, 16, 16), photo(2, 16, 16)[..., :1]]), big=True),
        '4 channels',
    ),
    'dark colours in a BigTIFF': (
        tiff((photo(1, 16, 16) * 16).astype(np.uint16) // 16 * 15, big=True),
        'few of their 16 bits',
    ),
    'a thumbnail in a BigTIFF': (tiff(photo(1, 16, 16), t254=1, big=True), 'thumbnail'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name):
    encoded, reason = REFUSED[name]
    with pytest.raises(UnusableError, match=reason):
        examine(encoded)


@pytest.mark.parametrize('name', REFUSED)
@pytest.mark.usefixtures('cache')
def test_what_may_be_read_as_stored_is_said(images, name):
    """Integers of 32 bits and signed ones of 8 may not."""
    encoded, reason = REFUSED[name]
    (images / 'refused.tif').write_bytes(encoded)
    with pytest.raises(UserError, match=reason) as caught:
        load(folder_config(images))
    readable = reason in ('floating-point', 'declared as transparency', 'few of their 16 bits') or 'channels' in reason
    assert ('data.channels=C reads images of C channels' in str(caught.value)) == readable


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_a_jpeg_whose_last_part_is_zeros_is_refused(mode):
    """With a thumbnail in its EXIF, which has an end of its own."""
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    thumbnail = b'Exif\0\0' + encode(photo(1, 16, 16), 'JPEG')
    encoded = encode(Image.fromarray(pixels).convert(mode), 'JPEG', quality=95, exif=thumbnail)
    assert examine(encoded + b'more')[:2] == (64, 64)
    for share in (0.3, 0.9):
        start = int(len(encoded) * share)
        zeroed = encoded[:start] + bytes(len(encoded) - start)
        for refuses in (examine, lambda content: stored.examine(content, 3)):
            with pytest.raises(UnusableError, match='damaged: truncated'):
                refuses(zeroed)


def test_transparency_of_a_tiff_is_laid_over_white():
    alpha = np.repeat([[0], [255]], 8, axis=0).astype(np.uint8) * np.ones((1, 16), np.uint8)
    pixels = whole(tiff(np.dstack([photo(1, 16, 16), alpha]), extra=2))
    assert pixels[:8].min() == 255
    np.testing.assert_array_equal(pixels[8:], photo(1, 16, 16)[8:])


def test_colours_of_16_bits_keep_the_upper_8():
    values = (photo(1, 16, 16).astype(np.uint16) << 8) | 7
    assert examine(tiff(values)).conversions == SIXTEEN_BIT
    np.testing.assert_array_equal(whole(tiff(values)), photo(1, 16, 16))


@pytest.mark.parametrize('segments', [0, 1, 3])
def test_the_orientation_of_a_jpeg_is_found_after_other_segments(segments):
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = np.repeat(np.repeat(photo(1, 2, 4), 8, axis=0), 8, axis=1)
    encoded = encode(np.rot90(upright).copy(), 'JPEG', exif=turned, quality=95)
    other = b'\xff\xed' + struct.pack('>H', 65_000) + bytes(64_998)
    encoded = encoded[:2] + other * segments + b'\xff' * segments + encoded[2:]
    found = examine(encoded)
    assert found[:2] == (16, 32)
    assert found.conversions & (TURNED | LATE) == (TURNED | LATE if segments > 1 else TURNED)
    pixels = cut(encoded, lambda height, width: [Box(0, 0, 16, 16)], 16)[0]
    assert np.abs(pixels.astype(int) - upright[:, :16]).mean() < 4


def test_pixels_that_look_like_exif_do_not_matter():
    encoded = encode(photo(1, 16, 16), 'JPEG')
    assert examine(encoded[:-2] + b'Exif\0\0' + encoded[-2:]).conversions & (TURNED | LATE) == 0
    for end in range(2, 60):  # cut short anywhere
        with pytest.raises(UnusableError):
            examine(encoded[:end])


@pytest.mark.parametrize('late', [False, True])
def test_long_texts_and_profiles_of_a_png_are_no_damage(late):
    image = Image.fromarray(photo(1, 16, 16))
    info = PngImagePlugin.PngInfo()
    info.add_text('comment', 'x' * 2_000_000, zip=True)
    encoded = encode(image, 'PNG', pnginfo=info, icc_profile=bytes(1_500_000))
    if late:  # after the pixels, where the standard allows texts too
        start = encoded.index(b'zTXt') - 4
        text = encoded[start : start + 12 + struct.unpack_from('>I', encoded, start)[0]]
        encoded = encoded[:start] + encoded[start + len(text) : -12] + text + encoded[-12:]
    examine(encoded)
    np.testing.assert_array_equal(whole(encoded), photo(1, 16, 16))


def test_the_first_page_of_a_pyramid_is_the_image():
    """Smaller pages after the first are no reason to leave it out."""
    file = io.BytesIO()
    Image.fromarray(photo(1, 32, 32)).save(
        file, 'TIFF', save_all=True, append_images=[Image.fromarray(photo(2, 16, 16))]
    )
    assert examine(file.getvalue())[:2] == (32, 32)


def test_a_tag_that_is_no_whole_number_is_left_out() -> None:
    file = io.BytesIO()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = TiffImagePlugin.IFDRational(511, 2)  # the largest value of a sample
    tags.tagtype[281] = TiffTags.RATIONAL
    Image.fromarray(ramp(np.uint8, 255)).save(file, 'TIFF', tiffinfo=tags)
    assert 281 in Image.open(file).tag_v2
    assert 281 not in read_directory(file.getvalue())
    assert not examine(file.getvalue()).conversions & SCALED
