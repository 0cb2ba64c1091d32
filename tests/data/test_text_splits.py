"""Splits of folders of text and their classes, and what the tokenizer makes of the sentences."""

import numpy as np
import pytest

from configs import default
from dualcl_jax import data
from dualcl_jax.data.describe import describe_data
from dualcl_jax.system.errors import UserError
from tests.support.text_files import load, sentences, write


def test_a_folder_with_splits(tmp_path) -> None:
    for name in ('train-00000-of-00002', 'train-00001-of-00002', 'test-00000-of-00001', 'unsupervised'):
        (tmp_path / f'{name}.txt').write_text(f'of {name[:7]}')
    found = load(tmp_path)
    assert (len(found.train), len(found.test)) == (2, 1)
    assert list(found.train.report['left_out']) == ['files of no split']
    assert found.test.kept_files == found.train.kept_files


@pytest.mark.parametrize('unknown', ['', '-1'])
def test_files_with_a_class_of_the_training_files_are_preferred_for_testing(tmp_path, unknown: str) -> None:
    for name, labels in (('train', '01' * 5), ('validation', '01'), ('test', [unknown] * 3)):
        rows = [f'{name} {number},{label}' for number, label in enumerate(labels)]
        (tmp_path / f'{name}.csv').write_text('\n'.join(['text,label', *rows, '  ,1', '']))
    found = load(tmp_path, 'text', label_column='label')
    assert found.train.report['splits']['test'] == {'folder': 'validation.csv', 'images': 2, 'labelled': 2}
    assert found.train.class_names == ('0', '1')
    assert found.train.report['left_out'] == {
        'rows: empty': {'count': 2, 'names': ['train.csv:12', 'validation.csv:4']},
        'files of no split': {'count': 1, 'names': ['test.csv']},
    }
    assert len(load(tmp_path, 'text').test) == 3  # without classes, the first


def test_files_for_testing_may_lack_the_column_of_the_class(tmp_path) -> None:
    """The files of a task of GLUE. In other forms of it, the unpublished classes are -1."""
    for name in ('train', 'validation'):
        rows = [f'{name} {number},{number % 2}' for number in range(6)]
        (tmp_path / f'{name}.csv').write_text('\n'.join(['sentence,label', *rows]))
    (tmp_path / 'test.csv').write_text('index,sentence\n0,test one\n1,test two\n')
    found = load(tmp_path, 'sentence', label_column='label')
    assert found.train.report['splits']['test'] == {'folder': 'validation.csv', 'images': 6, 'labelled': 6}
    assert found.train.report['left_out'] == {'files of no split': {'count': 1, 'names': ['test.csv']}}
    (tmp_path / 'validation.csv').unlink()
    for test in ('index,sentence\n0,test one\n', 'label,sentence\n-1,test one\n'):
        (tmp_path / 'test.csv').write_text(test)
        found = load(tmp_path, 'sentence', label_column='label')
        assert found.test.labels.tolist() == [-1]
        assert found.train.class_names == ('0', '1')
    with pytest.raises(UserError, match=r'columns=sentences: train\.csv has no such column'):
        load(tmp_path, 'sentences', label_column='label')
    (tmp_path / 'train.csv').write_text('sentence,label\nbad,-1\nfair,0\ngood,1\n')
    assert load(tmp_path, 'sentence', label_column='label').train.class_names == ('-1', '0', '1')


@pytest.mark.parametrize('kind', ['jsonl', 'parquet', 'tsv'])
def test_every_kind_of_file_for_testing_may_lack_the_class(tmp_path, kind: str) -> None:
    columns, label = ('0', '1') if kind == 'tsv' else ('term', 'text')
    write(tmp_path / f'train.{kind}', kind)
    if kind == 'tsv':
        (tmp_path / 'train.tsv').write_text('one\ty\ntwo\tn\n')
        (tmp_path / 'test.tsv').write_text('three\nfour\n')
    elif kind == 'jsonl':
        (tmp_path / 'test.jsonl').write_text('{"term": "three"}\n{"term": "four"}\n')
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({'term': ['three', 'four']}), tmp_path / 'test.parquet')
    assert load(tmp_path, columns, label_column=label).test.labels.tolist() == [-1, -1]


def test_sentences_without_tokens_are_empty(tmp_path) -> None:
    """The tokenizer removes characters such as a zero-width space; sentences of these alone are left out."""
    (tmp_path / 'a.tsv').write_text('one\tzero\u200bwidth\n\u200b\ttwo\nthree\t\ufeff\xad\nfour\tfive\n')
    train = load(tmp_path / 'a.tsv', '0,1').train
    assert sentences(train) == [['one', 'zerowidth'], ['four', 'five']]
    assert train.display(np.array([1])) == ['four\u2003—\u2003five']
    assert train.report['left_out'] == {'rows: empty': {'count': 2, 'names': ['a.tsv']}}


def test_unchecked_rows_are_those_of_earlier_versions(tmp_path) -> None:
    for split, label in (('train', 0), ('test', -1)):
        rows = ['text,y', f'one,{label}', f'\u200b,{label}', f'a\0b,{label}', f'two,{label},more']
        (tmp_path / f'{split}.csv').write_text('\n'.join(rows))
    found = load(tmp_path, 'text', label_column='y', rows='unchecked')
    assert [len(part) for part in found] == [4, 4]
    assert found.train.class_names == ('-1', '0')
    assert found.train.report['left_out'] == {}
    found = load(tmp_path, 'text', label_column='y', max_skipped=0.9)
    assert [len(part) for part in found] == [1, 1]
    assert found.train.class_names == ('0',)


def test_the_share_of_unknown_tokens(tmp_path) -> None:
    (tmp_path / 'a.txt').write_text('one two\n')
    kept = load(tmp_path / 'a.txt').train.kept_files['tokenizer.json']
    (tmp_path / 'tokenizer.json').write_bytes(kept)
    (tmp_path / 'b.txt').write_text('one two\none ω\n')
    config = default.get_config()
    config.data.name, config.data.path, config.text.length = 'text', str(tmp_path / 'b.txt'), 8
    config.text.tokenizer = str(tmp_path)
    found = data.load(data.data_config(config))
    assert found.train.report['tokens']['unknown'] == 0.25
    facts = describe_data(found)
    assert facts['tokens'].endswith('25.0% of those of the text are unknown')
    assert 'name a tokenizer for this language with --config.text.tokenizer' in facts['unknown tokens']
    assert 'unknown tokens' not in describe_data(load(tmp_path / 'a.txt'))
