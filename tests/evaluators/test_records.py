import io
import json
import math

import pytest
from rich.console import Console

from dualcl_jax.evaluators.intervals import wilson
from dualcl_jax.evaluators.records import SCHEMA, Result, check_record, make_record, table

COMMON = {
    'protocol': 'knn',
    'data_set': 'toy',
    'data_fingerprint': 'f' * 64,
    'examples': 10,
    'seed': 0,
    'step': 5,
    'versions': {'jax': '0'},
}


def record(**changes):
    result = Result('top1', 0.5, 'query', 'backbone', wilson(0.5, 10), k=3, tau=0.1)
    return make_record(result, **(COMMON | changes))


def test_a_record_has_every_field_and_is_json():
    made = record()
    assert list(made) == list(SCHEMA)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert set(made['interval']) == {'low', 'high', 'method'}
    assert record(step=None)['step'] is None


@pytest.mark.parametrize(
    'change',
    [
        {'value': math.nan},
        {'value': '0.5'},
        {'k': 2.5},
        {'seed': True},
        {'layer': None},
        {'details': None},
        {'more': 1},
    ],
)
def test_fields_outside_the_schema(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        check_record(record() | change)


def test_a_missing_field():
    made = record()
    del made['tau']
    with pytest.raises(ValueError, match='tau'):
        check_record(made)


def test_the_table_puts_encoders_side_by_side():
    query = record()
    momentum = query | {'encoder': 'momentum', 'value': 0.25, 'interval': None}
    other = query | {'details': {'corruption': 'noise', 'strength': 3}, 'value': 0.75}
    file = io.StringIO()
    Console(file=file, width=120).print(table([query, momentum, other], 'title'))
    rows = [line for line in file.getvalue().splitlines() if 'knn' in line]
    assert len(rows) == 2
    assert 'k 3, tau 0.1' in rows[0]
    assert '0.5000 0.2366–0.7634' in rows[0]
    assert '0.2500' in rows[0]
    assert 'noise, strength 3' in rows[1]


def test_a_narrow_table_has_the_ends_of_asymmetric_intervals():
    sure = record() | {'value': 1.0, 'interval': wilson(1.0, 30)._asdict()}
    places = [(encoder, layer) for encoder in ('query', 'momentum') for layer in ('backbone', 'projection')]
    file = io.StringIO()
    found = [sure | {'encoder': encoder, 'layer': layer} for encoder, layer in places]
    Console(file=file, width=100).print(table(found, 'title'))
    text = file.getvalue()
    assert '±' not in text
    assert text.count('0.8865–1.0000') == text.count('1.0000') - 4 == 4


def test_the_table_names_data_that_its_title_does_not():
    file = io.StringIO()
    dev, test = (record(data_set='STS-B', protocol='sts') | {'split': split, 'k': None} for split in ('dev', 'test'))
    Console(file=file, width=120, markup=False).print(table([record(), dev, test], '[bold]title', ['toy']))
    text = file.getvalue()
    assert '[bold]title' in text
    assert 'toy' not in text
    assert [words in text for words in ('STS-B dev, tau 0.1', 'STS-B, tau 0.1')] == [True, True]
