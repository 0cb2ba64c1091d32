"""Draws docs/accuracy.png, accuracy over the length of training, from stored runs: python docs/draw_results.py"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from experiments.ablation.records import Record, read_all, read_plan  # noqa: E402
from experiments.ablation.statistics import estimate  # noqa: E402

PANELS = {
    'longer': 'CIFAR-10, 20,000 images',
    'cifar100': 'CIFAR-100, 45,000 images',
}
"""Sweeps, and their titles."""
ARMS = {'moco': ('MoCo', '#c4622d'), 'full': ('dual view, hardest quarter, key term', '#2f6db3')}
MUTED = '#7c8791'


def curve(records: list[Record], arm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Passes in thousands [P], mean accuracy in % [P], and half of its 95 % interval [P], where all seeds have a value."""
    runs = [record for record in records if record['arm'] == arm]
    points: dict[int, list[float]] = {}
    for record in runs:
        for point in record['curve']:
            points.setdefault(point['passes'], []).append(100 * point['knn_backbone'])
    complete = {passes: values for passes, values in points.items() if len(values) == len(runs)}
    last = max(complete)
    kept = sorted(passes for passes in complete if passes == last or passes < 0.98 * last)
    found = [estimate(complete[passes]) for passes in kept]
    means = np.array([each.mean for each in found if each])
    reach = np.array([each.high - each.mean if each.high is not None else np.nan for each in found if each])
    return np.array(kept) / 1000, means, reach


def draw_panel(axes: Axes, records: list[Record], title: str) -> None:
    """The curves of both methods with their intervals, and the accuracy of raw pixels."""
    for arm, (label, color) in ARMS.items():
        passes, means, reach = curve(records, arm)
        axes.plot(passes, means, color=color, marker='.', label=label)
        axes.fill_between(passes, means - reach, means + reach, color=color, alpha=0.18, linewidth=0)
    axes.axhline(100 * records[0]['raw_pixels'], color=MUTED, linestyle=':', linewidth=1, label='raw pixels')
    axes.set_title(f'{title}, {len({record["seed"] for record in records})} seeds', fontsize=10)
    axes.set_xlabel('thousand images through the pair of encoders')
    axes.spines[['top', 'right']].set_visible(False)


def draw(path: Path) -> None:
    """Draws the figure into a file."""
    figure = Figure(figsize=(9.6, 3.6), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, (sweep, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        folder = REPOSITORY / 'experiments' / 'results' / 'ablations' / sweep
        draw_panel(axes, read_all(folder, read_plan(folder)), title)
    figure.axes[0].set_ylabel('kNN accuracy, validation images, in %')
    figure.axes[0].legend(frameon=False, fontsize=8, loc='lower right')
    figure.savefig(path, dpi=150)


if __name__ == '__main__':
    draw(Path(__file__).with_name('accuracy.png'))
