"""The results of an evaluation: records of one number each, checked against a schema, and their table."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from rich.table import Table

from dualcl_jax.evaluators.intervals import Interval

VERSION = 1
"""Version of the schema; it changes when a field changes its meaning."""

_number, _text, _whole = (int, float), str, int
SCHEMA: dict[str, tuple[tuple[type, ...] | type, bool, str]] = {
    # name: types, whether it may be null, meaning
    'protocol': (_text, False, 'which of the protocols'),
    'metric': (_text, False, 'what the value is, such as top1 (an accuracy in [0, 1])'),
    'value': (_number, False, 'the result'),
    'interval': (dict, True, '95 % confidence: low, high, and method, which is wilson, normal or fisher'),
    'data_set': (_text, False, 'name and version of the set'),
    'data_fingerprint': (_text, False, 'SHA-256 of the split that it was measured on'),
    'split': (_text, False, 'test, train or dev: what it was measured on'),
    'examples': (_whole, False, 'how many of its examples: images, sentences, or pairs of sentences'),
    'encoder': (_text, False, 'query (online) or momentum (key); or a baseline: random, start or tf_idf'),
    'layer': (_text, False, 'backbone or projection; words for tf_idf'),
    'k': (_whole, True, 'neighbours, or the rank of a recall'),
    'tau': (_number, True, 'τ of votes exp(cosine / τ)'),
    'seed': (_whole, False, 'of everything that is drawn'),
    'step': (_whole, True, 'training steps of the encoder; null where they are not known'),
    'details': (dict, False, 'what else decides the value, by protocol'),
    'versions': (dict, False, 'of Python and packages, and the device'),
}
"""The fields of a record; every record has all of them."""
DISTINGUISHING = ('fraction', 'shots', 'corruption', 'strength')
"""Details that distinguish records that are otherwise of one kind."""
CONDITIONS = ('data_set', 'data_fingerprint', 'seed', 'step', 'versions')
"""Fields in which records of two encoders agree if they measure the same."""
OUTCOMES = {
    'linear': ('learning_rate', 'weight_decay', 'validation_top1'),
    'few_shot': ('std',),
    'robustness': ('clean_top1',),
    'structure': ('dimensions', 'least', 'most'),
    'sts': ('undefined',),
    'transfer': ('C', 'fits_without_convergence'),
}
"""Details that are results themselves, by protocol. Records of two encoders that differ in them measure the same."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One number of a protocol, before the fields common to all numbers are added; fields as in `SCHEMA`.

    `examples` None stands for all labelled images of the split, or for all images if there are no labels. `data_set`
    and `data_fingerprint` describe what it was measured on if that is not a split of the data of the evaluation.
    """

    metric: str
    value: float
    encoder: str
    layer: str
    interval: Interval | None = None
    split: str = 'test'
    examples: int | None = None
    k: int | None = None
    tau: float | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data_set: str | None = None
    data_fingerprint: str | None = None


def make_record(result: Result, **common: Any) -> dict[str, Any]:
    """The record of a result with the remaining fields of the schema, in its order.

    Raises:
      ValueError: a field is missing, unknown, of another type or not finite.
    """
    fields = dataclasses.asdict(result) | common
    fields['interval'] = result.interval._asdict() if result.interval else None
    record = {name: fields[name] for name in SCHEMA if name in fields} | fields
    check_record(record)
    return record


def check_record(record: Mapping[str, Any]) -> None:
    """Raises ValueError if a record does not conform to the schema."""
    if record.keys() != SCHEMA.keys():
        raise ValueError(f'fields missing or unknown: {sorted(record.keys() ^ SCHEMA.keys())}')
    check_values(record)


def check_values(fields: Mapping[str, Any]) -> None:
    """Raises ValueError if the value of a field of the schema does not conform to it."""
    for name, value in fields.items():
        types, nullable, _ = SCHEMA[name]
        if value is None and nullable:
            continue
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f'{name}={value!r}: not of the schema')
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{name}={value!r}: not finite')


def other_places(path: epath.Path, head: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The records in an earlier file of a protocol that are of other encoders or layers than new ones.

    There are none if anything but the encoder and the layer differs: what the file has beside its records (`head`),
    the data, the seed or the versions; or if the file does not exist or is damaged.
    """
    conditions = [{name: record[name] for name in CONDITIONS} for record in records]
    places = {(record['encoder'], record['layer']) for record in records}
    try:
        earlier = json.loads(path.read_bytes())
        found = earlier.pop('records')
        same = earlier == json.loads(json.dumps(head)) and all(
            {name: record[name] for name in CONDITIONS} in conditions for record in found
        )
        return [record for record in found if same and (record['encoder'], record['layer']) not in places]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []


def table(records: Iterable[Mapping[str, Any]], title: str, own: Iterable[str] | None = None) -> Table:
    """A table of records for a terminal, each encoder and layer in a column, each value with the ends of its interval.

    Args:
      records: records of any protocols.
      title: title of the table.
      own: names of the data that the title names; other data are named in their rows. None: no data are named.
    """
    own = None if own is None else set(own)
    records = list(records)
    columns = list(dict.fromkeys((record['encoder'], record['layer']) for record in records))
    between = '\n' if len(columns) > 2 else ' '  # a value and its interval
    cells: dict[tuple[str, str, str], dict[tuple[str, str], str]] = {}
    for record in records:
        split = '' if record['split'] == 'test' else f' {record["split"]}'
        elsewhere = [f'{record["data_set"]}{split}'] if own is not None and record['data_set'] not in own else []
        of = [f'{name} {record[name]:g}' for name in ('k', 'tau') if record[name] is not None]
        kinds = {name: record['details'][name] for name in DISTINGUISHING if name in record['details']}
        of += [value if isinstance(value, str) else f'{name} {value:g}' for name, value in kinds.items()]
        row = record['protocol'], record['metric'], ', '.join(elsewhere + of)
        interval = record['interval']
        reach = f'{between}{interval["low"]:.4f}–{interval["high"]:.4f}' if interval else ''
        cells.setdefault(row, {})[record['encoder'], record['layer']] = f'{record["value"]:.4f}{reach}'
    view = Table(title=title)
    for name in ('protocol', 'metric'):
        view.add_column(name, no_wrap=True)
    view.add_column('of')
    for encoder, layer in columns:
        view.add_column(f'{encoder}\n{layer}', justify='right', overflow='fold')
    for row, values in cells.items():
        view.add_row(*row, *(values.get(place, '') for place in columns))
    return view
