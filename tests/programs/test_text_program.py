"""Runs of text, whole: what they measure while they train, their evaluation and their report."""

import dataclasses
import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dualcl_jax import embed as embed_program
from dualcl_jax import evaluate, report
from dualcl_jax.data.text.tokens import Tokenizer
from dualcl_jax.evaluators import evaluate as evaluation
from dualcl_jax.evaluators.benchmarks.classification import read_classification
from dualcl_jax.evaluators.benchmarks.passages import read_passages
from dualcl_jax.evaluators.benchmarks.sts import read_sts
from dualcl_jax.evaluators.encoder_source import _baselines as baselines_of
from dualcl_jax.evaluators.encoder_source import from_export, from_workdir
from dualcl_jax.evaluators.protocols import NAMES, kind_of, protocols_of
from dualcl_jax.evaluators.task import Task
from dualcl_jax.method.state import create_train_state
from dualcl_jax.models.exports import FORMATS
from dualcl_jax.reports.content import describe
from dualcl_jax.reports.subject import read_subject
from dualcl_jax.system.errors import UserError
from dualcl_jax.training.loop import train
from dualcl_jax.training.plan import make_plan
from dualcl_jax.workdir.export import describe as exported
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.evaluations import printed_records
from tests.support.labelled_text import CLASSES, HOSTILE, text_config, write_sentences
from tests.support.pages import Parsed
from tests.support.runs import column, contents, records, summary
from tests.support.text_sets import write_classification, write_passages, write_sts

STS = 'monitor/sts_dev_spearman'


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('text')
    write_sts(folder / 'sts')
    write_passages(folder / '[bold]passages.tsv')
    write_classification(folder / 'classification')
    write_sentences(folder / 'sentences.csv')
    return folder


@pytest.fixture(scope='module')
def workdir(files) -> Path:
    config = text_config(files / 'sentences.csv')
    config.sts.path = str(files / 'sts')
    assert train(config, str(files / 'run'))
    return files / 'run'


def flags(files: Path) -> tuple[str, ...]:
    passages = f'--config.retrieval.path={files / "[bold]passages.tsv"}'
    return passages, f'--config.transfer.path={files / "classification"}', '--config.transfer.strengths=0.1'


@pytest.fixture(scope='module')
def features(workdir):
    """Functions of sentences to features [N, F] of the trained backbone and of the random one."""
    run = open_saved_run(str(workdir))
    tokenizer = Tokenizer.read(str(workdir / 'tokenizer.json'), run.config.text.length)
    drawn = create_train_state(run.method).variables

    def embed(sentences, variables=run.state.variables):
        encoded = tokenizer.encode(sentences)
        view = {'tokens': encoded['tokens'][:, 0], 'length': encoded['length'][:, 0]}
        return np.asarray(run.method.encoder.apply(variables, view, train=False).backbone)

    return embed, lambda sentences: embed(sentences, drawn)


@pytest.fixture(scope='module')
def evaluated(workdir, files):
    """The records of all protocols of text."""
    overrides = [flag.removeprefix('--config.') for flag in flags(files)]
    source, protocols = from_workdir(str(workdir), 'latest'), ('sts', 'retrieval', 'transfer')
    return evaluation.evaluate(source, protocols, ('query',), source.layers, overrides, str(files / 'out'))['records']


def value(found, **wanted):
    (record,) = (record for record in found if all(record[name] == of for name, of in wanted.items()))
    return record['value']


def test_the_monitor_measures_sts_b_dev(workdir, files, features):
    steps = [record['step'] for record in records(workdir) if f'{STS}_backbone' in record]
    assert steps[0] == 0
    assert steps[-1] == 8
    found = summary(workdir)
    dev = read_sts(str(files / 'sts'))[0]
    for name, embed in zip(('sts_dev_spearman', 'sts_dev_spearman_before_training'), features, strict=True):
        similarities = np.diag(cosine_similarity(embed(dev.first), embed(dev.second))).round(6)
        assert found[name] == pytest.approx(spearmanr(similarities, dev.scores).statistic, abs=5e-3)
    assert found['sts_dev_spearman'] == column(workdir, f'{STS}_backbone')[-1]
    assert found['sts_dev_spearman_projection'] == column(workdir, f'{STS}_projection')[-1]
    assert len(column(workdir, f'{STS}_tf_idf')) == 1
    assert found['sts_dev_spearman_tf_idf'] > 0.5
    assert found['knn_top1'] is not None
    assert (workdir / 'figures' / 'curves.png').exists()


