"""Decodes image files to pixels: JPEG by simplejpeg, at a smaller scale if that is enough; all else by Pillow.

simplejpeg calls libjpeg-turbo directly: `python -m experiments.benchmark decode` compares it with Pillow's JPEG decoder
and, if it is installed, OpenCV's. Pillow resizes with antialiasing in integers, with the same result on every machine.

Every image becomes uint8 RGB, upright by its EXIF orientation. Gray, palette and CMYK images are converted, transparent
ones are laid over white, and the first frame of an animation or the first of several pages is taken. Colour profiles
and texts are not applied and may have any length.

A gray image with more than 8 bits keeps the upper 8 of the bits that it uses: those that the file declares (sBIT of
PNG, MaxSampleValue of TIFF), else the fewest of 8, 12 and 16 that hold its largest value. Colours of 16 bits keep the
upper 8, and are refused if these leave fewer than 16 levels. Images of 2, 4 or more channels that are neither colours
nor transparency, thumbnails of raw files, floating-point pixels and integers of more than 16 bits are refused.
"""

import io
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from dualcl_jax.data.images import tiff
from dualcl_jax.system.errors import first_line

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000')
"""The formats that Pillow may read: image files alone, none of the formats that start other programs."""
MAX_PIXELS = 2**27
"""The largest image that is decoded: 134 megapixels, 400 MB as RGB. A file of a few kilobytes can claim far more."""
MIN_SIDE = 8
"""The smallest side of an image that is used, in pixels."""
ORIENTATION = 0x0112  # EXIF

ANIMATED, PAGES, SIXTEEN_BIT, CMYK, PALETTE, ALPHA, GRAY, TURNED, TOLERATED, SCALED, INVERTED, LATE, AS_8, AS_12 = (
    1 << bit for bit in range(14)
)
CONVERSIONS = {
    ANIMATED: 'first frame of an animation',
    PAGES: 'first of several pages',
    SIXTEEN_BIT: 'upper 8 of 16 bits',
    CMYK: 'CMYK to RGB',
    PALETTE: 'palette to RGB',
    ALPHA: 'transparency laid over white',
    GRAY: 'gray to RGB',
    TURNED: 'turned upright by its EXIF orientation',
    TOLERATED: 'decoded in spite of small errors in its data',
    SCALED: 'scaled from the fewer than 16 bits that it uses',
    INVERTED: 'inverted, since its smallest value is white',
    LATE: 'its EXIF orientation is beyond the first 64 KiB',
    AS_8: 'as 8 bits, by its largest value',
    AS_12: 'as 12 bits, by its largest value',
}
"""The conversions of images that are used, by their bits of `Facts.conversions`."""
CONVERTED = sum(CONVERSIONS)
EXIF, EARLY = b'Exif\0\0', 1 << 16
"""How EXIF begins, and the bytes of a JPEG in which earlier versions looked for it."""
PNG = b'\x89PNG\r\n\x1a\n'
PNG_TEXTS = (b'tEXt', b'zTXt', b'iTXt', b'iCCP')
"""Chunks that do not change the pixels here."""
FEWEST_LEVELS = 16

SIGNED = '32-bit or signed pixels, whose range is unknown; write 8 or 16 bits'
FEW_BITS = 'colours that use few of their 16 bits: the upper 8 hold nothing; write 8 bits'
NO_TRANSPARENCY = (
    'a last channel that is declared as transparency, with most pixels neither clear nor opaque; '
    'write the channels that matter'
)
UNCONVERTED = (tiff.CHANNELS, tiff.FLOATING, SIGNED, FEW_BITS, NO_TRANSPARENCY)
"""Why images are unusable that may be read as they are stored."""


class UnusableError(Exception):
    """Raised if an image cannot be used; gives the reason in a few words."""


class Box(NamedTuple):
    """A box of an upright image in pixels."""

    top: int
    left: int
    height: int
    width: int


class Facts(NamedTuple):
    """The facts about an image that can be used: its upright size and, as bits, its `CONVERSIONS`."""

    height: int
    width: int
    conversions: int


Place = Callable[[int, int], Sequence[Box]]
"""A function from the height and width of an image to the boxes to cut from it."""


