"""The results of a sweep from its stored records: compared arms, and their tables as CSV, Markdown and LaTeX."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualcl_jax.system.files import write_output
from experiments.ablation.effects import Effect, effects
from experiments.ablation.records import Record, by_seed
from experiments.ablation.statistics import CONFIDENCE, Estimate, estimate, excludes_zero, paired

VALIDATION, TEST = 'validation_knn_backbone', 'test_knn_backbone'
COLUMNS = (
    'arm', 'seed', 'steps', 'passes', VALIDATION, 'validation_knn_projection', TEST, 'test_knn_projection',
    'raw_pixels', 'random_encoder', 'loss', 'false_negative_rate', 'images_per_second', 'wall_time_s', 'state_sha256',
)  # fmt: skip
"""Columns of `runs.csv`, which has one row per run."""
CURVE_COLUMNS = ('arm', 'seed', 'step', 'passes', 'wall_time_s', 'knn_backbone')
"""Columns of `curves.csv`, which has one row per measurement."""


@dataclasses.dataclass(frozen=True)
class Row:
    """An arm: accuracies in [0, 1] over its seeds, and their differences from the baseline's of the same seeds.

    The differences are None for the baseline, and if no seed is shared.
    """

    arm: str
    x: float | None
    series: str
    validation: Estimate
    validation_difference: Estimate | None
    test: Estimate
    test_difference: Estimate | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A sweep's plan, its records, its arms with a finished run in the order of the plan, and main effects."""

    sweep: dict[str, Any]
    records: list[Record]
    rows: list[Row]
    effects: list[Effect]

    @property
    def chosen(self) -> Row:
        """The arm with the highest mean on the validation images."""
        return max(self.rows, key=lambda row: row.validation.mean)

    @property
    def differences(self) -> list[Estimate]:
        """The differences on validation images of all arms that could be compared."""
        return [row.validation_difference for row in self.rows if row.validation_difference is not None]


def compare(sweep: dict[str, Any], records: list[Record]) -> Comparison:
    """Means and paired differences of every arm that has a finished run."""
    rows = []
    for arm in sweep['arms']:
        found = []
        for metric in (VALIDATION, TEST):
            values = by_seed(records, arm['name'], metric)
            baseline = by_seed(records, sweep['baseline'], metric)
            found += [estimate(list(values.values())), paired(values, baseline)]
        validation, validation_difference, test, test_difference = found
        if validation is None or test is None:
            continue
        if arm['name'] == sweep['baseline']:
            validation_difference = test_difference = None
        rows.append(Row(arm['name'], arm['x'], arm['series'], validation, validation_difference, test, test_difference))
    return Comparison(sweep, records, rows, effects(sweep, records, (VALIDATION, TEST)))


def write_tables(folder: Path, comparison: Comparison) -> list[str]:
    """Writes `runs.csv`, `curves.csv`, `table.md` and `table.tex`; returns their names."""
    curves = [
        {'arm': record['arm'], 'seed': record['seed'], **point}
        for record in comparison.records
        for point in record['curve']
    ]
    contents = {
        'runs.csv': _csv(COLUMNS, comparison.records),
        'curves.csv': _csv(CURVE_COLUMNS, curves),
        'table.md': markdown(comparison),
        'table.tex': latex(comparison),
    }
    for name, text in contents.items():
        write_output(str(folder / name), text.encode())
    return list(contents)


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(comparison: Comparison) -> str:
    """The table for a README, followed by notes on what it shows and does not show."""
    lines = [f'**{comparison.sweep["title"]}**', '']
    lines += ['| arm | n | validation | difference | test | difference |', '|---|---|---|---|---|---|']
    lines += ['| ' + ' | '.join((f'`{row.arm}`', *_cells(row, '±', '−'))) + ' |' for row in comparison.rows]
    if comparison.effects:
        lines += ['', 'Effects, over the arms that differ in this alone:', '']
        lines += ['| changed | pairs | n | validation | test |', '|---|---|---|---|---|']
        for effect in comparison.effects:
            changed = f'`{effect.level}` for `{effect.instead_of}`'
            lines.append('| ' + ' | '.join((changed, *_effect_cells(effect, '−'))) + ' |')
    return '\n'.join([*lines, '', *(f'- {note}' for note in notes(comparison))]) + '\n'


