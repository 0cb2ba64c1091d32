"""Rows of CSV, TSV, JSONL and parquet files: quotation marks, wrong bytes, long rows and missing columns."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from dualcl_jax.data.text import files
from dualcl_jax.system.errors import UserError


def read(path: Path, columns: tuple[str, ...], label: str = '') -> tuple[list[files.Row], dict[str, list[str]]]:
    """The rows of a file, and the places of those that are left out, by reason."""
    left_out = files.LeftOut()
    rows = list(files.read_rows(epath.Path(path), files.Columns(columns, label), left_out))
    return rows, {reason.removeprefix('rows: '): about['names'] for reason, about in left_out.reasons.items()}


@pytest.mark.parametrize(
    ('content', 'line'),
    [
        ('text,y\none,1\n"two,2\n' + 'more,3\n' * 99, 3),  # to the end of the file
        ('text,y\none,1\n"two,2\n"three",3\n', 3),  # to the next quotation mark
        ('text,y\n"six\n"large" eggs",1\n', 2),
        ('text,y\none,1\n"two,2', 3),
        ('text,y\n"a\nb",1\n"two,2\n', 4),
    ],
)
def test_unbalanced_quotation_marks_swallow_no_rows(tmp_path, content: str, line: int) -> None:
    (tmp_path / 'a.csv').write_text(content)
    with pytest.raises(UserError, match=rf'a\.csv: the row that begins in line {line} is not CSV .*\ncorrect it'):
        read(tmp_path / 'a.csv', ('text',))


def test_a_row_in_one_line_needs_no_balanced_quotation_marks(tmp_path) -> None:
    lines = ['text,y', '"one" ,1', '"six "large" eggs",1', 'a 4" nail,2', '"x" "y",2', '"end" of it,3']
    (tmp_path / 'a.csv').write_text('\n'.join(lines))
    rows, left_out = read(tmp_path / 'a.csv', ('text',), 'y')
    sentences = ['one', 'six large" eggs"', 'a 4" nail', 'x "y"', 'end of it']
    assert rows == [((text,), label) for text, label in zip(sentences, '11223', strict=True)]
    assert left_out == {}


def test_a_csv_file_with_carriage_returns_alone(tmp_path) -> None:
    (tmp_path / 'a.csv').write_bytes(b'text,y\rone,1\rtwo,2\r')
    with pytest.raises(UserError, match=r'line 1 is not CSV \(a carriage return .*\ncorrect it: end every line with a'):
        read(tmp_path / 'a.csv', ('text',))


def test_quoted_line_breaks_and_wrong_bytes_in_a_table(tmp_path) -> None:
    (tmp_path / 'a.csv').write_bytes(
        b'text,y\r\n"one, \n two ""2""",1\r\n"caf\xe9\nau lait",2\r\n"three\ncaf\xe9",3\r\n'
        b'four 4",4\r\n\r\nfive,caf\xe9\r\n'
    )
    rows, left_out = read(tmp_path / 'a.csv', ('text',), 'y')
    assert rows == [(('one, two "2"',), '1'), (('four 4"',), '4')]
    assert left_out == {'not UTF-8': ['a.csv:4', 'a.csv:6', 'a.csv:10'], 'empty': ['a.csv:9']}
    (tmp_path / 'a.tsv').write_bytes(b'text\ty\r\n"one\t1\r\n\ncaf\xe9\t2\na\rb\t3')
    rows, left_out = read(tmp_path / 'a.tsv', ('text',), 'y')
    assert rows == [(('"one',), '1'), (('a b',), '3')]
    assert left_out == {'empty': ['a.tsv:3'], 'not UTF-8': ['a.tsv:4']}
    for ending in ('csv', 'tsv'):
        (tmp_path / f'b.{ending}').write_bytes(b'caf\xe9\nx\n')
        with pytest.raises(UserError, match=r'b\..sv has no such column, only caf\\udce9$'):
            read(tmp_path / f'b.{ending}', ('text',))


