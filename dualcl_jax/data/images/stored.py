"""Image files read as they are stored: any number of channels, of 8 or 16 bits or floating point, without conversion.

`data.channels=C` chooses this in place of `decode`, which converts everything to 8-bit RGB. It reads

- `.npy` files, [H, W] or [H, W, C], by NumPy, which unpickles nothing;
- TIFF, by tifffile: one page of C samples, interleaved or in planes, or C pages of one sample. Reduced copies and masks
  are not pages;
- all other formats of `decode` that hold gray or colours, by Pillow, upright by their EXIF orientation.

uint8 and uint16 stay as they are; int16 and floating point become float32, which holds int16 exactly. Everything else
is refused. Crops are resized channel by channel, antialiased.
"""

import functools
import importlib.metadata
import io
import logging
import warnings
from typing import IO, Any

import numpy as np
from PIL import Image

from dualcl_jax.data.images import decode, tiff
from dualcl_jax.data.images.decode import Facts, Place, UnusableError
from dualcl_jax.system.errors import first_line

SUFFIX = '.npy'
TYPES = {'uint8': 'uint8', 'uint16': 'uint16', **dict.fromkeys(('int16', 'float16', 'float32', 'float64'), 'float32')}
"""The types of images that can be used, and the types in which they are kept."""
TYPE_BITS = {'uint8': 0, 'uint16': 1 << 14, 'float32': 1 << 15}
"""The bits of `Facts.conversions`, within `TYPE_MASK`, that encode the type of an image."""
TYPE_MASK = np.uint16(1 << 14 | 1 << 15)
MAX_VALUES = 2**29
"""The most values of an image, over all channels."""
GRAY_OR_COLOURS = ('L', 'LA', 'RGB', 'RGBA', 'I;16', 'I;16B', 'I;16L')
"""Pillow's modes whose values are those of the file."""


def examine(encoded: bytes, channels: int) -> Facts:
    """Decodes a whole file with the decoder that training uses, to check that it is an image with these channels.

    Raises:
      UnusableError: the file is not an image, is damaged, has other channels or values that are not finite, or has
        a size or type that cannot be used.
      MemoryError: there is not enough memory to tell.
    """
    if not encoded:
        raise UnusableError('empty file')
    decode.check_end(encoded)
    pixels, turned = _read(encoded, channels)
    if pixels.dtype.kind == 'f' and not np.isfinite(pixels).all():
        raise UnusableError('NaN or infinite values')
    return Facts(pixels.shape[0], pixels.shape[1], TYPE_BITS[pixels.dtype.name] | turned)


def type_of(conversions: int) -> str:
    """The type of an image by its `Facts.conversions`."""
    return next(name for name, bit in TYPE_BITS.items() if conversions & int(TYPE_MASK) == bit)


def cut(encoded: bytes, place: Place, size: int, channels: int) -> np.ndarray:
    """Cuts the boxes of `place` from an image, each resized to a square: [n, size, size, C] of its type."""
    pixels, _ = _read(encoded, channels)
    boxes = place(*pixels.shape[:2])
    cuts = np.empty((len(boxes), size, size, channels), pixels.dtype)
    for channel in range(channels):
        values = np.ascontiguousarray(pixels[..., channel])
        plane = Image.fromarray(values if values.dtype == np.uint8 else values.astype(np.float32))
        for row, (top, left, height, width) in enumerate(boxes):
            box = (left, top, left + width, top + height)
            small = np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR, box=box))
            if pixels.dtype == np.uint16:
                small = np.clip(np.round(small), 0, 65535)
            cuts[row, ..., channel] = small
    return cuts


@functools.cache
def readers() -> str:
    """The versions of tifffile and, if installed, imagecodecs, which determine the files that can be read."""
    found = []
    for name in ('tifffile', 'imagecodecs'):
        try:
            found.append(f'{name} {importlib.metadata.version(name)}')
        except importlib.metadata.PackageNotFoundError:
            found.append(f'no {name}')
    return ', '.join(found)


