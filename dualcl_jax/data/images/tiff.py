"""Reads the directory of a TIFF or BigTIFF file for its first page. Pillow silently drops some of its entries."""

import struct
from collections.abc import Mapping
from typing import NamedTuple

Directory = Mapping[int, tuple[int, ...]]
"""Values by tag; those that are not whole numbers are left out."""

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, MAX_VALUE = 254, 256, 257, 258, 262, 277, 281
SUB_DIRECTORIES, EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION = 330, 338, 339, 50706

CHANNELS = 'channels: only 1 or 3, and transparency, can be used; write those that matter'
FLOATING = 'floating-point pixels, whose range is unknown; write 8 or 16 bits'

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3, 9: 3, 10: 3}
"""Channels of a photometric interpretation."""
_MOSAIC = (32803, 34892)  # photometric interpretations of raw files
_SIZES = {1: 'B', 3: 'H', 4: 'I', 6: 'b', 8: 'h', 9: 'i', 13: 'I', 16: 'Q', 17: 'q', 18: 'Q'}
_MAX_ENTRIES, _MAX_VALUES = 1024, 64


class _Layout(NamedTuple):
    """How a file stores directories: where that of the first page is named, and the types of `struct`."""

    first: int
    entries: str
    offset: str


_CLASSIC, _BIG = _Layout(4, 'H', 'I'), _Layout(8, 'Q', 'Q')


def is_tiff(encoded: bytes) -> bool:
    """Whether the content of a file begins as a TIFF or BigTIFF."""
    return encoded[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def read_directory(encoded: bytes, offset: int | None = None) -> Directory:
    """Reads the directory at an offset, by default that of the first page; leaves out unreadable entries."""
    order = '<' if encoded[:2] == b'II' else '>'
    layout = _BIG if b'+' in encoded[2:4] else _CLASSIC
    entry, width = f'{order}HH{layout.offset}', struct.calcsize(f'={layout.offset}')
    found: dict[int, tuple[int, ...]] = {}
    try:
        if offset is None:
            (offset,) = struct.unpack_from(order + layout.offset, encoded, layout.first)
        (count,) = struct.unpack_from(order + layout.entries, encoded, offset)
        start = offset + struct.calcsize(f'={layout.entries}')
        for number in range(min(count, _MAX_ENTRIES)):
            place = start + (struct.calcsize(entry) + width) * number
            tag, kind, values = struct.unpack_from(entry, encoded, place)
            if kind not in _SIZES or not values:
                continue
            values = min(values, _MAX_VALUES)
            pattern = f'{order}{values}{_SIZES[kind]}'
            where = place + struct.calcsize(entry)
            if struct.calcsize(pattern) > width:
                (where,) = struct.unpack_from(order + layout.offset, encoded, where)
            found[tag] = struct.unpack_from(pattern, encoded, where)
    except (struct.error, OverflowError):  # cut short
        pass
    return found


def refusal(encoded: bytes) -> str:
    """Why the first page of a TIFF is not an image that can be converted, in a few words; '' if it is one."""
    page = read_directory(encoded)
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


def depth(encoded: bytes) -> tuple[int, int]:
    """The number of bits of a sample of the first page, and of those that its largest value may take, 0 if unknown."""
    page = read_directory(encoded)
    bits = page.get(BITS, (1,))[0]
    return bits, bits if 8 < bits < 16 else page.get(MAX_VALUE, (0,))[0].bit_length()


def white_is_zero(encoded: bytes) -> bool:
    """Whether the first page declares that its smallest value is white."""
    return read_directory(encoded).get(PHOTOMETRIC) == (0,)


def _pixels(page: Directory) -> int:
    return page.get(WIDTH, (0,))[0] * page.get(HEIGHT, (0,))[0]