def test_rows_of_up_to_a_million_bytes(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv

    limit, text = csv.field_size_limit(), 'word ' * 40_000
    for separator, ending in ((',', 'csv'), ('\t', 'tsv')):
        lines = ['text', 'y'], [text, '1'], [text * 6, '2'], ['short', '3']
        (tmp_path / f'a.{ending}').write_text('\n'.join(separator.join(line) for line in lines))
        rows, left_out = read(tmp_path / f'a.{ending}', ('text',), 'y')
        assert [(len(row.sentences[0]), row.label) for row in rows] == [(199_999, '1'), (5, '3')]
        assert left_out == {'longer than 1,000,000 bytes': [f'a.{ending}:3']}
    rows_in_quotes = '"' + 'a line\n' * 200_000 + '"\nshort\n'
    (tmp_path / 'b.csv').write_text('text\n' + rows_in_quotes)
    rows, left_out = read(tmp_path / 'b.csv', ('text',))
    assert rows == [(('short',), None)]
    assert left_out == {'longer than 1,000,000 bytes': ['b.csv:2']}
    monkeypatch.setattr(files, 'LARGEST', 500_000)
    with pytest.raises(UserError, match=r'b.csv: the row that begins in line 2 is not CSV \(more than 500,000 bytes\)'):
        read(tmp_path / 'b.csv', ('text',))
    assert csv.field_size_limit() == limit


def test_unpaired_surrogates_are_not_text(tmp_path) -> None:
    rows = [{'text': 'broken \ud83d emoji'}, {'text': 'whole \U0001f600 emoji'}, {'text': 'one', 'y': '\udc00'}]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    found, left_out = read(tmp_path / 'a.jsonl', ('text',), 'y')
    assert found == [(('whole \U0001f600 emoji',), None)]
    assert left_out == {'not UTF-8': ['a.jsonl:1', 'a.jsonl:3']}


def test_a_parquet_file_with_wrong_bytes_and_padded_names(tmp_path) -> None:
    import pyarrow
    from pyarrow import parquet

    wrong = pyarrow.array([b'one', b'caf\xe9', None, b'four'], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({'y': [1, 2, 3, None], ' text ': wrong}), tmp_path / 'a.parquet')
    rows, left_out = read(tmp_path / 'a.parquet', ('text',), 'y')
    assert rows == [(('one',), '1'), (('four',), None)]
    assert left_out == {'not UTF-8': ['a.parquet:2'], 'without the column': ['a.parquet:3']}


def test_the_columns_of_jsonl_are_those_of_any_row(tmp_path) -> None:
    (tmp_path / 'a.jsonl').write_text('{"title": "x"}\n{"text": "one"}\n{" text": "two", "y": 3}\n')
    rows, left_out = read(tmp_path / 'a.jsonl', ('text',), 'y')
    assert rows == [(('one',), None), (('two',), '3')]
    assert left_out == {'without the column': ['a.jsonl:1']}
    for columns, label, said in ((('text',), 'z', 'label_column=z'), (('text', 'z'), 'y', 'columns=z')):
        with pytest.raises(UserError, match=rf'data\.{said}: a.jsonl has no such column, only title, text'):
            read(tmp_path / 'a.jsonl', columns, label)


def test_a_column_that_jsonl_does_not_have_is_reported_early_and_in_little_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, 'SEARCHED', 1000)
    lines = [json.dumps({f'{number:06}{"x" * 500}': 1, 'text': 'one'}) for number in range(3000)]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
    read_to, real = [0], files._lines

    def counted(*args: Any) -> Any:
        for number, line in real(*args):
            read_to[0] = number
            yield number, line

    monkeypatch.setattr(files, '_lines', counted)
    message = (
        r'data\.columns=txt: a\.jsonl, in its first 1,000 objects, has no such column, only 000000x+, text, 000001x'
    )
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            read(tmp_path / 'a.jsonl', ('txt',))
        assert tracemalloc.get_traced_memory()[1] < 400_000
    finally:
        tracemalloc.stop()
    assert read_to == [1000]
    (tmp_path / 'a.jsonl').write_text('\n'.join([*lines[:999], '{"text": "two", "y": 1}', *lines[1000:]]))
    assert len(read(tmp_path / 'a.jsonl', ('text',), 'y')[0]) == 3000
    with pytest.raises(UserError, match=r'data\.label_column=z: a\.jsonl, in its first 1,000 objects, has no such'):
        read(tmp_path / 'a.jsonl', ('text',), 'z')
