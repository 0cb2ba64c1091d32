"""The quick-start set and the origin of its patches."""

import hashlib
import re

import numpy as np
import pytest

from dualcl_jax.data.images import photo_patches
from dualcl_jax.data.images.photo_patches import GAP, PHOTOS, TEST_PATCHES, TRAIN_PATCHES, Patches
from dualcl_jax.data.images.source import image_shape
from dualcl_jax.system.errors import UserError


@pytest.fixture(scope='module')
def patches() -> tuple[Patches, Patches]:
    return photo_patches.cut_all()


@pytest.fixture(scope='module')
def photos() -> list[np.ndarray]:
    folder = photo_patches._photo_folder()
    return [np.asarray(photo_patches._read(folder / photo.file)) for photo in PHOTOS]


def test_as_many_patches_of_each_photograph(patches):
    for split, count in zip(patches, (TRAIN_PATCHES, TEST_PATCHES), strict=True):
        assert split.images.shape == (18 * count, 32, 32, 3)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        np.testing.assert_array_equal(np.bincount(split.labels), np.full(18, count))


def test_every_patch_lies_in_its_photograph_and_has_a_side_of_32_to_64(patches, photos):
    for split in patches:
        left, top, right, bottom = split.boxes.T
        height, width = np.array([photo.shape[:2] for photo in photos])[split.labels].T
        assert np.all((left >= 0) & (right <= width) & (top >= 0) & (bottom <= height))
        assert np.all(right - left == bottom - top)
        assert 32 == np.min(right - left) < np.max(right - left) == 64


def test_training_and_test_regions_do_not_touch(patches, photos):
    train, test = patches
    for label, photo in enumerate(photos):
        last_trained = train.boxes[train.labels == label, 2].max()
        first_tested = test.boxes[test.labels == label, 0].min()
        assert last_trained + GAP <= first_tested
        assert first_tested >= 0.7 * photo.shape[1] - 1


def test_no_pixel_is_in_both_splits(patches, photos):
    train, test = patches
    for label, photo in enumerate(photos):
        used = np.zeros((2, *photo.shape[:2]), bool)
        for mask, split in zip(used, (train, test), strict=True):
            for left, top, right, bottom in split.boxes[split.labels == label]:
                mask[top:bottom, left:right] = True
        assert not np.any(used[0] & used[1])


def test_a_patch_shows_what_its_box_encloses(patches, photos):
    """An antialiased resize keeps the mean; the mean of another box of the photograph differs much more."""
    for split in patches:
        for index in range(0, len(split.images), 97):
            left, top, right, bottom = split.boxes[index]
            enclosed = photos[split.labels[index]][top:bottom, left:right]
            np.testing.assert_allclose(split.images[index].mean((0, 1)), enclosed.mean((0, 1)), atol=2.5)
            if right - left == 32:
                np.testing.assert_array_equal(split.images[index], enclosed)


def test_no_patch_is_blank(patches):
    assert all(split.images[..., 1].std(axis=(1, 2)).min() >= photo_patches.MIN_STD for split in patches)


def test_grey_photographs_have_three_equal_channels(patches):
    grey = patches[0].images[patches[0].labels == [photo.file for photo in PHOTOS].index('camera.png')]
    assert np.all(grey == grey[..., :1])


def test_it_is_the_same_set_every_time(patches):
    train, test = photo_patches.load()
    digests = [hashlib.sha256(source.examples(np.arange(len(source))).tobytes()).digest() for source in (train, test)]
    assert digests == [hashlib.sha256(split.images.tobytes()).digest() for split in patches]
    assert image_shape(train) == (32, 32, 3)
    assert train.class_names == test.class_names == tuple(photo.file.split('.')[0] for photo in PHOTOS)
    assert train.fingerprint != test.fingerprint


def test_every_photograph_has_a_source_and_a_licence():
    assert len({photo.file for photo in PHOTOS}) == len(PHOTOS) == 18
    assert all(photo.title and photo.source and photo.licence for photo in PHOTOS)


def test_a_missing_or_damaged_photograph_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_patches, '_photo_folder', lambda: tmp_path)
    with pytest.raises(UserError, match=r'photo_patches.*astronaut\.png.*pip install'):
        photo_patches.load()
    (tmp_path / 'astronaut.png').write_bytes(b'not a photograph')
    with pytest.raises(UserError, match=r'photo_patches.*astronaut\.png.*pip install'):
        photo_patches.load()


def test_without_scikit_image(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=re.escape('pip install "dualcl-jax[demo]"')):
        photo_patches.load()
