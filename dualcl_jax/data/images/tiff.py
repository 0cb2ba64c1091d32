"""What the tags of a TIFF or BigTIFF file say of its first page: whether it can be converted, and how."""

import io
from collections.abc import Mapping

from PIL.TiffImagePlugin import ImageFileDirectory_v2

Directory = Mapping[int, tuple[int, ...]]
"""Values by tag, of those in `TAGS` whose values are whole numbers."""

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, MAX_VALUE = 254, 256, 257, 258, 262, 277, 281
SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION = 330, 338, 339, 50706
TAGS = (
    *(SUBFILE_TYPE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, MAX_VALUE),
    *(SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION),
)

CHANNELS = 'channels: only 1 or 3, and transparency, can be used; write those that matter'
FLOATING = 'floating-point pixels, whose range is unknown; write 8 or 16 bits'

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3, 9: 3, 10: 3}
"""Channels of a photometric interpretation."""
_MOSAIC = (32803, 34892)  # photometric interpretations of raw files


def is_tiff(encoded: bytes) -> bool:
    """Whether the content of a file begins as a TIFF or BigTIFF."""
    return encoded[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def read_directory(encoded: bytes, offset: int | None = None) -> Directory:
    """Reads the directory at an offset, by default that of the first page; leaves out unreadable entries.

    Passes on Pillow's warnings, and its errors of many types in a damaged file.
    """
    page, file = ImageFileDirectory_v2(encoded[: 16 if encoded[2:4] == b'+\0' else 8]), io.BytesIO(encoded)
    file.seek(page.next if offset is None else offset)
    page.load(file)
    found = {tag: page.get(tag) for tag in TAGS}
    values = {tag: tuple(value) if isinstance(value, tuple | bytes) else (value,) for tag, value in found.items()}
    return {tag: value for tag, value in values.items() if all(isinstance(number, int) for number in value)}


def refusal(encoded: bytes, page: Directory) -> str:
    """Why the first page of a TIFF is not an image that can be converted, in a few words; '' if it is one."""
    if DNG_VERSION in page or page.get(PHOTOMETRIC, (1,))[0] in _MOSAIC:
        return 'raw camera file'
    reduced = page.get(SUBFILE_TYPE, (0,))[0] & 1
    below = (_pixels(read_directory(encoded, offset)) for offset in page.get(SUB_DIRECTORIES, ()))
    if reduced or max(below, default=0) > _pixels(page):
        return 'thumbnail: its first page is a smaller copy of another, as in raw camera files'
    samples, bits = page.get(SAMPLES, (1,))[0], page.get(BITS, (1,))[0]
    extra, kinds = page.get(EXTRA_SAMPLES, ()), page.get(SAMPLE_FORMAT, (1,))
    colours = _COLOURS.get(page.get(PHOTOMETRIC, (-1,))[0], samples)
    if samples > colours + (extra[:1] in ((1,), (2,))):
        return f'{samples} {CHANNELS}'
    if 3 in kinds:
        return FLOATING
    if bits > 16:
        return f'{bits}-bit pixels, whose range is unknown; write 8 or 16 bits'
    if 2 in kinds and bits == 8:
        return 'signed pixels of 8 bits; write unsigned ones'
    return ''


def depth(page: Directory) -> tuple[int, int]:
    """The number of bits of a sample of a page, and of those that its largest value may take, 0 if unknown."""
    bits = page.get(BITS, (1,))[0]
    return bits, bits if 8 < bits < 16 else page.get(MAX_VALUE, (0,))[0].bit_length()


def white_is_zero(page: Directory) -> bool:
    """Whether a page declares that its smallest value is white."""
    return page.get(PHOTOMETRIC) == (0,)


def _pixels(page: Directory) -> int:
    return page.get(WIDTH, (0,))[0] * page.get(HEIGHT, (0,))[0]
