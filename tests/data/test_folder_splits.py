"""What a folder of images is taken for: splits by name, classes, and what is left out."""

import os

import numpy as np
import pytest

from dualcl_jax import data
from dualcl_jax.data.describe import describe_data
from dualcl_jax.data.images.splits import find_layout, split_name
from dualcl_jax.data.source import held_out_by_content
from dualcl_jax.system.errors import UserError
from tests.support.image_folders import folder_config, named, ppm, write_images

pytestmark = pytest.mark.usefixtures('cache')


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'images'


def folders_of(splits: data.Splits) -> dict:
    """Which folder is which split, and what is left out beside them."""
    report = splits.train.report['splits']
    return {name: about if name == 'left_out' else about['folder'] for name, about in report.items()}


FINGERPRINTS = {
    'classes': ('3be8b8e78fa0b1ad9ae81aa1', '05f90879972a816a00ed7233'),
    'splits': ('b511c176c762adab521064f1', 'ca5aa9f72c17d7e3c143d992'),
    'flat': ('8682576a2cffabe3ad5706cd', None),
    'nested': ('e5b57db9f666e39b48f31dbf', None),
    'csv': ('f96bce9212455cd5c35e1f56', None),
    'headless': ('f96bce9212455cd5c35e1f56', None),
    'validation': ('df890b281853c64d8b380a99', '05f90879972a816a00ed7233'),
}
"""Beginnings of the fingerprints that version 0.1.0 gave to the splits, which runs of that version have stored."""


@pytest.mark.parametrize('name', FINGERPRINTS)
def test_clean_folders_keep_their_fingerprints(root, tmp_path, name):
    write_images(root / 'classes', named(('ant', 'bee', 'cow'), 20))
    names = [*named(('train/ant', 'train/bee'), 6), *named(('val/ant', 'val/bee'), 3)]
    write_images(root / 'splits', names)
    write_images(root / 'flat', [f'{number:02}.ppm' for number in range(10)])
    write_images(root / 'nested', named(('2019/may', '2019/june'), 5))
    rows = ''.join(f'{number:02}.ppm,{"ab"[number % 2]}\n' for number in range(9))
    (tmp_path / 'csv.csv').write_text('path,label\n' + rows)
    (tmp_path / 'headless.csv').write_text(rows)
    changes = {'labels': str(tmp_path / f'{name}.csv')} if name in ('csv', 'headless') else {}
    changes |= {'validation_fraction': 0.25} if name == 'validation' else {}
    path = root / {'csv': 'flat', 'headless': 'flat', 'validation': 'classes'}.get(name, name)
    found = data.load(folder_config(path, hold_out='random', **changes))
    assert tuple(split and split.fingerprint[:24] for split in found) == FINGERPRINTS[name]


@pytest.mark.parametrize(
    ('folder', 'name'),
    [
        ('train', 'train'),
        ('Training', 'train'),
        ('TRAIN', 'train'),
        ('train2017', 'train'),
        ('training_set', 'train'),
        ('Val', 'val'),
        ('valid', 'valid'),
        ('VALIDATION', 'validation'),
        ('testing', 'testing'),
        ('test_images', 'test'),
        ('trains', ''),
        ('testament', ''),
        ('cat', ''),
        ('2019', ''),
        ('', ''),
    ],
)
def test_names_of_splits(folder, name):
    assert split_name(folder) == name