def test_sts_is_spearmans_correlation(evaluated, files, features):
    sets = read_sts(str(files / 'sts'))
    for name, embed in zip(('query', 'random'), features, strict=True):
        values = []
        for pairs in sets:
            similarities = np.diag(cosine_similarity(embed(pairs.first), embed(pairs.second))).round(6)
            expected = spearmanr(similarities, pairs.scores).statistic
            wanted = {'data_set': pairs.name, 'split': pairs.split, 'encoder': name, 'layer': 'backbone'}
            assert value(evaluated, metric='spearman', **wanted) == pytest.approx(expected, abs=5e-3)
            values += [expected] if pairs.split == 'test' else []
        average = value(evaluated, metric='spearman', data_set='avg7', encoder=name, layer='backbone')
        assert average == pytest.approx(np.mean(values), abs=1e-3)
    (record,) = (r for r in evaluated if (r['data_set'], r['encoder'], r['layer']) == ('STS12', 'query', 'projection'))
    assert (record['examples'], record['details']) == (120, {'pairs_without_score': 1})
    assert record['interval']['low'] < record['value'] < record['interval']['high']


def test_alignment_and_uniformity_of_sts_b(evaluated, files, features):
    dev = read_sts(str(files / 'sts'))[0]
    rows = {sentence: row for row, sentence in enumerate(dict.fromkeys(dev.first + dev.second))}
    found = features[0](list(rows))
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    similar = [pair for *pair, score in zip(dev.first, dev.second, dev.scores, strict=True) if score > 4]
    alignment = np.mean([np.sum((found[rows[one]] - found[rows[other]]) ** 2) for one, other in similar])
    distances = np.sum((found[:, None] - found[None]) ** 2, axis=2)[np.triu_indices(len(found), 1)]
    wanted = {'data_set': 'STS-B', 'split': 'dev', 'encoder': 'query', 'layer': 'backbone'}
    assert value(evaluated, metric='alignment', **wanted) == pytest.approx(alignment, abs=1e-4)
    uniformity = np.log(np.mean(np.exp(-2 * distances)))
    assert value(evaluated, metric='uniformity', **wanted) == pytest.approx(uniformity, abs=1e-4)


def test_retrieval_ranks_passages(evaluated, files, features):
    found = read_passages(str(files / '[bold]passages.tsv'))
    similarities = cosine_similarity(features[0](found.queries), features[0](found.passages))
    ranks = [1 + int((row > row[mine]).sum()) for row, mine in zip(similarities, found.own, strict=True)]
    wanted = {'protocol': 'retrieval', 'data_set': '[bold]passages', 'encoder': 'query', 'layer': 'backbone'}
    assert value(evaluated, metric='mrr', **wanted) == pytest.approx(np.mean([1 / r if r <= 10 else 0 for r in ranks]))
    for k in (1, 5, 10):
        assert value(evaluated, metric='recall', k=k, **wanted) == np.mean(np.array(ranks) <= k)
    assert value(evaluated, metric='mrr', protocol='retrieval', encoder='tf_idf', layer='words') > 0.8


def test_transfer_is_scikit_learns_regression(evaluated, files, features):
    for part in read_classification(str(files / 'classification')):
        wanted = {'protocol': 'transfer', 'data_set': part.name, 'encoder': 'query', 'layer': 'backbone'}
        found = value(evaluated, metric='top1', **wanted)
        assert 0.5 < found <= 1
        embedded, model = features[0](part.sentences), make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
        if len(part.test):
            rows = np.concatenate([part.train, part.validation])
            expected = model.fit(embedded[rows], part.labels[rows]).score(embedded[part.test], part.labels[part.test])
        else:
            folds = StratifiedKFold(10, shuffle=True, random_state=0)
            expected = np.mean(cross_val_predict(model, embedded, part.labels, cv=folds) == part.labels)
        assert found == pytest.approx(expected, abs=0.03)


