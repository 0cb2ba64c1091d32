"""The quick-start set: 32x32 patches of the photographs that scikit-image ships, labelled by photograph.

Nothing is downloaded. The right-most 30 % of each photograph is for testing, and a strip before it is not used, so that
no part is used for both. The set shows that training works and is not a benchmark: some photographs can be told apart
by their colour alone, and others (the clock, the moon, the cell) hardly at all in their flat parts.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from dualcl_jax.data.images.source import image_source
from dualcl_jax.data.source import Splits
from dualcl_jax.system.errors import UserError

PATCH_SIZE = 32
MIN_SIDE, MAX_SIDE = 32, 64  # of the square that is cut, in pixels of the photograph
TRAIN_PATCHES, TEST_PATCHES = 370, 120  # of each photograph
TEST_FRACTION = 0.3
GAP = 16  # pixels between the regions: a whole block of JPEG's, also with halved chroma
MIN_STD = 1.0  # of the green channel, in grey levels: flatter patches are blank (around the retina), and cut again


NAME = 'photo_patches'


class Photo(NamedTuple):
    """Where a photograph comes from; `licence` as scikit-image's documentation of the image states it."""

    file: str
    title: str
    source: str
    licence: str


CC0 = 'CC0'
PUBLIC_DOMAIN = 'public domain'
NO_KNOWN_RESTRICTIONS = 'no known copyright restrictions'
UNKNOWN = 'unknown, as shipped by scikit-image'

PHOTOS = (
    Photo('astronaut.png', 'astronaut Eileen Collins', 'NASA Great Images, flic.kr/p/r9qvLn', PUBLIC_DOMAIN),
    Photo('brick.png', 'brick wall', 'CC0Textures, Bricks25', CC0),
    Photo('camera.png', 'cameraman', 'photograph by Lav Varshney', CC0),
    Photo('cell.png', 'cell in saline (quantitative phase)', 'P. Müller et al. 2018, doi:10.1364/OE.26.010729', CC0),
    Photo('chelsea.png', 'cat', 'photograph by Stefan van der Walt', CC0),
    Photo('clock_motion.png', 'clock, blurred by motion', 'photograph by Stefan van der Walt', PUBLIC_DOMAIN),
    Photo('coffee.png', 'coffee cup', 'photograph by Rachel Michetti, Pikolo Espresso Bar', CC0),
    Photo('coins.png', 'Greek coins', 'Brooklyn Museum Collection, image 51611', NO_KNOWN_RESTRICTIONS),
    Photo('grass.png', 'grass', 'DeviantArt, linolafett, Grass-01', CC0),
    Photo('gravel.png', 'gravel', 'CC0Textures, Gravel04', CC0),
    Photo('hubble_deep_field.jpg', 'Hubble eXtreme Deep Field', 'NASA, HubbleSite release 2012-37', PUBLIC_DOMAIN),
    Photo(
        'ihc.png',
        'colonic glands, immunohistochemistry',
        'Center for Microscopy And Molecular Imaging',
        NO_KNOWN_RESTRICTIONS,
    ),
    Photo('moon.png', 'surface of the moon', UNKNOWN, UNKNOWN),
    Photo(
        'motorcycle_left.png', 'motorcycle (left view)', 'Middlebury stereo benchmark 2014, Scharstein et al.', UNKNOWN
    ),
    Photo('page.png', 'printed page', UNKNOWN, UNKNOWN),
    Photo('retina.jpg', 'human retina', 'Wikimedia Commons, M. Häggström 2014, doi:10.15347/wjm/2014.008', CC0),
    Photo('rocket.jpg', 'Falcon 9 before launch', 'SpaceX Photos, flickr 16511594820', PUBLIC_DOMAIN),
    Photo('text.png', 'handwriting', 'Wikipedia, Corner.png', PUBLIC_DOMAIN),
)


class Patches(NamedTuple):
    """Patches of all photographs, in the order of `PHOTOS`.

    images: uint8 [N, 32, 32, 3]; labels: int32 [N], the photograph; boxes: int32 [N, 4], the square that each was cut
    from as left, top, right, bottom (right and bottom exclusive) in pixels of the photograph.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


def load(data: Any = None) -> Splits:
    """The quick-start set; no field of `data` changes it.

    Raises:
      UserError: scikit-image or one of its photographs is missing or damaged.
    """
    del data
    class_names = tuple(Path(photo.file).stem for photo in PHOTOS)
    train, test = (image_source(NAME, p.images, p.labels, class_names) for p in cut_all())
    return Splits(train, test)


def check_not_divided(validation_fraction: float) -> None:
    """Raises UserError if training patches are to be held out: they overlap those that would be left."""
    if validation_fraction:
        raise UserError(
            f'config.data.validation_fraction={validation_fraction}: the training patches of data.name={NAME} overlap, '
            'so that those held out would be seen in training; use 0, or other data'
        )


def cut_all() -> tuple[Patches, Patches]:
    """Cuts the patches for training and for testing, the same on every machine and in every run."""
    folder = _photo_folder()
    train, test = [], []
    for label, photo in enumerate(PHOTOS):
        image = _read(folder / photo.file)
        rng = np.random.default_rng(label)
        (train_left, train_right), (test_left, test_right) = regions(image.width)
        train.append(_cut(image, train_left, train_right, TRAIN_PATCHES, rng))
        test.append(_cut(image, test_left, test_right, TEST_PATCHES, rng))
    return _join(train), _join(test)


def regions(width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The columns (first, last + 1) for training and for testing in a photograph `width` pixels wide."""
    test_left = width - round(TEST_FRACTION * width)
    return (0, test_left - GAP), (test_left, width)


def _cut(
    image: Image.Image, left: int, right: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `count` patches, uint8 [n, 32, 32, 3], from random squares in the given columns; with boxes [n, 4]."""
    patches: list[np.ndarray] = []
    boxes: list[tuple[int, int, int, int]] = []
    while len(patches) < count:
        side = int(rng.integers(MIN_SIDE, MAX_SIDE + 1))
        x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(0, image.height - side + 1))
        box = (x, y, x + side, y + side)
        small = image.resize((PATCH_SIZE, PATCH_SIZE), Image.Resampling.BILINEAR, box=box)  # Pillow's is antialiased
        pixels = np.asarray(small)
        if pixels[..., 1].std() >= MIN_STD:
            patches.append(pixels)
            boxes.append(box)
    return np.stack(patches), np.array(boxes, np.int32)


def _join(parts: list[tuple[np.ndarray, np.ndarray]]) -> Patches:
    images, boxes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Patches(images, np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p, _ in parts]), boxes)


def _photo_folder() -> Path:
    spec = importlib.util.find_spec('skimage')
    if spec is None or not spec.submodule_search_locations:
        raise UserError('data.name=photo_patches: needs scikit-image; pip install "dualcl-jax[demo]"')
    return Path(spec.submodule_search_locations[0]) / 'data'


def _read(path: Path) -> Image.Image:
    """Reads a photograph as RGB; a grey one has three equal channels."""
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    except (OSError, UnidentifiedImageError) as error:
        remedy = 'pip install --force-reinstall scikit-image'
        raise UserError(f'data.name=photo_patches: cannot read {path} of scikit-image; {remedy}') from error