def examine(encoded: bytes) -> Facts:
    """Decodes a whole file with the decoder that training uses, to check that this is possible.

    Raises:
      UnusableError: the file is not an image, is damaged, or is too small or too large.
      MemoryError: there is not enough memory to tell.
    """
    if not encoded:
        raise UnusableError('empty file')
    check_end(encoded)
    try:
        jpeg = _jpeg_header(encoded)
        if jpeg:
            height, width, orientation, gray = jpeg
            check_size(height, width)
            conversions = (GRAY if gray else 0) | (TURNED if orientation > 1 else 0)
            if orientation > 1 and EXIF not in encoded[:EARLY]:
                conversions |= LATE
            try:
                _decode_jpeg(encoded, height, width, 8)
            except ValueError:  # a warning of libjpeg-turbo: harmless, or damage; Pillow distinguishes them
                _decode_with_pillow(encoded)
                conversions |= TOLERATED
            upright = (width, height) if orientation > 4 else (height, width)
            return Facts(*upright, conversions)
        pixels, conversions = _decode_with_pillow(encoded)
        return Facts(pixels.shape[0], pixels.shape[1], conversions)
    except (UnusableError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise UnusableError('not an image of a known format') from None
    except Image.DecompressionBombError:
        raise UnusableError(f'larger than {MAX_PIXELS:,} pixels') from None
    except Exception as error:  # damaged files raise errors of many types
        raise UnusableError(f'damaged: {first_line(error)}') from error


def cut(encoded: bytes, place: Place, size: int) -> np.ndarray:
    """Cuts the boxes of `place` from an image, each resized to a square: uint8 [n, size, size, 3].

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 that keeps `size` pixels a side in every box.
    Sides that the scale does not divide are rounded up, and boxes are scaled by the rounded sides: those at the right
    and at the bottom end less than one pixel of the result away from where they would at full scale.
    """
    jpeg = _jpeg_header(encoded)
    if jpeg:
        height, width, orientation, _ = jpeg
        upright = (width, height) if orientation > 4 else (height, width)
        boxes = place(*upright)
        needed = min(min(box.height, box.width) for box in boxes) / size
        try:
            pixels = _decode_jpeg(encoded, height, width, max(k for k in (1, 2, 4, 8) if k <= max(needed, 1)))
            pixels = turn(pixels, orientation)
        except ValueError:
            pixels, _ = _decode_with_pillow(encoded)
    else:
        pixels, _ = _decode_with_pillow(encoded)
        upright = pixels.shape[:2]
        boxes = place(*upright)
    image = Image.fromarray(pixels)
    tall, wide = pixels.shape[0] / upright[0], pixels.shape[1] / upright[1]
    cuts = np.empty((len(boxes), size, size, 3), np.uint8)
    for row, (top, left, box_height, box_width) in enumerate(boxes):
        box = (left * wide, top * tall, (left + box_width) * wide, (top + box_height) * tall)
        box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
        cuts[row] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return cuts


def _jpeg_header(encoded: bytes) -> tuple[int, int, int, bool] | None:
    """Reads height and width as stored, orientation, and whether gray; None if simplejpeg does not take the file."""
    if encoded[:2] != b'\xff\xd8':
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if colours not in ('Gray', 'YCbCr', 'RGB'):
        return None
    orientation = 1
    if EXIF in encoded[:EARLY] or encoded.find(EXIF, 0, _start_of_scan(encoded)) >= 0:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with open_image(encoded) as image:
                orientation = orientation_of(image)
    return height, width, orientation, colours == 'Gray'


def _start_of_scan(encoded: bytes) -> int:
    """Where the segments of a JPEG end that precede its pixels, or where they can no longer be followed."""
    place = 2
    while place + 4 <= len(encoded) and encoded[place] == 0xFF and encoded[place + 1] != 0xDA:
        marker = encoded[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:  # without content
            place += 2
        else:
            place += 2 + int.from_bytes(encoded[place + 2 : place + 4], 'big')
    return place


def check_end(encoded: bytes) -> None:
    """Raises UnusableError for a JPEG of which only a part was written.

    The marker of its end is missing. Where zeros take the place of the rest, decoders read them as pixels.
    """
    if encoded[:2] == b'\xff\xd8' and encoded.rfind(b'\xff\xd9') < _start_of_scan(encoded):
        raise UnusableError('damaged: truncated, a JPEG without its end')


def _decode_jpeg(encoded: bytes, height: int, width: int, divisor: int) -> np.ndarray:
    """Decodes RGB as stored, each side divided by 1, 2, 4 or 8 and rounded up. ValueError if libjpeg-turbo warns."""
    least = {'min_height': -(-height // divisor), 'min_width': -(-width // divisor)}
    return simplejpeg.decode_jpeg(encoded, 'RGB', min_factor=divisor, **least)


def _decode_with_pillow(encoded: bytes) -> tuple[np.ndarray, int]:
    """Decodes an image to upright RGB, and returns its `CONVERSIONS`."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        page = tiff.read_directory(encoded) if tiff.is_tiff(encoded) else {}
        if page and (reason := tiff.refusal(encoded, page)):
            raise UnusableError(reason)
        with open_image(encoded) as image:
            check_size(image.height, image.width)
            conversions = 0
            if image.format in ('GIF', 'WEBP', 'PNG', 'TIFF') and getattr(image, 'is_animated', False):
                conversions |= PAGES if image.format == 'TIFF' else ANIMATED
                image.seek(0)
            image.load()
            orientation = orientation_of(image)
            pixels, more = _to_rgb(image, _depth(image.format, encoded, page))
    return turn(pixels, orientation), conversions | more | (TURNED if orientation > 1 else 0)


def open_image(encoded: bytes) -> Image.Image:
    """Opens the image in a file. Drops the texts and the colour profile of a PNG if Pillow does not take them."""
    try:
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (ValueError, Image.UnidentifiedImageError):  # Pillow limits the size of texts; profiles count as texts
        plain = b''.join(chunk for kind, chunk in _png_chunks(encoded) if kind not in PNG_TEXTS)
        if not plain:
            raise
        return Image.open(io.BytesIO(PNG + plain), formats=FORMATS)


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the kind and bytes of each chunk of a PNG; nothing for other files."""
    place = len(PNG)
    while encoded.startswith(PNG) and place + 12 <= len(encoded):
        length, kind = struct.unpack_from('>I4s', encoded, place)
        yield kind, encoded[place : place + 12 + length]
        place += 12 + length


class Depth(NamedTuple):
    """The bits of a channel.

    Attributes:
      stored: their number in the file, 0 where unknown.
      declared: the number that the file declares as used, 0 where unknown.
      inverted: whether 0 is white, which Pillow takes into account for up to 8 bits.
    """

    stored: int = 0
    declared: int = 0
    inverted: bool = False


def _depth(format: str | None, encoded: bytes, page: tiff.Directory) -> Depth:
    """The depth of an image; `page` is the directory of a TIFF."""
    if format == 'TIFF':
        return Depth(*tiff.depth(page), tiff.white_is_zero(page))
    if format == 'PNG' and encoded[24] == 16:
        for kind, chunk in _png_chunks(encoded):
            if kind == b'sBIT':
                return Depth(16, chunk[8])
            if kind == b'IDAT':
                break
        return Depth(16)
    return Depth()


def _to_rgb(image: Image.Image, depth: Depth) -> tuple[np.ndarray, int]:
    """Converts an image to RGB with `CONVERSIONS`."""
    if image.mode == 'F':
        raise UnusableError(tiff.FLOATING)
    if image.mode[0] == 'I':
        return _from_integers(np.asarray(image), depth)
    conversions = {'CMYK': CMYK, 'P': PALETTE, 'L': GRAY, 'LA': GRAY, '1': GRAY}.get(image.mode, 0)
    if image.has_transparency_data:
        if image.format in ('TIFF', 'JPEG2000') and image.mode in ('RGBA', 'LA', 'RGBa', 'La'):
            _check_alpha(np.asarray(image)[..., -1])
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image.convert('RGBA'))
        conversions |= ALPHA
    pixels = np.asarray(image.convert('RGB'))
    if depth.stored == 16:  # Pillow reads colours as the upper 8
        if pixels.max() < FEWEST_LEVELS:
            raise UnusableError(FEW_BITS)
        conversions |= SIXTEEN_BIT
    return pixels, conversions


def _from_integers(values: np.ndarray, depth: Depth) -> tuple[np.ndarray, int]:
    """Converts gray values [H, W] of more than 8 bits to RGB with `CONVERSIONS`."""
    largest = int(values.max())
    if values.min() < 0 or largest > 65535:
        raise UnusableError(SIGNED)
    declared = depth.declared
    used = declared if 8 <= declared <= 16 and largest >> declared == 0 else 0
    guessed = 0
    if not used:
        used = next(bits for bits in (8, 12, 16) if largest >> bits == 0)
        guessed = {8: AS_8, 12: AS_12}.get(used, 0)
    pixels = np.repeat((values >> (used - 8)).astype(np.uint8)[..., None], 3, axis=2)
    if depth.inverted:
        pixels = 255 - pixels
    scaled = SIXTEEN_BIT if used == 16 else SCALED
    return pixels, GRAY | scaled | guessed | (INVERTED if depth.inverted else 0)


def _check_alpha(alpha: np.ndarray) -> None:
    """Refuses a last channel that a file declares as transparency and that holds something else, such as infrared."""
    if np.mean((alpha == 0) | (alpha == 255)) < 0.5:
        raise UnusableError(NO_TRANSPARENCY)


def check_size(height: int, width: int) -> None:
    """Raises UnusableError for an image that is too small or too large."""
    if min(height, width) < MIN_SIDE:
        raise UnusableError(f'{width}×{height} pixels: a side is shorter than {MIN_SIDE}')
    if height * width > MAX_PIXELS:
        raise UnusableError(f'{width}×{height} pixels: more than {MAX_PIXELS:,}')


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none, or EXIF that cannot be parsed."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of many types; damaged EXIF does not affect the pixels
        return 1
    return value if value in range(1, 9) else 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns an image upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