LAYOUTS = {
    # name: names of images, train, test, left out, images for training and for testing, labelled ones of both
    'synonyms in any case': (
        [*named(('Training/a', 'Training/b'), 4), *named(('TESTING/a', 'TESTING/b'), 2)],
        ('Training/', 'TESTING/', []),
        (8, 4),
        (8, 4),
    ),
    'a folder without classes beside them': (
        [*named(('train/a', 'train/b'), 4), *named(('test/a', 'test/b'), 2), *named(('unlabeled', 'extra/x'), 3)],
        ('train/', 'test/', ['extra/', 'unlabeled/']),
        (8, 4),
        (8, 4),
    ),
    'validation beside test': (
        [*named(('train/a', 'train/b'), 4), *named(('test/a', 'test/b', 'validation/a'), 2)],
        ('train/', 'test/', ['validation/']),
        (8, 4),
        (8, 4),
    ),
    'a flat test beside a labelled val': (
        [*named(('train/a', 'train/b'), 4), *named(('test',), 5), *named(('val/a', 'val/b'), 2)],
        ('train/', 'val/', ['test/']),
        (8, 4),
        (8, 4),
    ),
    'a test with one folder of no class': (
        [*named(('train/a', 'train/b'), 4), *named(('test/images',), 5)],
        ('train/', 'test/', []),
        (8, 5),
        (8, 0),
    ),
    'a flat val': (
        [*named(('train/a', 'train/b'), 4), *named(('val',), 5)],
        ('train/', 'val/', []),
        (8, 5),
        (8, 0),
    ),
    'below a wrapper': (
        [*named(('set/train/a', 'set/train/b'), 4), *named(('set/val/a', 'set/val/b'), 2)],
        ('set/train/', 'set/val/', []),
        (8, 4),
        (8, 4),
    ),
    'each split wrapped again': (
        [*named(('train_set/train_set/a', 'train_set/train_set/b'), 4), *named(('test_set/test_set/a',), 2)],
        ('train_set/train_set/', 'test_set/test_set/', []),
        (8, 2),
        (8, 2),
    ),
    'a few pictures in a split': (
        [*named(('train/a', 'train/b'), 10), 'train/sheet.ppm', *named(('test/a', 'test/b'), 3)],
        ('train/', 'test/', []),
        (20, 6),
        (20, 6),
    ),
    'a picture above the splits': (
        [*named(('train/a', 'train/b'), 4), 'sheet.ppm', *named(('test/a', 'test/b'), 3)],
        ('train/', 'test/', []),
        (8, 6),
        (8, 6),
    ),
    'flat splits': (
        [*named(('train',), 4), *named(('val',), 3), *named(('unlabeled',), 2)],
        ('train/', 'val/', ['unlabeled/']),
        (4, 3),
        (0, 0),
    ),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_layouts(root, name):
    names, (train_folder, test_folder, beside), counts, labelled = LAYOUTS[name]
    write_images(root, names)
    splits = data.load(folder_config(root))
    assert folders_of(splits) == {'train': train_folder, 'test': test_folder, 'left_out': beside}
    assert tuple(map(len, splits)) == counts
    assert tuple(int((split.labels >= 0).sum()) for split in splits) == labelled
    assert splits.train.class_names == (('a', 'b') if any(labelled) else None)
    report = splits.train.report
    left_out = sum(about['count'] for about in report['left_out'].values())
    assert left_out == len(names) - sum(counts) == report['found'] - report['used']
    said = describe_data(splits)
    assert train_folder in said['splits']
    for folder in beside:
        assert f'in {folder}' in said['left out']


@pytest.mark.parametrize(('wrappers', 'test'), [(0, 'test'), (1, 'x/test'), (2, 'x/x/test'), (3, None)])
def test_splits_below_folders_that_contain_everything(wrappers, test):
    prefix = 'x/' * wrappers
    folders = ['', *('x/' * n + 'x' for n in range(wrappers)), *(f'{prefix}{name}' for name in ('test', 'train'))]
    counts = np.array([2 * ('t' in folder) for folder in folders])
    assert find_layout(folders, counts, np.array([False] * len(folders))).test == test


def test_a_folder_called_train_is_a_class_among_others(root):
    write_images(root, named(('car', 'bus', 'train'), 4))
    train, _ = data.load(folder_config(root))
    assert train.class_names == ('bus', 'car', 'train')


def test_train_alone_has_its_classes(root):
    write_images(root, named(('train/a', 'train/b'), 8) + named(('unlabelled',), 3))
    train, test = data.load(folder_config(root))
    assert (train.class_names, len(train) + len(test)) == (('a', 'b'), 16)


@pytest.mark.parametrize(('stray', 'used', 'unlabelled'), [(2, 20, 0), (9, 29, 9), (21, 41, 41)])
def test_pictures_beside_class_folders(root, stray, used, unlabelled):
    """Few are left out, more have no class, and most drop the classes, which is said."""
    write_images(root, [*named(('a', 'b'), 10), *(f'stray{number}.ppm' for number in range(stray))])
    train, test = data.load(folder_config(root, test_fraction=0.0))
    assert (len(train), int((train.labels < 0).sum()), test) == (used, unlabelled, None)
    report = train.report
    if used == 20:
        about = report['left_out']['beside the folders of classes']
        assert about == {'count': 2, 'names': ['stray0.ppm', 'stray1.ppm']}
    if unlabelled == 41:
        assert 'data.labels=subfolders' in describe_data(data.Splits(train, None))['classes']
    kept, _ = data.load(folder_config(root, labels='subfolders', test_fraction=0.0))
    assert (len(kept), int((kept.labels < 0).sum())) == (20 + stray, stray)


@pytest.mark.parametrize('wrapper', ['', 'set/'])
def test_splits_below_the_classes_are_named(root, wrapper):
    """They are not used as splits. Not named where a class lacks one."""
    write_images(root, named((f'{wrapper}{name}/{split}' for name in 'ab' for split in ('train', 'val')), 4))
    splits = data.load(folder_config(root))
    said = f'train: the whole folder, with {wrapper}a/val/ (move folders of splits above those of classes) ('
    assert describe_data(splits)['splits'].startswith(said)
    write_images(root, [f'{wrapper}c/train/0.ppm'], first=100)
    assert folders_of(data.load(folder_config(root)))['train'] == 'the whole folder'


def test_a_folder_of_unlabelled_images_is_no_class(root):
    write_images(root, named(('a', 'b', 'unlabeled'), 4))
    train, _ = data.load(folder_config(root, test_fraction=0.0))
    assert train.class_names == ('a', 'b')
    assert np.bincount(train.labels + 1).tolist() == [4, 4, 4]


def test_copies_in_a_folder_that_is_left_out_do_not_count(root):
    write_images(root, named(('train/a', 'train/b'), 4) + named(('val/a', 'val/b'), 2))
    write_images(root, [f'all/{number}.ppm' for number in range(12)])  # the same images
    train, test = data.load(folder_config(root))
    assert (len(train), len(test)) == (8, 4)
    assert train.report['left_out'][f'in all{os.sep}, beside train/ and val/']['count'] == 12
    assert (train.report['used'], train.report['duplicate']) == (12, 0)


def test_all_images_for_training_are_copies(root):
    write_images(root, ['test/a/0.ppm', 'test/b/0.ppm'])
    write_images(root, ['train/a/0.ppm', 'train/b/0.ppm'])
    with pytest.raises(UserError, match='no image is left for training'):
        data.load(folder_config(root))


def test_links_and_folders_that_cannot_be_read_are_named(root, monkeypatch):
    write_images(root, named(('cat', 'dog'), 20))
    (root / 'fox').symlink_to(root.parent / 'not_mounted')
    (root / 'owl').mkdir()
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith('owl'):
            raise PermissionError(13, 'Permission denied', os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    train, _ = data.load(folder_config(root))
    assert train.report['skipped'] == 2
    assert train.report['left_out']['broken link'] == {'count': 1, 'names': ['fox']}
    assert train.report['left_out']['folder that cannot be read'] == {'count': 1, 'names': ['owl']}
    said = describe_data(data.Splits(train, None))['left out']
    assert '1 broken link (fox)' in said
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(root.parent / 'cache'))
    write_images(root.parent / 'not_mounted', [f'{number}.ppm' for number in range(4)], first=100)
    again, _ = data.load(folder_config(root))  # mounted now
    assert again.class_names == ('cat', 'dog', 'fox')


def test_thumbnails_of_servers_are_no_photos(root):
    write_images(root, named(('a', 'b'), 10))
    write_images(root, named(('a/@eaDir/0.ppm', 'a/.thumbnails', '__MACOSX/a', 'b/@Recycle'), 3), first=100)
    write_images(root, ['a/._0.ppm', 'b/DSC_1.THM'], first=200)
    train, test = data.load(folder_config(root))
    assert len(train) + len(test) == 20
    assert train.class_names == ('a', 'b')
    assert train.report['left_out']['thumbnails of a camera or a server']['count'] == 4
    assert train.report['left_out']['hidden']['count'] == 2


def test_names_that_are_no_utf8(root):
    write_images(root, named(('plain',), 10))
    for number, name in enumerate((b'caf\xe9', b'caf\xe8')):
        folder = os.path.join(os.fsencode(root), name)
        os.mkdir(folder)
        for image in range(10):
            with open(os.path.join(folder, b'%d\xfc.ppm' % image), 'wb') as file:
                file.write(ppm(1000 + 10 * number + image))
    with open(os.path.join(os.fsencode(root), b'caf\xe9', b'broken\xfc.jpg'), 'wb') as file:
        file.write(b'no image')
    train, test = data.load(folder_config(root, memory_bytes=0))
    assert train.class_names == ('caf\\xe8', 'caf\\xe9', 'plain')
    assert len(train) + len(test) == 30
    text = str(train.report) + str(describe_data(data.Splits(train, test))) + train.files.where(0)
    text.encode()
    assert train.report['left_out']['not an image of a known format']['names'] == ['caf\\xe9/broken\\xfc.jpg']


@pytest.mark.parametrize('seed', range(5))
def test_a_hold_out_by_content_covers_the_classes(seed):
    """No class is held out whole, one image is held out of each whose share is one, and others are as at random."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(30), 1), np.repeat(np.arange(30, 40), 12), [-1] * 20]).astype(np.int32)
    digests = rng.integers(0, 256, (len(labels), 16), np.uint8)
    plain = held_out_by_content(digests, labels, 0.1, 'random')
    covered = held_out_by_content(digests, labels, 0.1, 'grouped')
    assert not covered[labels < 30].any()
    for label in range(30, 40):
        members = labels == label
        assert 1 <= covered[members].sum() < 12
        if plain[members].any():
            np.testing.assert_array_equal(plain[members], covered[members])


def test_most_images_of_other_formats(root):
    write_images(root, named(('a',), 2))
    for number in range(3):
        (root / f'{number}.dcm').write_bytes(bytes(128) + b'DICM' + bytes(40))
    with pytest.raises(UserError, match=r'formats that cannot be read\n3 × DICOM file; 2 can be used'):
        data.load(folder_config(root))


def test_other_files_are_named_as_what_they_are(root):
    write_images(root, named(('a', 'b'), 20))
    files = {
        'scan': (bytes(128) + b'DICM' + bytes(40), 'DICOM file'),
        'set.h5': (b'\x89HDF\r\n\x1a\n' + bytes(40), 'HDF5 file'),
        'part-0': (b'PAR1' + bytes(40), 'parquet file'),
        'photo.avif': (b'\0\0\0\x1cftypavif' + bytes(40), 'AVIF image'),
        'iphone.jpg': (b'\0\0\0\x18ftypheic' + bytes(40), 'HEIC image'),
        'film.mov': (b'\0\0\0\x14ftypqt  ' + bytes(40), 'video'),
        'photo.CR2': (b'II*\0' + bytes(40), 'raw camera file'),
        'photo.raf': (b'FUJIFILMCCD-RAW ' + bytes(40), 'raw camera file'),
        'more.zip': (b'PK\x03\x04' + bytes(40), 'archive'),
        'array.npz': (b'PK\x03\x04' + bytes(40), 'NumPy array'),
        'readme': (b'words', 'no image, nor named as one'),
    }
    for name, (content, _) in files.items():
        (root / name).write_bytes(content)
    train, _ = data.load(folder_config(root))
    named_as = {name: reason for reason, about in train.report['left_out'].items() for name in about['names']}
    assert named_as == {name: reason for name, (_, reason) in files.items()}
    assert train.report['skipped'] == 2  # AVIF and HEIC
