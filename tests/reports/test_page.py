"""The text of the page: it is escaped, self-contained, and gives a reason for each part that it omits."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from etils import epath
from sklearn.metrics import confusion_matrix

from dualcl_jax.reports.content import describe
from dualcl_jax.reports.page import render
from dualcl_jax.reports.shown import LONGEST, shortened
from tests.support.pages import HOSTILE, RECORDS, Parsed, record
from tests.support.random_run import random_run, reported

TINY = 'model.name=tiny'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp('run'), TINY)


@pytest.fixture(scope='module')
def report(run):
    """The run as the subject of a report, and the report's images; tests change copies."""
    return reported(run)


@pytest.fixture(scope='module')
def unlabelled(tmp_path_factory):
    return reported(random_run(tmp_path_factory.mktemp('unlabelled'), TINY, labels=False))


@pytest.fixture(scope='module')
def whole(report):
    subject, samples = report
    return describe(dataclasses.replace(subject, records=RECORDS), samples)


def test_what_a_run_shows(whole):
    text = Parsed(render([whole])).text
    for part in ('Curves', 'Map of the embedding', 'Hardest negatives', 'Nearest neighbours', 'Confusion matrix'):
        assert part in text
    assert 'kNN, backbone 75.0 %' in text
    assert 'contrastive loss 2.800 chance 3.50' in text
    assert '256 images 16×16×3, 4 classes' in text
    assert 'Evaluations' not in text


def test_nothing_is_fetched(whole):
    """The page contains everything that a browser loads; its only address is the namespace of SVG."""
    page = render([whole])
    for tag, attributes in Parsed(page).tags:
        assert tag not in ('iframe', 'object', 'embed', 'base')
        for name in ('src', 'href', 'srcset', 'action', 'poster'):
            assert (attributes.get(name) or 'data:').startswith('data:'), (tag, attributes)
    style = re.search(r'<style>(.*?)</style>', page, re.DOTALL).group(1)
    assert '@import' not in style
    assert all(address.startswith('data:image/') for address in re.findall(r'url\((.*?)\)', style))
    assert set(re.findall(r'https?://[^\s"\'<>]+', page)) == {'http://www.w3.org/2000/svg'}


def test_names_are_text(whole):
    hostile = whole | {
        'name': HOSTILE,
        'class_names': [HOSTILE, *whole['class_names'][1:]],
        'facts': {'data': HOSTILE},
        'config': {'data.path': HOSTILE},
        'missing': {'evaluations': HOSTILE},
    }
    page = render([hostile])
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.tags].count('script') == 2
    assert 'img' not in [tag for tag, _ in parsed.tags]
    assert not any(name.startswith('on') for _, attributes in parsed.tags for name in attributes)
    assert HOSTILE in parsed.text
    assert '49' not in re.findall(r'<h1>.*?</h1>', page)[0]
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page).group(1))
    assert data['runs'][0]['name'] == HOSTILE


def test_a_metric_that_never_has_a_value_has_no_curve(unlabelled):
    """Without labels, the share of negatives of the anchor's class is null in every record."""
    subject, samples = unlabelled
    records = [{'step': 1, 'wall_time_s': 1.0, 'train/loss': 2.0, 'train/false_negative_rate': None}]
    found = describe(dataclasses.replace(subject, records=records), samples)
    assert found['series'] == {'train/loss': [(1.0, 2.0)]}
    assert "Negatives of the anchor's class" not in render([found])


def test_the_confusion_matrix_agrees_with_scikit_learn(whole, report):
    _, samples = report
    want = confusion_matrix(samples.labels, whole['map']['predictions'])
    np.testing.assert_array_equal(whole['confusion']['counts'], want)
    assert whole['confusion']['accuracy'] == pytest.approx(np.trace(want) / want.sum())
    wrong = want - np.diag(np.diag(want))
    assert whole['confusion']['worst'][0]['count'] == wrong.max() > 0


@pytest.mark.parametrize('unseen', ['left_out', 'wrong'])
def test_images_of_classes_without_training_images(report, unseen):
    """They cannot be classified: the matrix and the map leave them out as the kNN accuracy of the run does."""
    subject, samples = report
    labels = subject.splits.train.labels.copy()
    labels[labels == 3] = -1
    splits = subject.splits._replace(train=dataclasses.replace(subject.splits.train, labels=labels))
    config = subject.config.copy_and_resolve_references()
    config.monitor.unseen = unseen
    found = describe(dataclasses.replace(subject, splits=splits, config=config), samples)
    of_3 = samples.labels == 3
    assert 0 < of_3.sum() < len(of_3)
    predicted = np.array(found['map']['predictions'])
    np.testing.assert_array_equal(predicted < 0, of_3 & (unseen == 'left_out'))
    scored = predicted >= 0
    assert found['confusion']['examples'] == scored.sum()
    assert found['confusion']['accuracy'] == (predicted == samples.labels)[scored].mean()
    words = f'{of_3.sum()} held-out images of other classes are left out.'
    assert (words in Parsed(render([found])).text) == (unseen == 'left_out')


def test_the_share_of_the_softmax_is_shown(whole):
    assert [part for part, _ in whole['softmax']['shares']] == [64, 32, 16, 8, 4, 2]
    shares = [share for _, share in whole['softmax']['shares']]
    assert shares == sorted(shares)
    count = whole['softmax']['images']
    assert f'of the softmax, τ 0.1, {count} images {100 * shares[0]:.1f} %' in Parsed(render([whole])).text


