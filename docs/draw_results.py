"""Draws docs/accuracy.png, accuracy over the length of training, from stored runs: python docs/draw_results.py"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from experiments.ablation.records import read_all, read_plan  # noqa: E402
from experiments.ablation.statistics import estimate  # noqa: E402

RESULTS = REPOSITORY / 'experiments' / 'results'
ARMS = {'moco': ('MoCo', '#c4622d'), 'full': ('full method', '#2f6db3')}
MUTED = '#7c8791'


class Curves(NamedTuple):
    """Accuracies in %: of each arm's runs, after so many percent of their passes, and of raw pixels."""

    runs: Mapping[str, Sequence[Mapping[int, float]]]
    passes: int
    raw_pixels: float


def of_sweep(name: str) -> Curves:
    """The curves of a stored sweep, of validation images."""
    folder = RESULTS / 'ablations' / name
    records = read_all(folder, read_plan(folder))
    runs: dict[str, list[dict[int, float]]] = {arm: [] for arm in ARMS}
    for record in records:
        if record['arm'] in runs:
            steps = record['steps']
            runs[record['arm']].append({_percent(p['step'], steps): 100 * p['knn_backbone'] for p in record['curve']})
    return Curves(runs, records[0]['passes'], 100 * records[0]['raw_pixels'])


def of_gpu(name: str) -> Curves:
    """The curves of the stored runs on a GPU, of test images."""
    stored = json.loads((RESULTS / 'gpu' / f'{name}.json').read_text())['runs']
    runs = {}
    for arm, run in stored.items():
        steps = run['summary']['step']
        runs[arm] = [{_percent(p['step'], steps): 100 * p['monitor/knn_top1_backbone'] for p in run['monitor']}]
    one_way = stored['moco']['summary']
    return Curves(runs, one_way['images_seen'], 100 * one_way['knn_top1_raw_pixels'])


def _percent(step: int, steps: int) -> int:
    return round(100 * step / steps)


PANELS = {
    'width 16, 24 pixels': (of_sweep, 'longer', 1e3),
    'width 16, 24 pixels, small batches': (of_sweep, 'length_800000', 1e3),
    'CIFAR-100, width 16, 24 pixels': (of_sweep, 'cifar100', 1e3),
    'width 64, 32 pixels, one H100': (of_gpu, 'cifar10_h100', 1e6),
}
"""By title: the source of the curves, its name, and the unit of the passes."""


def draw_panel(axes: Axes, title: str) -> None:
    """The curves of both methods with their 95 % intervals where both were measured, and the accuracy of raw pixels."""
    read, name, unit = PANELS[title]
    curves = read(name)
    shared = sorted(set.intersection(*(set(run) for runs in curves.runs.values() for run in runs)))
    places = [percent / 100 * curves.passes / unit for percent in shared]
    for arm, (label, color) in ARMS.items():
        found = [estimate([run[percent] for run in curves.runs[arm]]) for percent in shared]
        axes.plot(places, [value.mean for value in found if value], color=color, marker='.', label=label)
        ends = [(value.low, value.high) for value in found if value and value.low is not None]
        if ends:
            axes.fill_between(places, *zip(*ends, strict=True), color=color, alpha=0.18, linewidth=0)
    axes.axhline(curves.raw_pixels, color=MUTED, linestyle=':', linewidth=1, label='raw pixels')
    seeds = len(curves.runs['moco'])
    axes.set_title(f'{title}\n{"one run each" if seeds == 1 else f"{seeds} seeds each"}', fontsize=9)
    axes.set_xlabel(f'{"million" if unit == 1e6 else "thousand"} images through the encoders', fontsize=9)
    axes.spines[['top', 'right']].set_visible(False)


def draw(path: Path) -> None:
    """Draws the figure into a file."""
    figure = Figure(figsize=(13.0, 3.5), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, title in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        draw_panel(axes, title)
    figure.axes[0].set_ylabel('kNN accuracy of the backbone in %', fontsize=9)
    figure.axes[-1].legend(frameon=False, fontsize=9, loc='center right')
    figure.savefig(path, dpi=150)


if __name__ == '__main__':
    draw(Path(__file__).with_name('accuracy.png'))
