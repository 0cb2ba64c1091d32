"""Folders of images: bad files, labels and splits."""

import json
import shutil

import numpy as np
import pytest

from dualcl_jax import data
from dualcl_jax.data.images import folder
from dualcl_jax.data.images.encoded import EncodedSource
from dualcl_jax.data.source import ArraySource
from dualcl_jax.system.errors import UserError
from tests.support.bad_files import encode, photo, write_bad_files
from tests.support.image_folders import folder_config, write_classes

pytestmark = pytest.mark.usefixtures('cache')


def test_every_kind_of_bad_file_has_its_outcome(images):
    expected = write_bad_files(images)
    assert len(expected) > 30
    train, test = data.load(folder_config(images, max_skipped=0.9))
    report = train.report
    named = {file['path']: (file['outcome'], file['reason']) for file in report['files']}
    for name, (outcome, reason) in expected.items():
        if outcome == 'used':
            assert name not in named
        else:
            assert named[name][0] == outcome, (name, named[name])
            assert reason in named[name][1], (name, named[name])
    assert set(named) <= set(expected)
    outcomes = [outcome for outcome, _ in expected.values()]
    assert len(train) == report['used'] == outcomes.count('used') + outcomes.count('converted')
    assert report['found'] == len(expected)
    assert test is None
    assert set(train.labels) == {-1}
    json.dumps(report)


def test_too_many_bad_files_stop_the_run(images):
    write_bad_files(images)
    with pytest.raises(UserError, match=r'images cannot be used, more than config\.data\.max_skipped=0\.05') as error:
        data.load(folder_config(images))
    assert len(str(error.value).splitlines()) == 3
    assert '.jpg (' in str(error.value)


def test_conversions_give_the_expected_pixels(images):
    """Compares the decoded pixels with the stored ones."""
    sixteen = np.full((16, 16), 200 * 256 + 255, np.uint16)
    clear = np.dstack([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)])
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 255  # white at the top
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6  # stored with a quarter turn to the left
    (images / 'a.png').write_bytes(encode(sixteen, 'PNG'))
    (images / 'b.png').write_bytes(encode(clear, 'PNG'))
    (images / 'c.jpg').write_bytes(encode(np.rot90(upright).copy(), 'JPEG', exif=turned, quality=95))
    (images / 'd.png').write_bytes(encode(upright, 'PNG'))
    train, _ = data.load(folder_config(images, image_size=16, stored_size=16))
    found = train.examples(np.arange(4)).astype(int)
    np.testing.assert_array_equal(found[0], 200)
    np.testing.assert_array_equal(found[1], 255)
    np.testing.assert_allclose(found[2], upright, atol=12)
    np.testing.assert_array_equal(found[3], upright)


@pytest.mark.parametrize('labels', ['auto', 'subfolders'])
def test_labels_by_subfolder_and_a_share_held_out(images, labels):
    write_classes(images)
    train, test = data.load(folder_config(images, labels=labels))
    assert train.class_names == test.class_names == ('ant', 'bee')
    assert len(train) + len(test) == 20
    assert len(test) > 0
    before = {photo(seed).tobytes() for seed in [*range(10), *range(100, 110)]}
    assert len(before) == 20
    for source in (train, test):
        assert set(source.labels) <= {0, 1}
    (images / 'bee' / 'new.png').write_bytes(encode(photo(999), 'PNG'))
    grown, grown_test = data.load(folder_config(images, labels=labels))
    kept = {test.examples(np.array([i])).tobytes() for i in range(len(test))}
    assert kept <= {grown_test.examples(np.array([i])).tobytes() for i in range(len(grown_test))}
    assert grown.fingerprint != train.fingerprint or grown_test.fingerprint != test.fingerprint


def test_of_several_copies_one_with_a_class_is_used(images):
    write_classes(images, count=3)
    for path in ('ant/copy.png', 'ant/0copy.png', 'other/unlabelled.png'):
        (images / path).parent.mkdir(exist_ok=True)
        shutil.copy(images / 'bee' / '0.png', images / path)
    table = [f'{name}/{i}.png,{name}' for name in ('ant', 'bee') for i in range(3)]
    (images.parent / 'table.csv').write_text('\n'.join(['path,label', *table, 'other/unlabelled.png,owl']))
    train, _ = data.load(folder_config(images, labels=str(images.parent / 'table.csv'), test_fraction=0.0))
    assert train.class_names == ('ant', 'bee', 'owl')
    assert train.labels.tolist() == [0] * 3 + [1] * 3
    assert train.report['left_out'] == {
        'same content as another file': {'count': 2, 'names': ['ant/0copy.png', 'ant/copy.png']},
        'same content as another file, with another class': {'count': 1, 'names': ['other/unlabelled.png']},
    }
    reasons = {file['path']: (file['outcome'], file['reason']) for file in train.report['files']}
    assert reasons['ant/copy.png'] == ('duplicate', 'same content as bee/0.png')
    assert reasons['other/unlabelled.png'] == ('duplicate', 'same content as bee/0.png, with another class')