def test_without_labels(unlabelled):
    found = describe(*unlabelled)
    text = Parsed(render([found])).text
    assert 'The data set has no labels; the parts that need them are left out.' in text
    assert 'No matrix: the training images have no labels.' in text
    assert 'of its class' not in text
    assert 'allowed negatives selected' in text
    assert found['map']['predictions'] is None


def test_one_class(report):
    subject, samples = report
    train = dataclasses.replace(subject.splits.train, labels=np.zeros_like(subject.splits.train.labels))
    found = describe(dataclasses.replace(subject, splits=subject.splits._replace(train=train)), samples)
    assert 'No matrix: all labels are of one class.' in Parsed(render([found])).text


def test_without_a_test_split_or_a_queue(tmp_path):
    run = random_run(tmp_path, TINY, 'queue.size=0')
    np.savez(tmp_path / 'data.npz', train_images=np.load(tmp_path / 'data.npz')['train_images'])
    text = Parsed(render([describe(*reported(run))])).text
    assert 'No matrix: there is no test split.' in text
    assert '256 training images' in text
    assert 'There is no queue: the negatives come from the batch' in text


def test_a_sharded_queue(tmp_path, whole):
    """The run's selector works on all devices at once; the page shows what one device selects from the whole queue."""
    found = describe(*reported(random_run(tmp_path, TINY, 'queue.sharded=True')))
    assert found['gallery'] == whole['gallery']
    assert found['map']['losses'] == whole['map']['losses']


def test_an_empty_queue(run):
    empty = run.state.queue.replace(filled=0 * run.state.queue.filled)
    run = dataclasses.replace(run, state=run.state.replace(queue=empty))
    text = Parsed(render([describe(*reported(run))])).text
    assert 'No slot of the queue is an allowed negative of this anchor.' in text
    assert 'of the softmax' not in text


def test_an_encoder_that_diverged(run):
    params = jax.tree.map(lambda leaf: leaf, run.state.params)  # dictionaries of its own
    params['backbone']['conv1']['kernel'] *= np.nan
    run = dataclasses.replace(run, state=run.state.replace(params=params))
    text = Parsed(render([describe(*reported(run))])).text
    assert 'No map: the features are not finite' in text
    assert 'No matrix: the features are not finite' in text


def test_evaluations_are_shown(tmp_path, report):
    folder = tmp_path / 'evaluation' / 'on_other'
    folder.mkdir(parents=True)
    (folder.parent / 'knn.json').write_text(json.dumps({'records': [record(), record(k=200, value=0.7)]}))
    (folder / 'linear.json').write_text(json.dumps({'records': [record('linear', k=None, tau=None, interval=None)]}))
    (folder.parent / 'notes.json').write_text('[]')
    edited = [record('edited'), record('edited', details=None)]
    (folder.parent / 'edited.json').write_text(json.dumps({'records': edited}))
    subject, samples = report
    found = describe(dataclasses.replace(subject, folder=epath.Path(tmp_path)), samples)
    text = Parsed(render([found])).text
    assert 'knn 2 results' in text
    assert '0.6634 0.6400 to 0.6800 query backbone 20 0.1 rate 0.03 cifar10, test, 10,000, step 9' in text
    assert 'linear 1 result' in text
    assert 'edited 1 result' not in text
    assert 'These files in evaluation/ are not results of an evaluation: edited.json, notes.json.' in text


def test_runs_side_by_side(whole):
    other = whole | {'name': 'other', 'config': whole['config'] | {'loss.symmetric': False}, 'evaluations': [record()]}
    text = Parsed(render([whole, other])).text
    assert 'What differs field' in text
    assert 'loss.symmetric True False' in text
    assert '– 0.6634' in text
    assert text.count('An orange frame marks') == 1


def test_results_of_two_runs_share_a_row_if_their_settings_agree(whole):
    def linear(rate, top1, **fields):
        details = {'learning_rate': rate, 'validation_top1': top1, 'sweep': 16}
        return record('linear', k=None, tau=None, details=details, **fields)

    def knn(fingerprint):
        return record(data_set='folder', data_fingerprint=fingerprint * 64)

    first = whole | {'evaluations': [linear(0.1, 0.61, value=0.6), knn('b'), knn('c'), record(), record(value=0.5)]}
    second = whole | {
        'evaluations': [linear(0.3, 0.71, value=0.7), knn('c'), record('semi', details={'fraction': 0.1})]
    }
    second['evaluations'].append(record('semi', details={'fraction': 0.01}))
    text = Parsed(render([first, second])).text
    assert 'linear 1 result' in text
    assert '0.6000 0.6400 to 0.6800 0.7000 0.6400 to 0.6800 query backbone sweep 16 cifar10, test' in text
    assert 'knn 4 results' in text
    assert '– query backbone 20 0.1 rate 0.03 folder bbbbbbbb, test' in text
    assert '0.6634 0.6400 to 0.6800 0.6634 0.6400 to 0.6800 query backbone 20 0.1 rate 0.03 folder cccccccc' in text
    assert 'semi 2 results' in text


def test_long_curves_are_thinned(report):
    subject, samples = report
    records = [{'step': step, 'wall_time_s': 1.0, 'train/loss': step / 1e4} for step in range(10_000)]
    (series,) = describe(dataclasses.replace(subject, records=records), samples)['series'].values()
    assert len(series) == 400
    assert series[0] == (12.0, 0.0012)


def test_longer_texts_are_cut():
    assert shortened('a\n b\tc') == 'a b c'
    assert shortened('x' * 1000) == 'x' * (LONGEST - 1) + '…'
