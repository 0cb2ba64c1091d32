"""Draws docs/method.png, the picture of the method: python docs/draw_method.py"""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import skimage.transform
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, QUERY, KEY, HARD, PLAIN = '#22303c', '#2f6db3', '#c4622d', '#b3261e', '#d5dbe1'


def box(ax: Axes, x: float, y: float, text: str, color: str, *, width: float = 2.3, height: float = 0.9) -> None:
    """A labelled box around (x, y)."""
    style = {'boxstyle': 'round,pad=0.02,rounding_size=0.12', 'linewidth': 1.6}
    ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, fc='white', ec=color, **style))
    ax.text(x, y, text, ha='center', va='center', color=color, fontsize=11)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, **options: object) -> None:
    """An arrow from start to end."""
    style = {'arrowstyle': '-|>', 'mutation_scale': 13, 'linewidth': 1.5} | options
    ax.add_patch(FancyArrowPatch(start, end, color=color, **style))


def picture(ax: Axes, image: np.ndarray, x: float, y: float, side: float) -> None:
    """A square image around (x, y)."""
    ax.imshow(image, extent=(x - side / 2, x + side / 2, y - side / 2, y + side / 2), zorder=2)
    ax.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, ec=INK, lw=1, zorder=3))


def draw(path: Path) -> None:
    """Draws the picture into a file."""
    photo = skimage.data.chelsea()[20:280, 80:340] / 255.0
    views = [photo[10:170, 60:220], np.clip(photo[60:250, 20:210][:, ::-1] * [1.15, 0.95, 0.75], 0, 1)]
    figure, ax = plt.subplots(figsize=(12, 5.4))
    picture(ax, photo, 1.0, 2.9, 1.7)
    ax.text(1.0, 1.8, 'image', ha='center', color=INK, fontsize=11)
    for view, y, number in zip(views, (4.4, 1.4), '12', strict=True):
        picture(ax, skimage.transform.resize(view, (96, 96)), 3.5, y, 1.3)
        ax.text(3.5, y - 0.9, f'view {number}', ha='center', color=INK, fontsize=11)
        arrow(ax, (1.95, 2.9 + 0.3 * np.sign(y - 2.9)), (2.75, y))
    box(ax, 6.2, 4.4, 'encoder θ', QUERY)
    box(ax, 6.2, 1.4, 'momentum\nencoder ξ', KEY)
    for y in (4.4, 1.4):
        arrow(ax, (4.25, y), (5.0, y))
    arrow(ax, (6.2, 3.85), (6.2, 1.95), KEY, linestyle='--')
    ax.text(6.05, 2.9, 'ξ ← m·ξ + (1 − m)·θ', color=KEY, fontsize=10, va='center', ha='right')
    for y, name, color in ((4.4, 'query q', QUERY), (1.4, 'key k', KEY)):
        arrow(ax, (7.45, y), (8.4, y), color)
        ax.text(8.95, y, name, ha='center', va='center', color=color, fontsize=12)
    box(ax, 12.3, 4.4, 'InfoNCE(q, k): positive\nagainst selected negatives', INK, width=4.0, height=1.1)
    arrow(ax, (9.55, 4.4), (10.2, 4.4), QUERY)
    arrow(ax, (9.35, 1.7), (10.9, 3.75), KEY)
    ax.text(9.95, 2.9, 'positive', color=KEY, fontsize=10, ha='right')
    hardness = np.array([1, 3, 0, 2, 0, 4, 1, 0, 3, 0, 1, 2])
    for index, hard in enumerate(hardness):
        chosen = hard >= 3
        place = (10.55 + 0.3 * index, 1.1)
        ax.add_patch(Rectangle(place, 0.27, 0.6, fc=HARD if chosen else PLAIN, ec='white'))
        if chosen:
            arrow(ax, (place[0] + 0.13, 1.75), (12.3 + 0.12 * (index - 6), 3.75), HARD, linewidth=1.1)
    arrow(ax, (9.45, 1.4), (10.45, 1.4), KEY)
    ax.text(12.35, 0.72, 'queue of earlier keys', ha='center', color=INK, fontsize=11)
    ax.text(13.35, 2.75, 'hard negatives:\nmost similar to q', color=HARD, fontsize=10)
    ax.text(
        7.4, -0.2, 'Dual view: the views change places, and the loss is the mean of both orders.',
        ha='center', color=INK, fontsize=11, style='italic',
    )  # fmt: skip
    ax.set(xlim=(0, 15.2), ylim=(-0.5, 5.3), aspect='equal')
    ax.axis('off')
    figure.savefig(path, dpi=110, bbox_inches='tight', facecolor='white', metadata={'Software': None})
    plt.close(figure)


if __name__ == '__main__':
    draw(Path(__file__).with_name('method.png'))
