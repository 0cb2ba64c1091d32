"""Sets of sentences as they are read from their files, and the messages for files that are missing or malformed."""

import shutil

import numpy as np
import pytest

from dualcl_jax.evaluators.benchmarks.classification import read_classification
from dualcl_jax.evaluators.benchmarks.passages import read_passages
from dualcl_jax.evaluators.benchmarks.sts import read_dev, read_sts
from dualcl_jax.system.errors import UserError
from tests.support.text_sets import real, write_classification, write_passages, write_sts


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    parent = tmp_path_factory.mktemp('sets')
    return {
        'sts': write_sts(parent / 'sts', 6),
        'passages': write_passages(parent / 'passages.tsv', 5),
        'classification': write_classification(parent / 'classification'),
    }


def test_sts(folders):
    found = read_sts(str(folders['sts']))
    names = [(pairs.name, pairs.split, len(pairs.scores), pairs.without_score) for pairs in found]
    assert names == [
        ('STS-B', 'dev', 6, 0),
        ('STS12', 'test', 30, 1),
        ('STS13', 'test', 18, 1),
        ('STS14', 'test', 36, 1),
        ('STS15', 'test', 30, 1),
        ('STS16', 'test', 30, 1),
        ('STS-B', 'test', 6, 0),
        ('SICK-R', 'test', 6, 0),
    ]
    line = (folders['sts'] / 'sts2012.MSRpar.test.tsv').read_text().splitlines()[2].split('\t')
    assert [str(found[1].scores[2]), found[1].first[2], found[1].second[2]] == line
    dev = read_dev(str(folders['sts']))
    assert (dev.first, dev.scores.tolist(), dev.fingerprint) == (
        found[0].first,
        found[0].scores.tolist(),
        found[0].fingerprint,
    )
    assert found[0].fingerprint != found[6].fingerprint


def test_pairs_of_sts_b_that_are_in_the_sets_of_the_years():
    """The numbers of docs/evaluation.md."""

    def keys(found):
        clean = ([' '.join(text.lower().split()) for text in part] for part in (found.first, found.second))
        return [frozenset(pair) for pair in zip(*clean, strict=True)]

    sets = {(found.name, found.split): keys(found) for found in read_sts(str(real('sts')))}
    years = [key for (name, _), found in sets.items() if name not in ('STS-B', 'SICK-R') for key in found]
    assert len(sets) == 8
    dev, test = sets['STS-B', 'dev'], sets['STS-B', 'test']
    of_years, of_dev = set(years), set(dev)
    assert [len(found) for found in (dev, test)] == [1500, 1379]
    assert [sum(key in of_years for key in found) for found in (dev, test)] == [996, 881]
    assert round(sum(key in of_dev for key in years) / len(years), 2) == 0.08
    assert sum(key in of_dev for key in test) == 4
    assert not of_dev & set(sets['SICK-R', 'test'])


def test_sts_rows_may_be_quoted_or_hold_quotes(folders, tmp_path):
    folder = shutil.copytree(folders['sts'], tmp_path / 'sts')
    (folder / 'stsb-en-dev.csv').write_text('"one, and ""two""",\u2028three,1.5\nfour,five,2\n')
    (folder / 'sts2012.OnWN.test.tsv').write_text('1\tan "odd mark\tfine\n2\ta\tb\n')
    assert (read_dev(str(folder)).first, read_dev(str(folder)).second) == (
        ['one, and "two"', 'four'],
        ['three', 'five'],
    )
    assert 'an "odd mark' in read_sts(str(folder))[1].first


def test_passages(folders, tmp_path):
    found = read_passages(str(folders['passages']))
    assert (found.name, len(found.queries), len(found.passages), found.own.tolist()) == (
        'passages',
        5,
        5,
        [0, 1, 2, 3, 4],
    )
    (tmp_path / 'two.tsv').write_text('a\tsame\n\nb\tother\nc\tsame\n')
    found = read_passages(str(tmp_path / 'two.tsv'))
    assert (found.queries, found.passages, found.own.tolist()) == (['a', 'b', 'c'], ['same', 'other'], [0, 1, 0])


def test_classification(folders, tmp_path):
    found = {part.name: part for part in read_classification(str(folders['classification']))}
    assert list(found) == ['MR', 'CR', 'SUBJ', 'MPQA', 'SST-2', 'TREC']
    assert found['MR'].class_names == ('neg', 'pos')
    assert np.bincount(found['MR'].labels).tolist() == [20, 20]
    assert (len(found['SST-2'].train), len(found['SST-2'].validation), len(found['SST-2'].test)) == (40, 40, 40)
    trec = found['TREC']
    assert (trec.class_names, len(trec.train), len(trec.validation), len(trec.test)) == (('ABBR', 'NUM'), 60, 0, 60)
    folder = shutil.copytree(folders['classification'], tmp_path / 'classification')
    (folder / 'rt-polarity.pos').write_bytes(b'a caf\xe9 \x85\n' * 20)
    assert read_classification(str(folder))[0].sentences[20] == 'a café …'


MALFORMED = {
    'no path': ('sts', None, None, 'config.sts.path is empty: name the folder'),
    'no folder': ('sts', 'nowhere', None, 'nowhere: no such folder; name the one with stsb-en-dev.csv'),
    'a file less': ('sts', 'sts2013.FNWN.test.tsv', None, 'has no file sts2013.FNWN.test.tsv; add what is missing'),
    'columns': (
        'sts',
        'sts2013.FNWN.test.tsv',
        b'1\ta\tb\n2\ta\n',
        'line 2: has 2 columns instead of 3 (score, sentence',
    ),
    'score': ('sts', 'stsb-en-dev.csv', b'a,b,high\n', "line 1: 'high' is not a score; fix it"),
    'infinite': ('sts', 'stsb-en-dev.csv', b'a,b,nan\n', "line 1: 'nan' is not a score; fix it"),
    'sentence': ('sts', 'stsb-en-dev.csv', b'a,,1\n', 'line 1: has an empty sentence'),
    'one score': ('sts', 'stsb-en-dev.csv', b'a,b,1\nc,d,1\n', 'has no two pairs with different scores'),
    'quotes': ('sts', 'stsb-en-dev.csv', b'"a,b,1\n', 'is not a CSV file'),
    'header': (
        'sts',
        'SICK_test_annotated.txt',
        b'pair_ID\tsentence_A\n',
        'has no column sentence_B in its first line',
    ),
    'binary': ('sts', 'stsb-en-test.csv', b'\x00\xff\x81', 'is not a text file; replace it'),
    'no query': ('passages', 'passages.tsv', b'a\tb\n\tc\n', 'line 2: needs a query and a passage'),
    'one passage': ('passages', 'passages.tsv', b'a\tb\n', 'has 1 passages; name a file with 2 or more'),
    'no file': ('passages', 'nowhere.tsv', None, 'nowhere.tsv: no such file; name a file of queries and passages'),
    'no class': ('classification', 'TREC.test', b'NUM:x how many\nNUM\n', 'line 2: needs a class and a sentence'),
    'few': ('classification', 'TREC.train', b'NUM:x how many\n' * 20, "class 'ABBR' has 0 sentences to train on"),
    'empty': ('classification', 'custrev.neg', b'', "class 'neg' has 0 sentences to train on; 20 are needed"),
}
READ = {'sts': read_sts, 'passages': read_passages, 'classification': read_classification}


@pytest.mark.parametrize(('which', 'file', 'content', 'message'), MALFORMED.values(), ids=MALFORMED)
def test_a_missing_or_malformed_file(folders, tmp_path, which, file, content, message):
    path = tmp_path / folders[which].name
    shutil.copy(folders[which], path) if which == 'passages' else shutil.copytree(folders[which], path)
    if file is None:
        path = ''
    elif file.startswith('nowhere'):
        path = tmp_path / file
    elif content is None:
        (path / file).unlink()
    else:
        (path if which == 'passages' else path / file).write_bytes(content)
    with pytest.raises(UserError) as raised:
        READ[which](str(path))
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_the_real_files():
    """Sizes are those of the papers: 1803.05449 (table 1) and SemEval's tasks."""
    sizes = {(pairs.name, pairs.split): len(pairs.scores) for pairs in read_sts(str(real('sts')))}
    assert sizes == {
        ('STS-B', 'dev'): 1500,
        ('STS12', 'test'): 3108,
        ('STS13', 'test'): 1500,
        ('STS14', 'test'): 3750,
        ('STS15', 'test'): 3000,
        ('STS16', 'test'): 1186,
        ('STS-B', 'test'): 1379,
        ('SICK-R', 'test'): 4927,
    }
    assert len(read_passages(str(real('retrieval/debian_test.tsv'))).passages) == 3115
    parts = {part.name: part for part in read_classification(str(real('classification')))}
    assert len(parts['TREC'].class_names) == 6
    assert (len(parts['TREC'].train), len(parts['TREC'].test), len(parts['SST-2'].test)) == (5452, 500, 1821)
    assert [len(parts[name].labels) for name in ('MR', 'SUBJ')] == [10662, 10000]
