"""The results of a sweep from its stored records: compared arms, and their tables as CSV, Markdown and LaTeX."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dualcl_jax.system.files import write_output
from experiments.ablation.effects import Effect, effects
from experiments.ablation.measures import MEASURES, Measure
from experiments.ablation.records import Record, by_seed
from experiments.ablation.statistics import CONFIDENCE, Estimate, estimate, excludes_zero, paired


class Compared(NamedTuple):
    """A value of an arm, a share of 1, over its seeds, and its difference from the baseline's of the same seeds.

    The difference is None for the baseline, and if no seed is shared.
    """

    found: Estimate
    difference: Estimate | None


@dataclasses.dataclass(frozen=True)
class Row:
    """An arm, with the values of the sweep's measure in its order."""

    arm: str
    x: float | None
    series: str
    values: tuple[Compared, ...]

    @property
    def validation(self) -> Compared:
        """The value by which arms are chosen."""
        return self.values[0]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A sweep's plan, its records, its arms with a finished run in the order of the plan, and main effects."""

    sweep: dict[str, Any]
    records: list[Record]
    rows: list[Row]
    effects: list[Effect]

    @property
    def measure(self) -> Measure:
        """What the runs are compared by."""
        return MEASURES[self.sweep['measure']]

    @property
    def headings(self) -> list[str]:
        """Headings of the values of an arm."""
        return [value.heading for value in self.measure.values]

    @property
    def chosen(self) -> Row:
        """The arm with the highest mean of the validation value."""
        return max(self.rows, key=lambda row: row.validation.found.mean)

    @property
    def differences(self) -> list[Estimate]:
        """The differences in the validation value of all arms that could be compared."""
        return [row.validation.difference for row in self.rows if row.validation.difference is not None]


def compare(sweep: dict[str, Any], records: list[Record]) -> Comparison:
    """Means and paired differences of every arm that has a finished run."""
    keys = [value.key for value in MEASURES[sweep['measure']].values]
    return Comparison(sweep, records, compare_arms(sweep, records, keys), effects(sweep, records, keys))


def compare_arms(sweep: dict[str, Any], records: list[Record], keys: Sequence[str]) -> list[Row]:
    """A row of values for every arm that has all of them, in the order of the plan."""
    rows = []
    for arm in sweep['arms']:
        compared = []
        for key in keys:
            values, baseline = by_seed(records, arm['name'], key), by_seed(records, sweep['baseline'], key)
            found = estimate(list(values.values()))
            if found is not None:
                difference = None if arm['name'] == sweep['baseline'] else paired(values, baseline)
                compared.append(Compared(found, difference))
        if len(compared) == len(keys):
            rows.append(Row(arm['name'], arm['x'], arm['series'], tuple(compared)))
    return rows


def write_tables(folder: Path, comparison: Comparison) -> list[str]:
    """Writes `runs.csv` with a row per run, `curves.csv` with a row per measurement, `table.md` and `table.tex`.

    Returns:
      Their names.
    """
    measure = comparison.measure
    columns = 'arm', 'seed', 'steps', 'passes', *measure.columns, 'loss', 'false_negative_rate', measure.rate
    curves = [
        {'arm': record['arm'], 'seed': record['seed'], **point}
        for record in comparison.records
        for point in record['curve']
    ]
    contents = {
        'runs.csv': _csv((*columns, 'wall_time_s', 'state_sha256'), comparison.records),
        'curves.csv': _csv(('arm', 'seed', 'step', 'passes', 'wall_time_s', measure.curve), curves),
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
    lines = [f'**{comparison.sweep["title"]}**', '', *markdown_arms(comparison.headings, comparison.rows)]
    if comparison.effects:
        rows = [
            [f'`{effect.level}` for `{effect.instead_of}`', *_effect_cells(effect, '−')]
            for effect in comparison.effects
        ]
        lines += ['', 'Effects, over the arms that differ in this alone:', '']
        lines += _markdown_table(('changed', 'pairs', 'n', *comparison.headings), rows)
    return '\n'.join([*lines, '', *(f'- {note}' for note in notes(comparison))]) + '\n'


def markdown_arms(headings: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table of arms: the values under these headings, each with its difference."""
    return _markdown_table(_columns('n', headings), [[f'`{row.arm}`', *_cells(row, '±', '−')] for row in rows])


def _columns(count: str, headings: Sequence[str]) -> list[str]:
    """The columns of a table of arms."""
    return ['arm', count, *(column for heading in headings for column in (heading, 'difference'))]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
    return [*head, *(f'| {" | ".join(cells)} |' for cells in rows)]


def latex(comparison: Comparison) -> str:
    """The tables for a paper, which needs the package booktabs. The notes are comments."""
    lines = [f'% {note}' for note in (comparison.sweep['title'], *notes(comparison))]
    lines += _tabular(
        _columns('$n$', comparison.headings), [[row.arm, *_cells(row, r'$\pm$', '$-$')] for row in comparison.rows]
    )
    if comparison.effects:
        rows = [
            [f'{effect.level} for {effect.instead_of}', *_effect_cells(effect, '$-$')] for effect in comparison.effects
        ]
        lines += ['', *_tabular(('changed', 'pairs', '$n$', *comparison.headings), rows)]
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
    """The cells of a row: values × 100 as text."""

    def mean(found: Estimate) -> str:
        error = '' if found.error is None else f' {plus_minus} {100 * found.error:.2f}'
        return f'{100 * found.mean:.2f}'.replace('-', minus) + error

    cells = [(mean(value.found), _difference(value.difference, minus)) for value in row.values]
    return [str(row.validation.found.n), *(cell for pair in cells for cell in pair)]


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
    measure, validation = comparison.measure, comparison.measure.validation.label
    clear, intervals = sum(map(excludes_zero, differences)), sum(found.low is not None for found in differences)
    found = [
        f'{measure.describe(first["config"])}: mean ± standard error over n seeds; difference: from '
        f'{sweep["baseline"]}, paired by seed, with its {CONFIDENCE:.0%} t interval.',
        f'Comparisons with {sweep["baseline"]}: {len(differences)}; intervals that exclude 0 on {validation}: '
        f'{clear}. They are not corrected for their number: if nothing made a difference, '
        f'{(1 - CONFIDENCE) * intervals:.2f} would exclude 0 by chance.'
        if differences
        else f'No differences: no seed has a finished run of the baseline {sweep["baseline"]} and of another arm.',
        f'Best on {validation}: {chosen.arm}. Its {measure.test} is the result of this choice; those of other arms '
        'chose nothing.',
        f'Each run: {first["passes"]:,} {measure.examples} through the pair of encoders'
        + _other_budgets(comparison)
        + f'. {len(comparison.records)} records; {planned} runs are planned.',
    ]
    if not all(record.get('validation_images', True) for record in comparison.records):  # of images alone
        found.append('No validation images were held out: what is called validation was measured on test images.')
    versions = ', '.join(f'{name} {version}' for name, version in sorted(first['versions'].items()))
    return [*found, f'Command: {sweep["command"]}', f'Versions of the first run: {versions}.']


def _other_budgets(comparison: Comparison) -> str:
    """Arms whose number of passes differs from that of the first record because of their batch size."""
    passes = {record['arm']: record['passes'] for record in comparison.records}
    first = comparison.records[0]['passes']
    others = [f'{arm} {count:,}' for arm, count in passes.items() if count != first]
    return f' ({", ".join(others)})' if others else ''