def _read(encoded: bytes, channels: int) -> tuple[np.ndarray, int]:
    """Reads the pixels [H, W, C] in one of the types that are kept, and `decode.TURNED` or 0.

    Raises:
      UnusableError: as `examine`, except for values that are not finite.
    """
    try:
        if encoded.startswith(b'\x93NUMPY'):
            pixels, turned = _read_array(encoded, channels), 0
        elif tiff.is_tiff(encoded):
            pixels, turned = _read_tiff(encoded, channels), 0
        else:
            pixels, turned = _read_with_pillow(encoded, channels)
    except (UnusableError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise UnusableError('not an image of a known format') from None
    except Exception as error:  # damaged files raise errors of many types
        raise UnusableError(f'damaged: {first_line(error)}') from error
    return as_kept(pixels), turned


def as_kept(pixels: np.ndarray) -> np.ndarray:
    """Converts pixels to the type in which they are kept; values beyond the range of float32 become infinite."""
    with np.errstate(over='ignore'):
        return pixels.astype(TYPES[pixels.dtype.name], copy=False)


def _check(height: int, width: int, found: int, channels: int, dtype: Any) -> None:
    """Rejects pixels with other channels, or of a size or type that cannot be used, before they are decoded."""
    if found != channels:
        raise UnusableError(f'not {channels} channels, as data.channels says: {found}')
    if np.dtype(dtype).name not in TYPES:
        raise UnusableError(f'pixels of type {np.dtype(dtype).name}: write {", ".join(TYPES)}')
    decode.check_size(height, width)
    if height * width * channels > MAX_VALUES:
        raise UnusableError(f'{width}×{height} pixels: more than {MAX_VALUES:,} values in {channels} channels')


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the type of an array by the header of its .npy file. Passes on the errors of a damaged one."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _read_array(encoded: bytes, channels: int) -> np.ndarray:
    file = io.BytesIO(encoded)
    shape, dtype = npy_header(file)
    if dtype.hasobject:
        raise UnusableError('an array of Python objects, which are never unpickled')
    if len(shape) not in (2, 3):
        raise UnusableError(f'an array of another shape than [H, W] or [H, W, C]: {list(shape)}')
    _check(shape[0], shape[1], (*shape, 1)[2], channels, dtype)
    file.seek(0)
    pixels = np.lib.format.read_array(file, allow_pickle=False)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _read_tiff(encoded: bytes, channels: int) -> np.ndarray:
    import tifffile  # importing takes a fifth of a second

    logging.getLogger('tifffile').setLevel(logging.CRITICAL)  # it logs damage before it raises
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        pages = [page.aspage() for page in file.pages if page.subfiletype in (None, 0, 2)]
        if not pages:
            raise UnusableError('a TIFF of reduced copies or masks alone')
        first = pages[0]
        if first.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise UnusableError('colours of a palette: write the channels')
        if any((page.shape, page.dtype, page.axes) != (first.shape, first.dtype, first.axes) for page in pages):
            raise UnusableError('pages of several shapes or types')
        if first.axes not in (('YX',) if len(pages) > 1 else ('YX', 'YXS', 'SYX')) or first.dtype is None:
            raise UnusableError(f'pages that are no channels: {len(pages)} of axes {first.axes}')
        if sum(series.size for series in file.series) > sum(page.size for page in file.pages):
            raise UnusableError(
                'fewer pages than its description says: cut short, or a large stack of ImageJ; write a page for each'
            )
        height, width, samples = first.imagelength, first.imagewidth, first.samplesperpixel
        _check(height, width, samples * len(pages), channels, first.dtype)
        try:
            planes = [page.asarray() for page in pages]
        except ValueError as error:
            if 'imagecodecs' in str(error):
                raise UnusableError(
                    f"a TIFF that needs imagecodecs: pip install 'dualcl-jax[tiff]' ({error})"
                ) from error
            raise
    if len(planes) > 1:
        return np.stack(planes, axis=-1)
    (pixels,) = planes
    return np.moveaxis(pixels, 0, -1) if first.axes == 'SYX' else pixels.reshape(height, width, samples)


def _read_with_pillow(encoded: bytes, channels: int) -> tuple[np.ndarray, int]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with decode.open_image(encoded) as image:
            if image.format in ('GIF', 'WEBP', 'PNG') and getattr(image, 'is_animated', False):
                raise UnusableError('an animation: write its channels as .npy or TIFF')
            if image.format == 'PNG' and encoded[24] == 16 and image.mode[0] != 'I':
                raise UnusableError('colours of 16 bits in a PNG, of which 8 would be read: write .npy or TIFF')
            if image.format == 'JPEG2000' and len(image.getbands()) > 1:
                raise UnusableError('colours in JPEG 2000, of which 8 bits would be read: write .npy or TIFF')
            if image.format == 'PPM' and getattr(image, 'tile', [''])[0][0] != 'raw':
                raise UnusableError('a PPM of another depth than 8 bits, or 16 of gray: write .npy or TIFF')
            _check(image.height, image.width, len(image.getbands()), channels, np.uint8)
            image.load()
            whole = image.mode == 'I' and image.format in ('PNG', 'PPM')  # 16 bits, stored in 32
            if image.mode not in GRAY_OR_COLOURS and not whole:
                raise UnusableError(f"pixels of Pillow's mode {image.mode}: write gray or colours, .npy or TIFF")
            pixels = np.asarray(image)
            if whole:
                pixels = pixels.astype(np.uint16)
            orientation = decode.orientation_of(image)
    pixels = pixels.astype(pixels.dtype.newbyteorder('='), copy=False)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return decode.turn(pixels, orientation), decode.TURNED if orientation > 1 else 0
