"""The report page: one self-contained HTML file for one run, or for several side by side.

`templates/report.js` draws curves and maps as SVG in some 300 lines. A plotting library (plotly.js: 4.5 MB) would make
every report about ten times as large.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dualcl_jax.evaluators.records import OUTCOMES
from dualcl_jax.reports.content import Content
from dualcl_jax.reports.html import environment
from dualcl_jax.workdir.metrics import KNN, STS

BASELINE = ''
"""Stands for the name of the baseline of kNN, which depends on the kind of the examples."""
REFERENCES = (KNN.baseline, STS.baseline)
"""Levels that are measured once."""

# Each panel: title, unit, and lines of (metric, name). The first line is solid, the second dashed, the third dotted.
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ('Contrastive loss', '', (('train/loss', 'loss'), ('train/loss_chance', 'chance'))),
    (
        'kNN accuracy on held-out examples',
        '%',
        (
            (KNN.backbone, 'backbone'),
            (KNN.projection, 'projection'),
            (KNN.baseline, BASELINE),
        ),
    ),
    (
        "Spearman's correlation on STS-B dev",
        '',
        ((STS.backbone, 'backbone'), (STS.projection, 'projection'), (STS.baseline, 'TF-IDF')),
    ),
    (
        'Cosine similarity to the query',
        '',
        (('train/positive_similarity', 'positive'), ('train/negative_similarity', 'selected negatives')),
    ),
    (
        "Negatives of the anchor's class",
        '%',
        (('train/false_negative_rate', 'selected'), ('train/same_class_rate', 'all allowed')),
    ),
    ('Effective rank of queries', '', (('train/effective_rank', 'rank'),)),
    ('Gradient norm', '', (('train/gradient_norm', 'norm'),)),
)

SAME = ('metric', 'encoder', 'layer', 'k', 'tau', 'data_set', 'data_fingerprint', 'split', 'examples', 'step')
"""Fields in which the records of a row agree."""
DIGITS = 8
"""How many digits of a fingerprint are shown."""

FOR_SCRIPT = ('name', 'series', 'settled', 'map', 'class_names', 'fingerprint')


def render(runs: Sequence[Content]) -> str:
    """Renders the page of runs, whose contents are from `content.describe`."""
    pages = environment()
    pages.filters['percent'] = lambda share: f'{100 * share:.1f} %'
    baseline = ' or '.join(dict.fromkeys(run['baseline'] for run in runs))
    panels = [
        {
            'title': title,
            'unit': unit,
            'settles': lines[0][0] == 'train/loss',  # the loss rises from 0 while the queue fills
            'lines': [
                {'metric': metric, 'name': name or baseline, 'reference': metric in REFERENCES}
                for metric, name in lines
            ],
        }
        for title, unit, lines in PANELS
        if any(metric in run['series'] for run in runs for metric, _ in lines)
    ]
    data = {
        'panels': panels,
        'runs': [
            {name: run[name] for name in FOR_SCRIPT}
            | {'sheet': {name: run['sprite'][name] for name in ('side', 'pitch', 'columns')}}
            for run in runs
        ],
    }
    return pages.get_template('report.html').render(
        runs=runs,
        panels=panels,
        data=data,
        title=', '.join(run['name'] for run in runs),
        fact_names=list(dict.fromkeys(name for run in runs for name in run['facts'])),
        numbers=_compare_numbers(runs),
        differences=_differences(runs),
        evaluations=_compare_evaluations(runs),
    )


def _compare_numbers(runs: Sequence[Content]) -> list[dict[str, Any]]:
    """Every number that any run has, with its value in each run, or None."""
    names = list(dict.fromkeys(number['name'] for run in runs for number in run['numbers']))
    by_run = [{number['name']: number for number in run['numbers']} for run in runs]
    return [{'name': name, 'values': [numbers.get(name) for numbers in by_run]} for name in names]


def _differences(runs: Sequence[Content]) -> list[dict[str, Any]]:
    """The fields of the config in which the runs differ."""
    fields = sorted({field for run in runs for field in run['config']})
    rows = [{'field': field, 'values': [run['config'].get(field) for run in runs]} for field in fields]
    return [row for row in rows if any(value != row['values'][0] for value in row['values'])]


def _compare_evaluations(runs: Sequence[Content]) -> dict[str, list[dict[str, Any]]]:
    """The results of `dualcl_jax.evaluate` by protocol: each measurement with its record in each run, or None.

    `details` of a row are those that its records have in common. `data` is the name of the set, with the first digits
    of its fingerprint if there are other sets with this name.
    """
    tables: dict[str, dict[tuple, dict[str, Any]]] = {}
    sets: dict[tuple[str, str], set[str]] = {}
    for place, run in enumerate(runs):
        met = Counter[tuple]()
        for record in run['evaluations']:
            sets.setdefault((record['data_set'], record['split']), set()).add(record['data_fingerprint'])
            details = {name: value for name, value in record['details'].items() if isinstance(value, int | float | str)}
            outcomes = OUTCOMES.get(record['protocol'], ())
            settings = ((name, value) for name, value in details.items() if name not in outcomes)
            key = (record['protocol'], *(record[name] for name in SAME), *settings)
            met[key] += 1  # two equal measurements of a run have a row each
            empty = {name: record[name] for name in SAME} | {'details': details, 'records': [None] * len(runs)}
            row = tables.setdefault(record['protocol'], {}).setdefault((*key, met[key]), empty)
            row['records'][place] = record
            row['details'] = {name: value for name, value in row['details'].items() if details.get(name) == value}
    for table in tables.values():
        for row in table.values():
            several = len(sets[row['data_set'], row['split']]) > 1
            row['data'] = f'{row["data_set"]} {row["data_fingerprint"][:DIGITS]}' if several else row['data_set']
    return {protocol: list(table.values()) for protocol, table in tables.items()}
