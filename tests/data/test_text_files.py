"""Sentences and pairs from files of every kind: what is read, what is left out, and what is refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from configs import default
from dualcl_jax import data
from dualcl_jax.data.describe import describe_data
from dualcl_jax.data.source import first_equal
from dualcl_jax.data.text import files
from dualcl_jax.system.errors import UserError
from tests.support.runs import REPOSITORY
from tests.support.text_files import TERMS, TEXTS, load, sentences, write
from tests.support.tfds_sets import MODULE, write_prepared

SHARED = REPOSITORY.parent / 'shared' / 'text'
CUT = gzip.compress(b'one\n' * 99, mtime=0)[:-9]  # the time would make another test of it in each process


@pytest.mark.parametrize('kind', ['numbered.tsv', 'tsv.tsv', 'csv.csv', 'jsonl.jsonl', 'parquet.parquet'])
def test_every_kind_of_table_has_the_same_examples(tmp_path, kind: str) -> None:
    columns = write(tmp_path / kind, kind)
    expected = load(tmp_path / kind, columns).train
    assert len(expected) == 40
    assert expected.kind == 'text'
    arrays = expected.examples(np.arange(40))
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        'tokens': ((40, 2, 8), np.int32),
        'length': ((40, 2), np.int32),
    }
    for row, term, text in zip(sentences(expected), TERMS, TEXTS, strict=True):
        assert term.startswith(row[0])
        assert text.startswith(row[1])
    (tmp_path / 'plain.tsv').write_text(''.join(f'{a}\t{b}\n' for a, b in zip(TERMS, TEXTS, strict=True)))
    assert load(tmp_path / 'plain.tsv', '0,1').train.fingerprint == expected.fingerprint
    if kind != 'parquet.parquet':
        packed = tmp_path / f'{kind}.gz'
        packed.write_bytes(gzip.compress((tmp_path / kind).read_bytes()))
        assert load(packed, columns).train.fingerprint == expected.fingerprint
    one = load(tmp_path / kind, columns.split(',')[1]).train.examples(np.arange(3))
    assert one['tokens'].shape == (3, 1, 8)


def test_lines(tmp_path) -> None:
    (tmp_path / 'lines').write_text('\n'.join(TEXTS))
    found = load(tmp_path / 'lines')
    assert found.test is None
    assert len(found.train) == 40
    assert found.train.class_names is None
    assert (found.train.labels == -1).all()
    facts = describe_data(found)
    assert facts['splits'] == 'train: lines (40 examples, 0 labelled)'
    assert 'trained on the corpus' in facts['tokens']


def test_equal_sentences_have_equal_ids(tmp_path) -> None:
    (tmp_path / 'lines.txt').write_text('One  cat\ntwo cats\n one CAT \nthree\ntwo cats.\n')
    train = load(tmp_path / 'lines.txt').train
    assert train.ids.tolist() == [0, 1, 0, 3, 4]
    assert data.limit_train(train, 4).ids.max() <= 3
    part, _ = data.hold_out(train, 0.4, 'random')
    texts = [row[0] for row in sentences(part)]
    assert part.ids.tolist() == first_equal(np.array(texts)).tolist()
    (tmp_path / 'pairs.tsv').write_text('a\tb\nA\tb\nb\ta\n')
    assert load(tmp_path / 'pairs.tsv', '0,1').train.ids.tolist() == [0, 0, 2]


def test_sentences_that_are_in_other_pairs(tmp_path) -> None:
    """Such pairs have ids of their own. A copy of a pair is no other pair."""
    for lines, shares in (('q\tp\nr\tP\nq\t p\ns\tt\n', [0.0, 0.75]), ('q\tp\nq\tr\n', [1.0, 0.0])):
        (tmp_path / 'pairs.tsv').write_text(lines)
        found = load(tmp_path / 'pairs.tsv', '0,1')
        assert list(found.train.report['in_other_pairs'].values()) == shares
        said = f'{shares[0]:.1%} of the first and {shares[1]:.1%} of the second sentences; '
        assert describe_data(found)['in other pairs'].startswith(said)
    for lines, columns in (('q\tp\nq\tp\np\tq\n', '0,1'), ('q\tp\nq\tr\n', '0')):
        (tmp_path / 'pairs.tsv').write_text(lines)
        assert 'in_other_pairs' not in load(tmp_path / 'pairs.tsv', columns).train.report


def test_rows_that_are_left_out(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, 'LONGEST', 200)
    good = '\n'.join(TEXTS)
    (tmp_path / 'a.txt').write_bytes(good.encode() + b'\n\n   \ncaf\xe9 au lait\n' + b'x ' * 150 + b'\nthe end')
    left_out = load(tmp_path / 'a.txt').train.report['left_out']
    assert left_out == {
        'rows: empty': {'count': 2, 'names': ['a.txt:41', 'a.txt:42']},
        'rows: not UTF-8': {'count': 1, 'names': ['a.txt:43']},
        'rows: longer than 1,000,000 bytes': {'count': 1, 'names': ['a.txt:44']},
    }
    assert 'rows: not UTF-8 (a.txt:43)' in describe_data(load(tmp_path / 'a.txt'))['left out']
    (tmp_path / 'b.jsonl').write_text('{"t": "one"}\n[1]\n{"t": 3}\n{"u": "x"}\n{"t": " "}\n{"t": "two"}\n')
    left_out = load(tmp_path / 'b.jsonl', 't', max_skipped=0.9).train.report['left_out']
    assert {reason: about['names'] for reason, about in left_out.items()} == {
        'rows: not a JSON object': ['b.jsonl:2'],
        'rows: not text': ['b.jsonl:3'],
        'rows: without the column': ['b.jsonl:4'],
        'rows: empty': ['b.jsonl:5'],
    }


def test_labels(tmp_path) -> None:
    rows = [f'{number % 3 + 8},{text}' for number, text in enumerate(TEXTS)]
    (tmp_path / 'a.csv').write_text('\n'.join(['label,text', *rows, ',no label']))
    found = load(tmp_path / 'a.csv', 'text', label_column='label', test_fraction=0.3)
    assert found.train.class_names == found.test.class_names == ('8', '9', '10')
    assert len(found.train) + len(found.test) == 41
    assert 1 <= len(found.test) <= 25
    assert (found.train.labels == -1).sum() == 1
    assert (found.test.labels >= 0).all()
    assert load(tmp_path / 'a.csv', 'text', label_column='label', test_fraction=0.0).test is None


def test_a_folder(tmp_path) -> None:
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'b.txt').write_text('third\nfourth')
    (tmp_path / 'a.txt').write_text('first\nsecond')
    (tmp_path / 'sub' / 'c.txt.gz').write_bytes(gzip.compress(b'fifth'))
    (tmp_path / 'LICENSE').write_text('no sentence')
    (tmp_path / '.hidden.txt').write_text('no sentence')
    found = load(tmp_path)
    assert [row for (row,) in sentences(found.train)] == ['first', 'second', 'third', 'fourth', 'fifth']
    assert found.train.report['left_out'] == {'files with other endings': {'count': 1, 'names': ['LICENSE']}}


def write_tfds(folder: Path, splits: dict[str, list[tuple[bytes, int]]]) -> Path:
    """A prepared TFDS set with the features text and label, of the classes no and yes."""
    features = {
        'text': {'pythonClassName': f'{MODULE}.text_feature.Text', 'text': {}},
        'label': {'pythonClassName': f'{MODULE}.class_label_feature.ClassLabel', 'classLabel': {'numClasses': '2'}},
    }
    rows = {split: [{'text': text, 'label': label} for text, label in found] for split, found in splits.items()}
    return write_prepared(folder, 'reviews', rows, features, ('no', 'yes'))


def test_a_tfds_set(tmp_path) -> None:
    rows = [(text.encode(), number % 2) for number, text in enumerate(TEXTS)]
    splits = {'train': [*rows, (b'caf\xe9', 0), (b'unknown', -1)], 'test': rows[:5]}
    folder = write_tfds(tmp_path / 'reviews' / '1.0.0', splits)
    found = load(folder, 'text', label_column='label')
    assert (len(found.train), len(found.test)) == (41, 5)
    assert found.train.class_names == ('no', 'yes')
    assert found.train.labels.tolist() == [number % 2 for number in range(40)] + [-1]
    assert found.train.report['left_out'] == {'rows: not UTF-8': {'count': 1, 'names': ['train:41']}}
    assert load(folder, 'text').train.class_names is None
    splits = {'train': rows, 'test': [(text, -1) for text, _ in rows[:5]], 'validation': rows[:3]}
    tested = load(write_tfds(tmp_path / 'others' / '1.0.0', splits), 'text', label_column='label')
    assert tested.test.labels.tolist() == [0, 1, 0]
    assert tested.train.report['left_out'] == {'other splits': {'count': 1, 'names': ['test']}}
    for columns, said in (('', "data.columns='': reviews has columns"), ('x', 'x: reviews has no such column')):
        with pytest.raises(UserError, match=f'{said}.* label, text$'):
            load(folder, columns)
    next(folder.glob('*-train*')).write_bytes(b'nothing')
    with pytest.raises(UserError, match=r'1.0.0: cannot be read \(.*\); prepare it again as array_record'):
        load(folder, 'text')


def test_limit_and_memory(tmp_path) -> None:
    (tmp_path / 'lines.txt').write_text('\n'.join(TEXTS))
    assert len(load(tmp_path / 'lines.txt', limit=10).train) == 10
    with pytest.raises(UserError, match=r'the tokens of 40 examples take 1,440 bytes.*raise config.data.memory_bytes'):
        load(tmp_path / 'lines.txt', memory_bytes=1000)


def test_wordnet(tmp_path) -> None:
    (tmp_path / 'data.noun').write_text(
        '  1 This software and database is being provided to you\n'
        '00002684 03 n 02 object 0 physical_object 0 001 @ 00001930 n 0000 | a visible entity; "full of objects"  \n'
        '00001740 03 a 01 galore(ip) 0 000 | existing in abundance; in great numbers \n'
    )
    (tmp_path / 'index.noun').write_text('object n 5 4\n')
    rows = files.read_rows(epath.Path(tmp_path / 'data.noun'), files.Columns(('0', '1'), ''), files.LeftOut())
    assert [row.sentences for row in rows] == [
        ('object, physical object. full of objects', 'a visible entity'),
        ('galore', 'existing in abundance; in great numbers'),
    ]
    found = load(tmp_path, '0,1').train
    assert len(found) == 2
    assert load(tmp_path, 'entry,definition').train.fingerprint == found.fingerprint
    with pytest.raises(UserError, match=r"data\.columns='': data\.noun has columns; .*: entry, definition$"):
        load(tmp_path)


def test_wordnet_as_it_was_measured() -> None:
    """The pairs of WordNet's files are those of the measured table, but for white space."""
    folder = Path('/usr/share/wordnet')
    table = SHARED / 'unlabelled' / 'wordnet_pairs.tsv.gz'
    if not table.exists() or not folder.exists():
        pytest.skip(f'needs {table} and {folder}: they are no part of the project')
    columns, left_out = files.Columns(('0', '1'), ''), files.LeftOut()
    ours = [
        row for name in files.wordnet.FILES for row in files.read_rows(epath.Path(folder / name), columns, left_out)
    ]
    assert ours == list(files.read_rows(epath.Path(table), columns, left_out))


