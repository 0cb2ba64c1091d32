"""Data sets that were read wrongly before, from loading to reports; skipped where they are not at hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from dualcl_jax import data, evaluate, main, prepare
from dualcl_jax.data.images.decode import UnusableError, examine
from tests.support.cases import case, unpacked
from tests.support.image_folders import folder_config, named, write_images
from tests.support.runs import records

SMALL = ('model.name=tiny', 'train.batch_size=8', 'train.steps=2', 'checkpoint.every_steps=2', 'monitor.every_epochs=0')


pytestmark = pytest.mark.usefixtures('cache')


SPLITS = {
    # case: images for training and testing, classes, labelled for testing, words of what is left out
    'extra': ((24, 8), ('a', 'b'), 8, 'unlabeled/0.png'),
    'flatval': ((24, 10), ('n01440764', 'n01443537'), 0, ''),
    'kaggle': ((24, 8), ('cat', 'dog'), 8, 'test/0.png'),
    'stray': (24, ('cat', 'dog'), None, 'preview.png'),
    'hf': (24, ('cat', 'dog'), None, 'metadata.csv'),
    'dangle': (24, ('cat', 'dog'), None, 'broken link'),
    'latin1': (36, ('caf\\xe9', 'na\\xefve', 'straße'), None, ''),
    'raw': (24, ('a', 'b'), None, 'raw camera file'),
}


@pytest.mark.parametrize('name', SPLITS)
def test_splits_and_classes(tmp_path, name):
    counts, classes, labelled, words = SPLITS[name]
    train, test = data.load(folder_config(unpacked(name, tmp_path)))
    assert test is not None
    assert ((len(train), len(test)) if isinstance(counts, tuple) else len(train) + len(test)) == counts
    assert train.class_names == classes
    assert (train.labels >= 0).all()
    assert int((test.labels >= 0).sum()) == (len(test) if labelled is None else labelled)
    assert words in json.dumps(train.report['left_out'])


@pytest.mark.parametrize('table', ['pandas.csv', 'noext.csv', 'hf/metadata.csv'])
def test_tables(tmp_path, table):
    root = unpacked('hf', tmp_path)
    path = root / 'metadata.csv' if '/' in table else case(table)
    train, _ = data.load(folder_config(root, labels=str(path), test_fraction=0.0))
    assert train.class_names == ('cat', 'dog')
    assert train.labels.tolist() == [0, 1] * 12
    assert '0 rows name no file, 0 files are in no row' in train.report['labels']


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('two_channel_minisblack.tif', '2 channels'),
        ('two_channel_planar.tif', '2 channels'),
        ('rgb_nir_extrasample0.tif', '4 channels'),
        ('rgb_nir_as_alpha.tif', 'declared as transparency'),
    ],
)
def test_channels_are_not_lost(name, reason):
    with pytest.raises(UnusableError, match=reason):
        examine(case(name).read_bytes())


@pytest.mark.parametrize('name', ['u12_in_16.png', 'png_text_2MB.png', 'png_icc_1_5MB.png'])
def test_whole_images_are_used(tmp_path, name):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / name).write_bytes(case(name).read_bytes())
    train, _ = data.load(folder_config(tmp_path / 'images', stored_size=40))
    assert len(np.unique(train.examples(np.arange(1)))) > 100


def test_arrays_as_keras_names_them():
    fields = {'name': 'npz', 'data_dir': ''}
    train, test = data.load(folder_config(case('keras_mnist_like.npz'), **fields))
    assert [split.arrays.shape for split in (train, test)] == [(32, 28, 28, 1), (8, 28, 28, 1)]
    assert (train.labels >= 0).all()
    assert train.report['splits']['train']['folder'] == 'x_train'


def test_what_was_taken_is_said_before_training(trainer, tmp_path):
    root = unpacked('kaggle', tmp_path)
    done = trainer.run(tmp_path / 'run', *SMALL, 'data.name=folder', f'data.path={root}')
    said = ' '.join(done.out.split())
    assert 'train: train/ (24 images, 24 labelled); test: val/ (8 images, 8 labelled)' in said
    assert '2: cat, dog; by the subfolders of train/' in said
    assert '10 in test/, beside train/ and val/ (test/0.png, test/1.png, test/2.png, …)' in said
    report = json.loads((tmp_path / 'run' / 'data_report.json').read_text())
    assert report['splits']['test'] == {'folder': 'val/', 'images': 8, 'labelled': 8}
    assert report['splits']['left_out'] == ['test/']
    assert report['classes'] == {'cat': {'train': 12, 'test': 4}, 'dog': {'train': 12, 'test': 4}}
    assert report['left_out']['in test/, beside train/ and val/']['count'] == 10
    assert report['files']['not_taken'] == 10


@pytest.mark.slow
def test_names_that_are_no_utf8_from_training_to_packing(trainer, in_process, tmp_path):
    root = unpacked('latin1', tmp_path)
    done = trainer.run(
        tmp_path / 'run', *SMALL, 'data.name=folder', f'data.path={root}', 'log.pictures=True', 'data.image_size=16'
    )
    assert 'caf\\xe9' in done.out
    page = (tmp_path / 'run' / 'report.html').read_text(encoding='utf-8')
    assert 'straße' in page
    flags = ('--dataset=mine', f'--folder={root}', f'--data_dir={tmp_path / "packed"}')
    done = in_process(prepare.main, *flags)
    assert done.status == 0, done
    packed = folder_config('', name='mine', data_dir=str(tmp_path / 'packed'))
    train, test = data.load(packed)
    assert train.class_names == ('caf\\xe9', 'na\\xefve', 'straße')
    assert len(train) + len(test) == 36


@pytest.mark.slow
def test_a_long_tail_is_evaluated(trainer, in_process, tmp_path):
    root = unpacked('lfw', tmp_path)
    trainer.run(tmp_path / 'run', *SMALL, 'data.name=folder', f'data.path={root}', 'data.image_size=16')
    quick = ('--config.linear.epochs=2', '--config.semi.fractions=0.1', '--config.semi.epochs=1')
    quick += ('--config.finetune.epochs=1', '--config.few_shot.draws=2')
    done = in_process(evaluate.main, f'--workdir={tmp_path / "run"}', '--protocols=all', *quick)
    assert done.status == 0, done
    found = json.loads(done.out.splitlines()[-1])['records']
    assert {record['protocol'] for record in found} >= {'knn', 'linear', 'few_shot', 'retrieval', 'finetune', 'semi'}
    said = ' '.join(done.out.split())
    assert 'the number of labelled training images' in said
    assert 'few_shot with 5 images a class: without 40 classes that have fewer' in said


@pytest.mark.parametrize('old', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stored_run_keeps_its_hold_out(trainer, in_process, tmp_path, old):
    """A run of a version that held out at random resumes with the same images; a new one holds out by class."""
    write_images(tmp_path / 'images', named(('a', 'b', 'c'), 12))
    fields = (*SMALL, 'data.name=folder', f'data.path={tmp_path / "images"}', 'data.validation_fraction=0.25')
    workdir = tmp_path / 'run'
    trainer.run(workdir, *fields, *(('data.hold_out=random',) if old else ()))
    stored = json.loads((workdir / 'config.json').read_text())
    assert stored['data']['hold_out'] == ('random' if old else 'grouped')
    fingerprints = json.loads((workdir / 'data_report.json').read_text())
    if old:
        for field in ('hold_out', 'path_column', 'label_column'):
            del stored['data'][field]
        (workdir / 'config.json').write_text(json.dumps(stored))
    trainer.run(workdir, *fields)
    again = json.loads((workdir / 'data_report.json').read_text())
    for split in ('train', 'test'):
        assert again[split]['fingerprint'] == fingerprints[split]['fingerprint']
    assert len(records(workdir)) > 0
    counts = {name: about['test'] for name, about in again['classes'].items()}
    total = sum(counts.values())
    assert old or max(counts.values()) - min(counts.values()) <= 1, (counts, total)


def test_a_folder_that_cannot_be_understood_stops_in_one_line(in_process, tmp_path: Path):
    write_images(tmp_path / 'images', [f'{number}.ppm' for number in range(8)])
    (tmp_path / 'table.csv').write_text('file,site,doctor\n')
    fields = ('--config.data.name=folder', f'--config.data.path={tmp_path / "images"}')
    flags = ('--config=tests/support/quick_config.py', f'--workdir={tmp_path / "run"}', '--dry_run', *fields)
    done = in_process(main.main, *flags, f'--config.data.labels={tmp_path / "table.csv"}')
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert 'data.label_column to one of file, site, doctor' in done.err