def test_baselines_stand_beside_each_record(evaluated):
    places = {(record['encoder'], record['layer']) for record in evaluated}
    both = {(encoder, layer) for encoder in ('query', 'random') for layer in ('backbone', 'projection')}
    assert places == both | {('tf_idf', 'words')}
    kinds = [
        sorted(
            (record['protocol'], record['metric'], record['data_set'], record['split'], record['k'] or 0)
            for record in evaluated
            if (record['encoder'], record['layer']) == place
        )
        for place in sorted(places)
    ]
    assert all(kind == kinds[0] for kind in kinds)
    (idf,) = {record['details']['idf'] for record in evaluated if record['encoder'] == 'tf_idf'}
    assert idf.endswith('training examples')


def test_the_table_names_the_sets(in_process, workdir, files, tmp_path):
    found = in_process(
        evaluate.main, f'--workdir={workdir}', '--protocols=sts,retrieval', f'--output={tmp_path}', *flags(files)[:1]
    )
    assert len(printed_records(found)) > 40
    rows = [' '.join(line.replace('│', ' ').split()) for line in found.out.splitlines()]
    for start in ('sts spearman STS-B dev 0.', 'sts spearman avg7 0.', 'retrieval mrr [bold]passages, k 10 0.'):
        assert any(row.startswith(start) for row in rows), start
    assert 'note: left out: pairs without a score, 1 of STS12, 1 of STS13' in ' '.join(found.out.split())
    written = json.loads((tmp_path / 'sts.json').read_text())
    assert written['settings'] == {'path': str(files / 'sts')}


def test_all_stands_for_the_protocols_of_a_kind():
    of_text = evaluation.chosen('all', NAMES, '--protocols', protocols_of('text'))
    assert of_text == ('knn', 'linear', 'few_shot', 'retrieval', 'clustering', 'structure', 'sts', 'transfer')
    of_images = evaluation.chosen('all', NAMES, '--protocols', protocols_of('images'))
    assert set(NAMES) - set(of_images) == {'sts', 'transfer'}
    assert protocols_of('text')['retrieval'] != protocols_of('images')['retrieval']
    assert {kind_of(name) for name in ('sts', 'transfer')} == {'text'}


def test_notes_on_text_say_examples(workdir):
    source = from_workdir(str(workdir), 'latest')
    config = evaluation.resolve(source, ['knn.k=5,1000', 'few_shot.shots=1000'])
    assert [type(k) for k in config.knn.k] == [int, int]
    splits, _ = evaluation._load(source, config, ['knn'], [])
    task = Task(source, splits, config, ('query',), ('backbone',))
    assert evaluation.notes(task, ['knn', 'few_shot']) == [
        f'knn: k 1000 becomes {len(splits.train)}, the number of labelled training examples',
        'left out: few_shot with 1000 examples a class: too few classes have that many',
    ]


def test_benchmarks_need_no_training_data(in_process, workdir, files, tmp_path):
    away = files / 'sentences.csv'
    away.rename(tmp_path / 'away.csv')
    try:
        found = in_process(evaluate.main, f'--workdir={workdir}', '--protocols=retrieval', *flags(files)[:1])
        refused = in_process(
            evaluate.main, f'--workdir={workdir}', '--protocols=retrieval,structure', *flags(files)[:1]
        )
    finally:
        (tmp_path / 'away.csv').rename(away)
    (idf,) = {record['details']['idf'] for record in printed_records(found) if record['encoder'] == 'tf_idf'}
    assert idf == 'the sentences that are measured'
    printed = ' '.join(found.out.split())
    assert 'note: TF-IDF counts the words of the sentences that are measured (data.path=' in printed
    assert 'retrieval mrr [bold]passages, k 10' in printed.replace('│', '').replace('  ', ' ')
    assert refused.status == 2
    assert 'no such file or folder' in refused.err


def test_an_exported_encoder_is_measured_with_its_tokenizer(in_process, workdir, files, tmp_path, evaluated):
    file = tmp_path / 'encoder.safetensors'
    file.write_bytes(FORMATS['safetensors'](*exported(open_saved_run(str(workdir)), encoder='query', projection=False)))
    other = tmp_path / 'other.csv'
    other.write_text('sentence,class\n' + '\n'.join(f'a word {number},{number % 2}' for number in range(60)))
    found = printed_records(in_process(evaluate.main, f'--exported={file}', '--protocols=retrieval', *flags(files)[:1]))
    wanted = {'protocol': 'retrieval', 'metric': 'mrr', 'encoder': 'query', 'layer': 'backbone'}
    assert value(found, **wanted) == pytest.approx(value(evaluated, **wanted), abs=1e-6)
    assert {record['encoder'] for record in found} == {'query', 'tf_idf'}
    source = from_export(str(file))
    config = evaluation.resolve(source, [f'data.path={other}'])
    splits, _ = evaluation._load(source, config, ['knn'], [f'data.path={other}'])
    assert splits.train.kept_files['tokenizer.json'] == (workdir / 'tokenizer.json').read_bytes()