@pytest.mark.parametrize(
    ('name', 'content', 'columns', 'changes', 'said'),
    [
        ('none.txt', None, '', {}, r'no such file or folder; name a file of sentences, or a folder of such files$'),
        ('a.txt', b'', '', {}, r'no sentences in it$'),
        ('a.txt', b'\n\n', '', {}, r'no sentences in it\n2 rows: empty \(a.txt:1, a.txt:2\)'),
        (
            'a.txt',
            b'caf\xe9\nok\n',
            '',
            {},
            r'1 of 2 rows cannot be used, more than.*0.05 of them\n.*not UTF-8 \(a.txt:1',
        ),
        (
            'a.txt',
            'sixteen bits'.encode('utf-16'),
            '',
            {},
            r'a.txt: is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t',
        ),
        ('a.csv', b'\xfe\xff\0x\0\n\0a', 'x', {}, r'a.csv: is UTF-16; convert it'),
        (
            'a.txt',
            'sixteen bits'.encode('utf-16-le'),
            '',
            {},
            r'no sentences in it\n1 rows: with NUL char.* \(a.txt:1\)',
        ),
        (
            'a.json',
            b'[{"text": "one"},\n',
            '',
            {},
            r'files that end in .json are not read; .* .jsonl, with an object in',
        ),
        ('a.HTML.gz', b'<html>\n', '', {}, r'files that end in .html are not read; save the text as .txt'),
        ('a.txt', '\u200b\n\ufeff\n\xad'.encode(), '', {}, r'no sentences in it\n3 rows: empty \(a.txt'),
        (
            'a.csv',
            b'text,y\n' + b'one, two,1\n' * 2 + b'one,1\n' * 8,
            'text',
            {},
            r'2 of 10 rows .*\n2 rows: with more values than the header \(a.csv:2, a.csv:3\)\n.*commas need quotation',
        ),
        ('a.txt', b'one\n', 'text', {}, r"data.columns=text: .*a.txt has lines, not columns; use ''"),
        ('a.txt', b'one\n', '', {'label_column': 'y'}, r"data.label_column=y: .*a.txt has lines, not columns; use ''"),
        ('a.csv', b'x,y\n1,2\n', '', {}, r"data.columns='': a.csv has columns; name the one with sentences.*: x, y$"),
        ('a.csv', b'x,y\n1,2\n', 'z', {}, r'data.columns=z: a.csv has no such column, only x, y$'),
        (
            'a.csv',
            b'x,y\n1,2\n',
            'x',
            {'label_column': 'z'},
            r'data.label_column=z: a.csv has no such column, only x, y',
        ),
        (
            'a.csv',
            b'x,y\n1,2\n',
            '0',
            {'label_column': 'y'},
            r"data.label_column='y': use names for all of them, or num",
        ),
        ('a.csv', b'x,y\n1,2\n', 'x,y,z', {}, r'data.columns=x,y,z: name one column, two for pairs'),
        ('a.csv', b'x,y\n1,2\n', '5', {}, r'no sentences in it\n2 rows: without the column \(a.csv:1, a.csv:2\)'),
        ('a.jsonl', b'{"x": "one"}\n', 'y', {}, r'data.columns=y: a.jsonl has no such column, only x$'),
        ('a.parquet', b'PAR1 no', 'y', {}, r'a.parquet: cannot be read \(.*\); restore the file'),
        ('a.txt.gz', b'one\n', '', {}, r'a.txt.gz: cannot be read \(Not a gzipped file.*\); restore the file'),
        ('a.txt.gz', CUT, '', {}, r'a.txt.gz: cannot be read \(.*\); restore the file'),
        ('data.noun', b'one\n', '0', {}, r'data.noun: cannot be read \(line 1 is not a WordNet entry\)'),
    ],
)
def test_what_cannot_be_read(
    tmp_path, name: str, content: bytes | None, columns: str, changes: dict, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        load(tmp_path / name, columns, **changes)
    assert str(refused.value).count('\n') <= 2


def test_a_folder_without_text(tmp_path) -> None:
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises(UserError, match=r'no file in it ends in .txt, .csv'):
        load(tmp_path)
    with pytest.raises(UserError, match=r'data.path is empty: with data.name=text, set it to a file of sentences'):
        load('')


def test_the_tokenizer_of_a_config(tmp_path) -> None:
    (tmp_path / 'lines.txt').write_text('\n'.join(TEXTS))
    train = load(tmp_path / 'lines.txt').train
    kept = tmp_path / 'tokenizer.json'
    kept.write_bytes(train.kept_files['tokenizer.json'])
    config = default.get_config()
    config.data.name, config.data.path, config.text.length = 'text', str(tmp_path / 'lines.txt'), 8
    for field in ('text.tokenizer', 'init_from'):
        given = config.copy_and_resolve_references()
        given.update_from_flattened_dict({field: str(tmp_path)})
        assert data.load(data.data_config(given)).train.fingerprint == train.fingerprint
    assert data.data_config(config, epath.Path(tmp_path)).text.tokenizer == str(kept)
    config.text.tokenizer, config.model.vocabulary = str(kept), 10
    with pytest.raises(UserError, match=r'more than the model.vocabulary=10 rows .*; set --config.model.vocabulary=0'):
        data.load(data.data_config(config))
    config.init_from = 'FOLDER'
    with pytest.raises(
        UserError, match=r'=10 rows .*; use the tokenizer that belongs to the weights of --init_from=FOLDER, '
    ):
        data.load(data.data_config(config))
