"""A folder with every kind of file that is not a plain photograph, and the expected outcome of each."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin


def photo(seed: int, height: int = 40, width: int = 56, channels: int = 3) -> np.ndarray:
    """A smooth image, different for each seed, uint8 [H, W, C] or [H, W]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None] / 9.0
    waves = np.sin(x * rng.uniform(0.3, 2, channels) + y * rng.uniform(0.3, 2, channels) + rng.uniform(0, 6, channels))
    return (127.5 + 127 * waves).astype(np.uint8).squeeze()


def encode(image: Image.Image | np.ndarray, format: str, **options) -> bytes:
    """The content of an image file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_header(height: int, width: int) -> bytes:
    """A PNG file of a few bytes that declares a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b'IDAT', zlib.compress(bytes(1000)))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + pixels + chunk(b'IEND', b'')


def write_bad_files(folder: Path) -> dict[str, tuple[str, str]]:
    """Writes the files and returns, by name, the expected outcome and part of the expected reason."""
    whole, plain = encode(photo(1), 'JPEG', quality=90), photo(2)
    png = encode(photo(3), 'PNG')
    frames = [Image.fromarray(photo(seed)) for seed in (4, 5, 6)]
    animation = {'save_all': True, 'append_images': frames[1:]}
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text('comment', 'x' * 2_000_000, zip=True)
    sixteen = (photo(7, channels=1).astype(np.uint16) << 8) | 7
    alpha = np.dstack([photo(8), np.full((40, 56), 128, np.uint8)])
    turned = Image.Exif()
    turned[0x0112] = 6
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    files: dict[str, tuple[bytes, str, str]] = {
        # name: content, expected outcome, part of the reason
        'truncated.jpg': (whole[: len(whole) // 2], 'skipped', 'truncated'),
        'truncated.png': (png[: len(png) // 2], 'skipped', 'damaged'),
        'truncated.webp': (encode(photo(9), 'WEBP')[:300], 'skipped', 'damaged'),
        'header_only.jpg': (whole[:20], 'skipped', ''),
        'flipped_byte.png': (bytes(flipped), 'skipped', 'damaged'),
        'zero_bytes.jpg': (b'', 'skipped', 'empty file'),
        'text.jpg': (b'these are words, not an image', 'skipped', 'not an image'),
        'page.png': (b'<html><body>404 not found</body></html>', 'skipped', 'not an image'),
        'zeros.jpg': (bytes(5000), 'skipped', 'not an image'),
        'random.webp': (np.random.default_rng(0).bytes(5000), 'skipped', 'not an image'),
        'one_pixel.png': (encode(photo(10)[:1, :1], 'PNG'), 'skipped', '1×1 pixels'),
        'one_row.png': (encode(photo(11)[:1], 'PNG'), 'skipped', 'shorter than 8'),
        'enormous.png': (png_header(12_000, 12_000), 'skipped', '12000×12000 pixels'),
        'bomb.png': (png_header(60_000, 60_000), 'skipped', 'pixels'),
        'long_text.png': (encode(photo(12), 'PNG', pnginfo=bomb), 'used', ''),
        'float.tif': (encode(photo(13, channels=1).astype(np.float32), 'TIFF'), 'skipped', 'floating-point'),
        'postscript.jpg': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'skipped', 'not an image'),
        'photo.heic': (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'skipped', 'HEIC image'),
        'a_plain.jpg': (whole, 'used', ''),
        'duplicate.jpg': (whole, 'duplicate', 'same content as a_plain.jpg'),
        'animated.gif': (encode(frames[0], 'GIF', **animation), 'converted', 'first frame'),
        'animated.webp': (encode(frames[1], 'WEBP', **animation), 'converted', 'first frame'),
        'animated.png': (encode(frames[2], 'PNG', **animation), 'converted', 'first frame'),
        'pages.tif': (encode(Image.fromarray(photo(14)), 'TIFF', **animation), 'converted', 'pages'),
        'sixteen_bit.png': (encode(sixteen, 'PNG'), 'converted', '16 bits'),
        'sixteen_bit.tif': (encode(sixteen + 1, 'TIFF'), 'converted', '16 bits'),
        'cmyk.jpg': (encode(Image.fromarray(photo(15)).convert('CMYK'), 'JPEG'), 'converted', 'CMYK'),
        'palette.png': (encode(Image.fromarray(photo(16)).quantize(64), 'PNG'), 'converted', 'palette'),
        'alpha.png': (encode(alpha, 'PNG'), 'converted', 'transparency'),
        'alpha.webp': (encode(alpha[::-1].copy(), 'WEBP'), 'converted', 'transparency'),
        'gray.jpg': (encode(photo(17, channels=1), 'JPEG'), 'converted', 'gray'),
        'one_bit.png': (encode(Image.fromarray(photo(18)).convert('1'), 'PNG'), 'converted', 'gray'),
        'turned.jpg': (encode(Image.fromarray(photo(19)), 'JPEG', exif=turned), 'converted', 'upright'),
        'trailing.jpg': (encode(photo(20), 'JPEG') + b'more', 'used', ''),
        'wrong_suffix.png': (encode(photo(21), 'JPEG'), 'used', ''),
        'no_suffix': (encode(plain, 'PNG'), 'used', ''),
        'ünïcode\nname.jpg': (encode(photo(22), 'JPEG'), 'used', ''),
        'notes.txt': (b'my holidays', 'ignored', 'nor named as one'),
        '.DS_Store': (b'\0\0\0\1Bud1', 'ignored', 'hidden'),
    }
    for name, (content, _, _) in files.items():
        (folder / name).write_bytes(content)
    expected = {name: (outcome, reason) for name, (_, outcome, reason) in files.items()}
    (folder / 'broken_link.jpg').symlink_to(folder / 'nowhere.jpg')
    (folder / 'loop').symlink_to(folder)
    os.mkfifo(folder / 'pipe.jpg')
    (folder / 'folder.jpg').mkdir()
    return expected | {
        'broken_link.jpg': ('skipped', 'broken link'),
        'loop': ('ignored', 'listed elsewhere'),
        'pipe.jpg': ('skipped', 'not a regular file'),
    }