def test_the_encoder_that_a_run_started_from_is_a_baseline(workdir, tmp_path):
    run = open_saved_run(str(workdir))
    config = run.config.copy_and_resolve_references()
    config.init_from = str(workdir)
    found = baselines_of(dataclasses.replace(run, config=config))
    assert set(found.encoders) == {'random', 'start'}
    for name, expected in (('start', run.state.variables), ('random', create_train_state(run.method).variables)):
        chex.assert_trees_all_equal(found.encoders[name], jax.tree.map(np.asarray, expected))
    config.init_from = str(tmp_path / 'gone')
    found = baselines_of(dataclasses.replace(run, config=config))
    assert set(found.encoders) == {'random'}
    assert found.left_out.startswith('the encoder before training (--init_from=')


def test_sentences_are_embedded_under_their_own_text(in_process, workdir, features, tmp_path):
    lines = ['A cat sleeps.', 'Two dogs run <b>fast</b>.', 'a cat sleeps.']
    (tmp_path / 'new.txt').write_text('\n'.join(lines))
    given = (f'--workdir={workdir}', f'--data={tmp_path / "new.txt"}')  # trained on a file with columns
    finished = in_process(embed_program.main, *given, f'--output={tmp_path / "features.npz"}')
    assert finished.status == 0, finished
    with np.load(tmp_path / 'features.npz') as found:
        assert found['files'].tolist() == lines
        np.testing.assert_allclose(found['features'], features[0](lines), atol=1e-5)


def test_pairs_are_embedded_under_their_first_sentence(in_process, workdir, features, tmp_path):
    (tmp_path / 'new.tsv').write_text('a cat — asleep\tit sleeps\na dog\tit runs\n')
    columns = ('--config.data.columns=0,1', '--config.data.label_column=')
    given = (f'--workdir={workdir}', f'--data={tmp_path / "new.tsv"}', *columns, f'--output={tmp_path / "f.npz"}')
    finished = in_process(embed_program.main, *given)
    assert finished.status == 0, finished
    assert 'pairs: their first sentences are embedded' in finished.out
    with np.load(tmp_path / 'f.npz') as found:
        assert found['files'].tolist() == ['a cat — asleep', 'a dog']
        np.testing.assert_allclose(found['features'], features[0](found['files'].tolist()), atol=1e-5)


def test_rows_of_a_labelled_file_stay_in_their_order(in_process, workdir, tmp_path):
    lines = [f'the sentence of number {number},{CLASSES[number % 2]}' for number in range(20)]
    (tmp_path / 'new.csv').write_text('\n'.join(['sentence,class', *lines, ' ,']))
    given = (f'--workdir={workdir}', f'--data={tmp_path / "new.csv"}', f'--output={tmp_path / "f.npz"}')
    finished = in_process(embed_program.main, *given)
    assert finished.status == 0, finished
    assert 'left out: 1 rows: empty (new.csv:22)' in finished.out
    with np.load(tmp_path / 'f.npz') as found:
        assert found['files'].tolist() == [line.partition(',')[0] for line in lines]
        assert [str(found['class_names'][label]) for label in found['labels']] == [
            CLASSES[row % 2] for row in range(20)
        ]


REFUSED = {
    'robustness': ('--protocols=robustness', '--protocols: robustness is for images, not for text; leave it out'),
    'no path': ('--protocols=sts,retrieval', 'config.retrieval.path is empty: name a file of queries and passages'),
    'no folder': ('--protocols=sts --config.sts.path=/nowhere', 'config.sts.path=/nowhere: no such folder'),
    'folds': ('--protocols=transfer --config.transfer.folds=1', 'config.transfer.folds=1: must be between 2 and 10'),
    'malformed': ('--protocols=sts,retrieval --config.retrieval.path=README.md', 'needs a query and a passage'),
}