def latex(comparison: Comparison) -> str:
    """The tables for a paper, which needs the package booktabs. The notes are comments."""
    lines = [f'% {note}' for note in (comparison.sweep['title'], *notes(comparison))]
    columns = ('arm', '$n$', 'validation', 'difference', 'test', 'difference')
    lines += _tabular(columns, [[row.arm, *_cells(row, r'$\pm$', '$-$')] for row in comparison.rows])
    if comparison.effects:
        rows = [
            [f'{effect.level} for {effect.instead_of}', *_effect_cells(effect, '$-$')] for effect in comparison.effects
        ]
        lines += ['', *_tabular(('changed', 'pairs', '$n$', 'validation', 'test'), rows)]
    return '\n'.join(lines) + '\n'


def _tabular(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a LaTeX table with names in the first column."""
    lines = [
        r'\begin{tabular}{l' + 'r' * (len(columns) - 1) + '}',
        r'\toprule',
        ' & '.join(columns) + r' \\',
        r'\midrule',
    ]
    lines += [' & '.join((name.replace('_', r'\_'), *cells)) + r' \\' for name, *cells in rows]
    return [*lines, r'\bottomrule', r'\end{tabular}']


def _cells(row: Row, plus_minus: str, minus: str) -> list[str]:
    """The cells of a row: percentages as text."""

    def mean(found: Estimate) -> str:
        return f'{100 * found.mean:.2f}' + (f' {plus_minus} {100 * found.error:.2f}' if found.error is not None else '')

    return [
        str(row.validation.n),
        mean(row.validation),
        _difference(row.validation_difference, minus),
        mean(row.test),
        _difference(row.test_difference, minus),
    ]


def _effect_cells(effect: Effect, minus: str) -> list[str]:
    """The cells of an effect: pairs, seeds, and the differences as text."""
    n = max((found.n for found in effect.values if found is not None), default=0)
    return [str(effect.pairs), str(n), *(_difference(found, minus) for found in effect.values)]


def _difference(found: Estimate | None, minus: str) -> str:
    """A difference in points, with its interval if it has one."""

    def signed(value: float) -> str:
        return f'{100 * value:+.2f}'.replace('-', minus)

    if found is None:
        return ''
    interval = '' if found.low is None or found.high is None else f' [{signed(found.low)}, {signed(found.high)}]'
    return signed(found.mean) + interval


def notes(comparison: Comparison) -> list[str]:
    """Notes on the numbers, the count of comparisons, the choice of an arm, and how to reproduce the results."""
    sweep, chosen, differences = comparison.sweep, comparison.chosen, comparison.differences
    first, planned = comparison.records[0], len(sweep['arms']) * len(sweep['seeds'])
    settings = first['config']['monitor']
    clear, intervals = sum(map(excludes_zero, differences)), sum(found.low is not None for found in differences)
    found = [
        f'kNN accuracy of the backbone in % (k {settings["k"]}, τ {settings["temperature"]:g}): mean ± standard error '
        f'over n seeds; difference: from {sweep["baseline"]}, paired by seed, with its {CONFIDENCE:.0%} t interval.',
        f'Comparisons with {sweep["baseline"]}: {len(differences)}; intervals that exclude 0 on validation images: '
        f'{clear}. They are not corrected for their number: if nothing made a difference, '
        f'{(1 - CONFIDENCE) * intervals:.2f} would exclude 0 by chance.'
        if differences
        else f'No differences: no seed has a finished run of the baseline {sweep["baseline"]} and of another arm.',
        f'Best on validation images: {chosen.arm}. Its test accuracy is the result of this choice; those of other arms '
        'chose nothing.',
        f'Each run: {first["passes"]:,} images through the pair of encoders'
        + _other_budgets(comparison)
        + f'. {len(comparison.records)} records; {planned} runs are planned.',
    ]
    if not all(record['validation_images'] for record in comparison.records):
        found.append('No validation images were held out: what is called validation was measured on test images.')
    versions = ', '.join(f'{name} {version}' for name, version in sorted(first['versions'].items()))
    return [*found, f'Command: {sweep["command"]}', f'Versions of the first run: {versions}.']


def _other_budgets(comparison: Comparison) -> str:
    """Arms whose number of passes differs from that of the first record because of their batch size."""
    passes = {record['arm']: record['passes'] for record in comparison.records}
    first = comparison.records[0]['passes']
    others = [f'{arm} {count:,}' for arm, count in passes.items() if count != first]
    return f' ({", ".join(others)})' if others else ''
