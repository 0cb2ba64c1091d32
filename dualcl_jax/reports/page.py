"""The page: one HTML file with everything inside, for one run or several side by side.

Curves and maps are drawn by `templates/report.js` as SVG, some 200 lines, because what a plotting library would bring
into every report (plotly.js: 4.5 MB) is ten times the report.
"""

from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath

from dualcl_jax.reports.content import Content
from dualcl_jax.system.files import write_text
from dualcl_jax.workdir.metrics import KNN_BACKBONE

RAW_PIXELS = 'monitor/knn_top1_raw_pixels'
"""Measured once: a level to compare with."""

# Title, unit, and lines: metric, name. The first line of a panel is solid, the second dashed, the third dotted.
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ('Contrastive loss', '', (('train/loss', 'loss'), ('train/loss_chance', 'chance'))),
    (
        'kNN accuracy on held-out images',
        '%',
        (
            (KNN_BACKBONE, 'backbone'),
            ('monitor/knn_top1_projection', 'projection'),
            (RAW_PIXELS, 'raw pixels'),
        ),
    ),
    (
        'Cosine similarity to the query',
        '',
        (('train/positive_similarity', 'positive'), ('train/negative_similarity', 'selected negatives')),
    ),
    (
        "Negatives of the anchor's class",
        '%',
        (('train/false_negative_rate', 'selected'), ('train/same_class_rate', 'in the queue')),
    ),
    ('Effective rank of queries', '', (('train/effective_rank', 'rank'),)),
    ('Gradient norm', '', (('train/gradient_norm', 'norm'),)),
)

FOR_SCRIPT = ('name', 'series', 'settled', 'map', 'class_names', 'fingerprint')


def render(runs: Sequence[Content]) -> str:
    """The page of runs, each from `content.describe`."""
    loader = jinja2.PackageLoader('dualcl_jax.reports', 'templates')
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters['percent'] = lambda share: f'{100 * share:.1f} %'
    panels = [
        {
            'title': title,
            'unit': unit,
            'settles': lines[0][0] == 'train/loss',  # while an empty queue fills, the loss rises from 0
            'lines': [{'metric': metric, 'name': name, 'reference': metric == RAW_PIXELS} for metric, name in lines],
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
    return environment.get_template('report.html').render(
        runs=runs,
        panels=panels,
        data=data,
        title=', '.join(run['name'] for run in runs),
        fact_names=list(dict.fromkeys(name for run in runs for name in run['facts'])),
        numbers=_compare_numbers(runs),
        differences=_differences(runs),
        evaluations=_compare_evaluations(runs),
    )


def write_page(runs: Sequence[Content], path: epath.Path) -> None:
    """Writes the page of runs, whole or not at all."""
    write_text(path, render(runs))


def _compare_numbers(runs: Sequence[Content]) -> list[dict[str, Any]]:
    """Every number that a run has, with its value in each run, or None."""
    names = list(dict.fromkeys(number['name'] for run in runs for number in run['numbers']))
    by_run = [{number['name']: number for number in run['numbers']} for run in runs]
    return [{'name': name, 'values': [numbers.get(name) for numbers in by_run]} for name in names]


def _differences(runs: Sequence[Content]) -> list[dict[str, Any]]:
    """Fields of the config in which runs differ."""
    fields = sorted({field for run in runs for field in run['config']})
    rows = [{'field': field, 'values': [run['config'].get(field) for run in runs]} for field in fields]
    return [row for row in rows if any(value != row['values'][0] for value in row['values'])]


def _compare_evaluations(runs: Sequence[Content]) -> dict[str, list[dict[str, Any]]]:
    """Results of `dualcl_jax.evaluate` by protocol: what was measured how, with its record in each run, or None."""
    same = ('metric', 'encoder', 'layer', 'k', 'tau', 'data_set', 'split', 'examples', 'step')
    tables: dict[str, dict[tuple, dict[str, Any]]] = {}
    for place, run in enumerate(runs):
        for record in run['evaluations']:
            details = {name: value for name, value in record['details'].items() if isinstance(value, int | float | str)}
            key = (*(record[name] for name in same), *details.items())
            empty = {name: record[name] for name in same} | {'details': details, 'records': [None] * len(runs)}
            table = tables.setdefault(record['protocol'], {})
            table.setdefault(key, empty)['records'][place] = record
    return {protocol: list(table.values()) for protocol, table in tables.items()}
