"""Determines what a file is by its name and its first bytes, before it is decoded."""

import os
from typing import NamedTuple

SUFFIXES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.jp2', '.png', '.apng', '.webp', '.gif', '.bmp', '.tif', '.tiff'),
    *('.ppm', '.pgm', '.pbm', '.pnm'),
    *('.heic', '.heif', '.avif'),  # images that cannot be read
)
"""Endings of the names of images."""
MAGIC = (b'\xff\xd8\xff', b'\x89PNG\r\n', b'GIF8', b'RIFF', b'BM', b'II*\0', b'MM\0*')
"""First bytes of images that can be read."""
START_BYTES = 264
"""The number of bytes at the beginning of a file that `foreign` needs."""

THUMBNAIL_FOLDERS = ('@eadir', '__macosx', '#recycle', '@recycle', '$recycle.bin', 'lost+found')
"""Folders in which servers and systems keep copies, in lower case. Hidden ones such as .thumbnails are left out too."""
THUMBNAIL_SUFFIXES = ('.thm',)

RAW, ARRAY = 'raw camera file', 'NumPy array'
RAW_SUFFIXES = (
    *('.3fr', '.arw', '.cr2', '.cr3', '.crw', '.dcr', '.dng', '.erf', '.fff', '.gpr', '.iiq', '.k25', '.kdc', '.mef'),
    *('.mos', '.mrw', '.nef', '.nrw', '.orf', '.pef', '.raf', '.raw', '.rw2', '.rwl', '.sr2', '.srf', '.srw', '.x3f'),
)


class Foreign(NamedTuple):
    """A file that is not read as an image.

    Attributes:
      name: the kind of file.
      image: whether it is an image nevertheless, in a format that is not read.
      skipped: whether it counts as an image of the folder that cannot be used.
    """

    name: str
    image: bool = False
    skipped: bool = False


_HEIC, _AVIF = Foreign('HEIC image', True, True), Foreign('AVIF image', True, True)
_RAW, _DICOM, _JXL = Foreign(RAW, True), Foreign('DICOM file', True), Foreign('JPEG XL image', True)
_VIDEO, _ARRAY, _ARCHIVE = Foreign('video'), Foreign(ARRAY), Foreign('archive')
_PHOTOSHOP, _EXR, _FITS = Foreign('Photoshop file', True), Foreign('OpenEXR image', True), Foreign('FITS file', True)
_HDF5, _PARQUET, _TABLE = Foreign('HDF5 file'), Foreign('parquet file'), Foreign('table')

_STARTS: tuple[tuple[int, bytes, Foreign], ...] = (
    (128, b'DICM', _DICOM),
    (0, b'\x89HDF\r\n\x1a\n', _HDF5),
    (0, b'PAR1', _PARQUET),
    (0, b'ARROW1', Foreign('Arrow file')),
    (0, b'\x93NUMPY', _ARRAY),
    (0, b'8BPS', _PHOTOSHOP),
    (0, b'\x76\x2f\x31\x01', _EXR),
    (0, b'SIMPLE  =', _FITS),
    (0, b'%PDF', Foreign('PDF')),
    (0, b'\xff\x0a', _JXL),
    (0, b'\0\0\0\x0cJXL ', _JXL),
    (0, b'\x1aE\xdf\xa3', _VIDEO),
    (0, b'PK\x03\x04', _ARCHIVE),
    (0, b'\x1f\x8b', _ARCHIVE),
    (257, b'ustar', _ARCHIVE),
)
"""An offset, the bytes there, and the kind of such a file."""
_BRANDS: dict[bytes, Foreign] = {
    **dict.fromkeys((b'avif', b'avis'), _AVIF),
    **dict.fromkeys((b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1'), _HEIC),
    b'crx ': _RAW,
}
"""Brands of ISO media files; any other brand is a video."""
_BY_SUFFIX: dict[str, Foreign] = {
    **dict.fromkeys(RAW_SUFFIXES, _RAW),
    **dict.fromkeys(('.dcm', '.dicom', '.ima'), _DICOM),
    **dict.fromkeys(('.h5', '.hdf5', '.hdf', '.he5'), _HDF5),
    **dict.fromkeys(('.parquet', '.pq'), _PARQUET),
    **dict.fromkeys(('.arrow', '.feather'), Foreign('Arrow file')),
    **dict.fromkeys(('.tfrecord', '.tfrecords', '.array_record'), Foreign('file of records')),
    **dict.fromkeys(('.npy', '.npz'), _ARRAY),
    **dict.fromkeys(('.nii', '.nii.gz', '.nrrd', '.mha', '.mhd'), Foreign('medical volume', True)),
    **dict.fromkeys(('.csv', '.tsv'), _TABLE),
    **dict.fromkeys(('.mp4', '.mov', '.avi', '.mkv', '.m4v', '.webm'), _VIDEO),
    **dict.fromkeys(('.zip', '.tar', '.tgz', '.gz', '.7z', '.rar', '.bz2', '.xz'), _ARCHIVE),
    '.svg': Foreign('SVG drawing', True),
    '.jxl': _JXL,
    '.psd': _PHOTOSHOP,
    '.exr': _EXR,
    '.fits': _FITS,
    '.heic': _HEIC,
    '.heif': _HEIC,
    '.avif': _AVIF,
}
"""By suffix, for files that begin neither as an image nor as one of the above."""


UNREAD = frozenset(
    kind.name for kind in (*(kind for _, _, kind in _STARTS), *_BRANDS.values(), *_BY_SUFFIX.values()) if kind.image
)
"""The names of formats of images that are not read."""


def named_as_image(name: str) -> bool:
    """Whether the name of a file ends like that of an image."""
    return _suffix(name) in SUFFIXES


def foreign(name: str, start: bytes) -> Foreign | None:
    """Classifies a file that is not to be decoded; None for an image, or for an unknown file.

    Args:
      name: the name of the file.
      start: its first `START_BYTES`.
    """
    suffix = _suffix(name)
    if suffix in RAW_SUFFIXES:  # many are TIFF files whose first page is a thumbnail
        return _RAW
    if start.startswith(MAGIC):
        return _VIDEO if start[:4] == b'RIFF' and start[8:12] == b'AVI ' else None
    if start[4:8] == b'ftyp':
        return _BRANDS.get(start[8:12], _VIDEO)
    if name.lower().endswith('.nii.gz'):
        return _BY_SUFFIX['.nii.gz']
    for offset, content, what in _STARTS:
        if start[offset : offset + len(content)] == content:
            return _BY_SUFFIX.get(suffix, what) if what is _ARCHIVE else what
    return _BY_SUFFIX.get(suffix) if suffix not in SUFFIXES else None


def is_thumbnail(name: str) -> bool:
    """Whether a file or folder of this name holds the copies that a camera or a server makes of photographs."""
    return name.lower() in THUMBNAIL_FOLDERS or _suffix(name) in THUMBNAIL_SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