def test_copies_in_another_split_do_not_replace_the_first(images):
    write_classes(images / 'train', count=3)
    (images / 'test').mkdir()
    shutil.copy(images / 'train' / 'ant' / '0.png', images / 'test' / 'x.png')
    shutil.copy(images / 'train' / 'ant' / '0.png', images / 'train' / 'bee' / 'x.png')
    train, test = data.load(folder_config(images))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1, 1], [-1])
    assert train.report['left_out'] == {
        'same content as another file': {'count': 2, 'names': ['train/ant/0.png', 'train/bee/x.png']}
    }


def test_flat_or_unlabelled(images):
    write_classes(images, classes=('2019/may', '2019/june'))
    flat, test = data.load(folder_config(images))
    assert (flat.class_names, test) == (None, None)
    none, _ = data.load(folder_config(images, labels='none'))
    assert set(none.labels) == {-1}


def test_train_and_val_folders_are_the_splits(images):
    write_classes(images / 'train', count=6)
    write_classes(images / 'val', classes=('ant', 'bee'), count=4)
    (images / 'val' / 'ant' / 'other.png').write_bytes(encode(photo(500), 'PNG'))
    train, test = data.load(folder_config(images))
    assert (len(train), train.class_names) == (12, ('ant', 'bee'))
    assert len(test) == 1  # the others are also in train
    assert test.labels.tolist() == [0]


def test_labels_by_csv(images, tmp_path):
    write_classes(images)
    (tmp_path / 'labels.csv').write_text('label,path\nred,bee/1.png\nblue,ant/3.png\nred,./ant/2.png\nred,gone.png\n')
    train, _ = data.load(folder_config(images, labels=str(tmp_path / 'labels.csv'), test_fraction=0.0))
    assert train.class_names == ('blue', 'red')
    assert [(label == -1).sum() for label in [train.labels]] == [17]
    assert train.labels[[2, 3, 11]].tolist() == [1, 0, 1]  # ant/2, ant/3, bee/1
    for text, message in (
        ('bee/1.png', r'line 1 has 1 columns'),
        ('bee/1.png,a\nbee/1.png,b', r'line 2 gives bee/1\.png a second class'),
        ('path,label\nbee/1.png,red, or so', r'line 2 has 3 columns, the first one 2; put values with separators in'),
        ('x.png,a', r'names none of the images .* such as ant/0\.png'),
        ('\xff', 'names none|line 1'),
    ):
        (tmp_path / 'bad.csv').write_text(text)
        with pytest.raises(UserError, match=message):
            data.load(folder_config(images, labels=str(tmp_path / 'bad.csv')))
    with pytest.raises(UserError, match=r'data\.labels=none\.csv: cannot be read'):
        data.load(folder_config(images, labels='none.csv'))


def test_the_memory_budget_decides(images):
    write_classes(images)
    size = folder.stored_size(folder_config(images))
    assert size == 19
    needed = 20 * size * size * 3
    small, small_test = data.load(folder_config(images, memory_bytes=needed))
    large, large_test = data.load(folder_config(images, memory_bytes=needed - 1))
    assert isinstance(small, ArraySource)
    assert isinstance(large, EncodedSource)
    for left, right in ((small, large), (small_test, large_test)):
        np.testing.assert_array_equal(left.examples(np.arange(len(left))), right.examples(np.arange(len(right))))
        np.testing.assert_array_equal(left.labels, right.labels)
        assert left.fingerprint == right.fingerprint
        names = right.display(np.arange(len(right)))
        assert left.display(np.arange(len(left))) == names
        assert [name.split('/')[0] for name in names] == [right.class_names[label] for label in right.labels]
    limited, _ = data.load(folder_config(images, limit=5))
    assert limited.display(np.arange(2)) == small.display(data.source.limit_indices(len(small), 5)[:2])
    np.testing.assert_array_equal(
        limited.examples(np.arange(2)), small.examples(data.source.limit_indices(len(small), 5)[:2])
    )


def test_nothing_there(images, tmp_path):
    for path, message in (
        (images, 'no image of at least'),
        (tmp_path / 'nowhere', 'no such folder'),
        ('', 'is empty'),
        ('gs://x', 'local'),
    ):
        with pytest.raises(UserError, match=r'data\.path.*' + message):
            data.load(folder_config(path))