@pytest.mark.parametrize(('given', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused_at_once(in_process, workdir, tmp_path, given, message):
    refused = in_process(evaluate.main, f'--workdir={workdir}', f'--output={tmp_path / "out"}', *given.split())
    assert refused.status == 2
    assert message in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not (tmp_path / 'out').exists()
    assert refused.out == ''


def test_a_run_that_cannot_be_monitored_is_refused(files, tmp_path):
    config = text_config(files / 'sentences.csv')
    config.sts.path = str(tmp_path / 'nowhere')
    with pytest.raises(UserError, match=r'config.sts.path=.*: no such folder; name the one with stsb-en-dev.csv'):
        make_plan(config, str(tmp_path / 'run'), writes=False)
    images = text_config(files / 'sentences.csv')
    images.data.name, images.model.name, images.views.preset = 'photo_patches', 'tiny', 'moco_v2'
    images.sts.path, images.data.columns = str(files / 'sts'), ''
    with pytest.raises(UserError, match='is only for encoders of text, but photo_patches holds images; leave it empty'):
        make_plan(images, str(tmp_path / 'run'), writes=False)


def test_sts_b_dev_is_enough_and_may_be_added_when_a_run_resumes(files, tmp_path):
    """Test sets are not read in training. Without labels the best checkpoint is the best on STS-B dev."""
    (tmp_path / 'sts').mkdir()
    shutil.copy(files / 'sts' / 'stsb-en-dev.csv', tmp_path / 'sts')
    config = text_config(files / 'sentences.csv', labels=False)
    config.train.steps, config.checkpoint.every_steps, config.checkpoint.keep_best = 4, 2, 1
    config.log.pictures = False
    assert train(config, str(tmp_path / 'run'))
    assert 'sts_dev_spearman' not in summary(tmp_path / 'run')
    config.train.steps, config.sts.path = 6, str(tmp_path / 'sts')
    assert train(config, str(tmp_path / 'run'), extend=True)
    found = summary(tmp_path / 'run')
    assert found['knn_top1'] is None
    assert -1 <= found['sts_dev_spearman'] <= 1
    assert found['sts_dev_spearman_before_training'] is None
    best = open_saved_run(str(tmp_path / 'run'), 'best')
    assert (best.step, best.chosen_by) == (6, {'metric': f'{STS}_backbone', 'on': 'STS-B dev'})


def test_texts_are_never_markup_in_the_report(in_process, workdir, tmp_path):
    output = tmp_path / 'report.html'
    assert in_process(report.main, f'--workdir={workdir}', f'--output={output}').status == 0
    for page in (output.read_text(), (workdir / 'report.html').read_text()):
        parsed = Parsed(page)
        assert [tag for tag, _ in parsed.tags].count('script') == 2
        assert 'bold' not in [tag for tag, _ in parsed.tags]
        assert ' '.join(HOSTILE.split()) in parsed.text
        assert '<script>alert' not in page
        assert CLASSES[0] in parsed.text
        assert CLASSES[1] in parsed.text
        for part in ('Hardest negatives', 'Nearest neighbours', 'Confusion matrix', 'STS-B dev, TF-IDF', 'held-out'):
            assert part in parsed.text
        assert 'which have no pictures' not in parsed.text
        assert 'bag of words' in parsed.text
        assert 'raw pixels' not in page
        assert 'image' not in parsed.text.replace('mask_same_image', '').replace('image_size', '').replace('dualcl', '')


def test_the_report_shows_texts_where_pictures_would_be(workdir):
    subject, samples = read_subject(str(workdir))
    found = describe(subject, samples)
    train_texts = subject.splits.train.display(np.arange(len(subject.splits.train)))
    assert found['form'] == 'texts'
    assert found['map']['texts'] == [' '.join(t.split()) for t in samples.source.display(samples.shown)]
    for query, row, near in zip(samples.queries, found['neighbours'], samples.nearest[0], strict=True):
        assert row['text'] == samples.source.display(samples.shown[[query]])[0]
        assert [other['text'] for other in row['near']] == [train_texts[index] for index in near]
    for anchor in found['gallery']:
        assert anchor['text'] == train_texts[anchor['image']]
        for negative in anchor['hardest']:
            assert negative['text'] == train_texts[negative['image']] != anchor['text']
    assert f'{STS}_backbone' in found['series']


def test_evaluations_are_files(evaluated, files):
    assert sorted(contents(files / 'out')) == ['retrieval.json', 'sts.json', 'transfer.json']
