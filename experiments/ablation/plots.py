"""Plots of a sweep, as PNG files whose bytes depend only on its records. This module does not use pyplot."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dualcl_jax.reports.figures import BLUE, CLASS_COLOURS, DPI, GREEN, MUTED, ORANGE
from dualcl_jax.system.files import write_output
from experiments.ablation.statistics import Estimate, estimate
from experiments.ablation.tables import Comparison

OVER = (('step', 'steps'), ('wall_time_s', 'wall time in s'), ('passes', '{examples} through the pair of encoders'))
"""The horizontal axes of the curves, and their labels."""


def draw_plots(folder: Path, comparison: Comparison) -> list[str]:
    """Writes `bars.png`, `curves.png`, and `axis.png` if arms have a place on an axis; returns their names."""
    figures = {'bars.png': bars(comparison), 'curves.png': curves(comparison)}
    if any(row.x is not None for row in comparison.rows):
        figures['axis.png'] = axis(comparison)
    for name, figure in figures.items():
        png = io.BytesIO()
        figure.savefig(png, format='png', dpi=DPI)
        write_output(str(folder / name), png.getvalue())
    return list(figures)


def bars(comparison: Comparison) -> Figure:
    """Mean values of every arm, and their differences from the baseline's, each with a t interval."""
    rows, measure = comparison.rows, comparison.measure
    figure = _figure(10.0, 1.3 + 0.36 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))
    spacing = 0.72 / len(measure.values)
    for number, value in enumerate(measure.values):
        colour = (BLUE, ORANGE, GREEN)[number]
        shifted = places + (number - (len(measure.values) - 1) / 2) * spacing
        compared = [row.values[number] for row in rows]
        _bars(left, shifted, [each.found for each in compared], spacing, colour, value.label)
        known = [(place, each.difference) for place, each in zip(shifted, compared, strict=True) if each.difference]
        _bars(right, np.array([place for place, _ in known]), [found for _, found in known], spacing, colour, '')
    left.set_yticks(places, [f'{row.arm}  (n {row.validation.found.n})' for row in rows])
    left.invert_yaxis()
    lowest = min(value.found.mean for row in rows for value in row.values)
    left.set_xlim(left=100 * lowest - 10 if lowest > 0.1 else min(0.0, 100 * lowest))
    left.set_xlabel(f'{measure.axis} (axis cut)' if lowest > 0.1 else measure.axis)
    right.set_xlabel(f'difference in points from\n{comparison.sweep["baseline"]}')
    right.axvline(0, color=MUTED, linewidth=0.8)
    figure.legend(loc='outside upper left', ncols=len(measure.values), frameon=False, fontsize=8)
    return figure


def _bars(axes: Axes, places: np.ndarray, found: Sequence[Estimate], spacing: float, colour: str, label: str) -> None:
    means = [100 * each.mean for each in found]
    axes.barh(places, means, height=spacing - 0.02, color=colour, alpha=0.85, label=label or None)
    axes.errorbar(means, places, xerr=_reach(found), fmt='none', ecolor='black', elinewidth=1, capsize=2)


def _reach(found: Sequence[Estimate]) -> list[float]:
    """Half the width of each interval × 100; NaN for a single run."""
    return [100 * (each.high - each.mean) if each.high is not None else np.nan for each in found]


def axis(comparison: Comparison) -> Figure:
    """The validation value over the arms' places on their axis, with one line per series."""
    figure = _figure(5.6, 3.6)
    axes = figure.subplots()
    rows = sorted((row for row in comparison.rows if row.x is not None), key=lambda row: row.x or 0.0)
    for number, series in enumerate(dict.fromkeys(row.series for row in rows)):
        own = [row for row in rows if row.series == series]
        xs = [row.x or 0.0 for row in own]
        means, colour = [100 * row.validation.found.mean for row in own], CLASS_COLOURS[number % len(CLASS_COLOURS)]
        reach = _reach([row.validation.found for row in own])
        axes.errorbar(xs, means, yerr=reach, color=colour, marker='o', capsize=2, label=series or None)
    places = sorted({row.x for row in rows if row.x is not None})
    if places[0] > 0 and places[-1] >= 8 * places[0]:
        axes.set_xscale('log', base=2)
    axes.set_xticks(places, [f'{place:.3g}' if place < 1 else f'{place:g}' for place in places])
    axes.set_xlabel(comparison.sweep['x_label'])
    axes.set_ylabel(f'{comparison.measure.axis}, {comparison.measure.validation.label}')
    if any(row.series for row in rows):
        axes.legend(frameon=False, fontsize=8)
    return figure


def curves(comparison: Comparison) -> Figure:
    """Mean validation value over steps, wall time and passes, one line per arm, ± its standard error."""
    figure, measure = _figure(12.0, 4.0), comparison.measure
    panels = figure.subplots(1, len(OVER), sharey=True)
    for axes, (over, called) in zip(panels, OVER, strict=True):
        for number, row in enumerate(comparison.rows):
            points: dict[int, list[dict[str, Any]]] = {}
            for record in comparison.records:
                for point in record['curve'] if record['arm'] == row.arm else ():
                    if point[measure.curve] is not None:  # older records have the values that are not finite
                        points.setdefault(point['step'], []).append(point)
            found = [(each, estimate([p[measure.curve] for p in each])) for _, each in sorted(points.items())]
            xs = [float(np.mean([point[over] for point in each])) for each, _ in found]
            means = np.array([100 * each.mean for _, each in found if each])
            error = np.array([100 * (each.error or 0.0) for _, each in found if each])
            colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
            style = ('-', '--', ':')[number // len(CLASS_COLOURS) % 3]
            axes.plot(xs, means, color=colour, linestyle=style, linewidth=1.4, marker='.', label=row.arm)
            axes.fill_between(xs, means - error, means + error, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(called.format(examples=measure.examples))
    panels[0].set_ylabel(f'{measure.axis}, {measure.validation.label}')
    panels[-1].legend(frameon=False, fontsize=7, loc='center left', bbox_to_anchor=(1.0, 0.5))
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure
