"""Figures of a run as PNG files: training curves, view pairs, nearest neighbours, a map of the embedding.

Each function takes arrays or records and a path, writes one picture and returns the path. No function uses pyplot or
its global state.
"""

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath
from numpy.typing import NDArray

from dualcl_jax.system.files import write_bytes
from dualcl_jax.workdir.metrics import KNN, STS

DPI = 150
DASHED = (0, (4, 3))

# Okabe and Ito's palette, which all kinds of colour vision can distinguish.
BLUE, ORANGE, GREEN, VERMILLION = '#0072B2', '#E69F00', '#009E73', '#D55E00'
INK, MUTED, FAINT = '#222222', '#6B6B6B', '#D9D9D9'
# Paul Tol's muted scheme and a gray: ten classes for all kinds of colour vision; ten more have another marker.
CLASS_COLOURS = (
    '#332288', '#CC6677', '#117733', '#DDCC77', '#88CCEE',
    '#AA4499', '#999933', '#44AA99', '#882255', '#777777',
)  # fmt: skip
CLASS_MARKERS = ('o', '^')


class Panel(NamedTuple):
    """What is drawn of a score: its title, its unit, the name of its baseline, and its curves.

    The curves, rows [n, 2] of (step, value), are those of the metrics of a `Score`.
    """

    title: str
    unit: str
    baseline: str
    lines: Sequence[NDArray[np.float64]]


def curves(records: Sequence[Mapping[str, Any]], baseline: str, path: str | os.PathLike[str]) -> epath.Path:
    """Draws the loss with its chance level, and each score that was measured with its references, over the steps.

    Args:
      records: records of `metrics.jsonl`: `step` and any of `train/loss`, `train/loss_chance` and the metrics of `KNN`
        and `STS`. Missing and non-finite values are omitted. Without scores only the loss is drawn.
      baseline: the name of the baseline of kNN, such as raw pixels.
      path: path of the PNG.
    """
    loss, chance = _series(records, 'train/loss'), _series(records, 'train/loss_chance')
    scores = [
        Panel('kNN accuracy on held-out examples', ' %', baseline, [_series(records, key) for key in KNN]),
        Panel('Spearman on STS-B dev × 100', '', 'TF-IDF', [_series(records, key) for key in STS]),
    ]
    scores = [score for score in scores if any(map(len, score.lines))]
    figure = _figure(5.2 + 4 * len(scores), 3.4)
    panels = np.atleast_1d(figure.subplots(1, 1 + len(scores)))
    last_step = max((record['step'] for record in records), default=0)

    left = panels[0]
    _dress(left, 'Contrastive loss', last_step)
    after = loss[loss[:, 0] >= settled_step(records)]
    settled = after if len(after) else loss
    smooth = _running_mean(settled)
    _line(left, loss, BLUE, alpha=0.3 if len(smooth) else 1.0, linewidth=0.8 if len(smooth) else 1.6)
    _line(left, smooth, BLUE)
    _line(left, chance, MUTED, linestyle=DASHED, linewidth=1.2)
    if len(loss):  # the loss rises from 0 while the queue fills; that part may lie outside the axes
        heights = [*settled[:, 1], *chance[-1:, 1]]
        pad = 0.07 * (max(heights) - min(heights)) or 0.5
        left.set_ylim(max(0, min(heights) - pad), max(heights) + pad)
    named = [('loss', loss, BLUE), ('chance', chance, MUTED)]
    _label_ends(left, [(f'{name} {line[-1, 1]:.2f}', line[-1, 1], colour) for name, line, colour in named if len(line)])
    for axes, score in zip(panels[1:], scores, strict=True):
        _draw_score(axes, score, last_step)
    return _save(figure, path)


def _draw_score(axes: Any, score: Panel, last_step: int) -> None:
    """Draws a score times 100: curves of backbone and projection, and its levels before training and of a baseline."""
    backbone, projection, baseline = score.lines
    _dress(axes, score.title, last_step)
    axes.yaxis.set_major_formatter('{x:g}' + score.unit)
    untrained = backbone[:1] if len(backbone) > 1 and backbone[0, 0] == 0 else backbone[:0]
    named = [
        ('projection', projection, ORANGE),
        ('backbone', backbone, BLUE),
        ('before training', untrained, MUTED),
        (score.baseline, baseline, GREEN),
    ]
    for name, line, colour in named:
        if name in ('projection', 'backbone'):
            _line(axes, line * (1, 100), colour, marker='o', markersize=3.5)
        elif len(line):
            axes.axhline(100 * line[-1, 1], color=colour, linestyle=DASHED, linewidth=1.2, zorder=1)
    ends = [(name, 100 * line[-1, 1], colour) for name, line, colour in named if len(line)]
    _label_ends(axes, [(f'{name} {value:.1f}{score.unit}', value, colour) for name, value, colour in ends])


def view_pairs(images: NDArray, views: NDArray, path: str | os.PathLike[str]) -> epath.Path:
    """Draws one column for each image: the image above its V augmented views. Best with 10 to 12 images.

    Small images are enlarged by a whole number, pixel by pixel; large ones are reduced.

    Args:
      images: [n, H, W, C] uint8, C 1 (gray) or 3.
      views: [V, n, h, w, C] uint8.
      path: path of the PNG.
    """
    rows = [('original', images), *((f'view {index + 1}', view) for index, view in enumerate(views))]
    side = _cell_side(*views.shape[2:4])
    gap, group_gap, left, margin = 6, 14, 84, 12
    height = 2 * margin + len(rows) * (side + gap) - gap + group_gap
    width = left + len(images) * (side + gap) - gap + margin
    sheet = _Sheet(height, width)
    for row, (name, shown) in enumerate(rows):
        top = margin + row * (side + gap) + (group_gap if row else 0)
        sheet.text(left - 10, top + side / 2, name, ha='right', va='center', fontsize=8.5)
        for column, image in enumerate(shown):
            sheet.paste(image, top, left + column * (side + gap), side)
    return sheet.save(path)


def neighbours(
    query_images: NDArray,
    query_labels: NDArray | None,
    neighbour_images: NDArray,
    neighbour_labels: NDArray | None,
    similarities: NDArray,
    class_names: Sequence[str] | None,
    path: str | os.PathLike[str],
) -> epath.Path:
    """Draws one row for each query: the query, then its nearest training images with their cosine similarities.

    With labels, a green frame marks the query's class. A vermillion frame marks another class, with its name below.

    Args:
      query_images: [m, H, W, C] uint8.
      query_labels: [m] integers, -1 if unknown; or None.
      neighbour_images: [m, k, H, W, C] uint8, the most similar first.
      neighbour_labels: [m, k] integers, -1 if unknown; or None.
      similarities: [m, k] float.
      class_names: a name for each label; or None.
      path: path of the PNG.
    """
    side = _cell_side(*query_images.shape[1:3])
    names = None
    if query_labels is not None and class_names is not None:
        names = [_class_name(class_names, int(label), 16) for label in query_labels]
    framed = query_labels is not None and neighbour_labels is not None
    frame, gap, margin, header = 4 if framed else 0, 14, 14, 34
    caption = 44 if names else 28
    name_width = 14 + 11 * max(map(len, names)) if names else 0
    first = margin + name_width + side + 2 * gap + 10
    pitch_x, pitch_y = side + 2 * frame + gap, side + 2 * frame + caption
    count, k = similarities.shape
    sheet = _Sheet(header + count * pitch_y + 6, first + k * pitch_x)
    sheet.text(margin + name_width + side / 2, header / 2, 'query', weight='bold', ha='center', va='center')
    sheet.text(first + frame, header / 2, 'nearest training images (cosine similarity)', weight='bold', va='center')
    for row in range(count):
        top = header + row * pitch_y + frame
        if names:
            sheet.text(margin + name_width - 10, top + side / 2, names[row], fontsize=8, ha='right', va='center')
        sheet.paste(query_images[row], top, margin + name_width, side)
        for column in range(k):
            left = first + frame + column * pitch_x
            ink, below = INK, ''
            if query_labels is not None and neighbour_labels is not None:
                label, other = int(query_labels[row]), int(neighbour_labels[row, column])
                known, same = min(label, other) >= 0, label == other
                ink = MUTED if not known else GREEN if same else VERMILLION
                below = _class_name(class_names, other, 14) if names and known and not same else ''
                sheet.frame(top, left, side, frame, ink)
            sheet.paste(neighbour_images[row, column], top, left, side)
            middle, bottom = left + side / 2, top + side + frame
            sheet.text(middle, bottom + 4, f'{similarities[row, column]:.2f}', fontsize=7, ha='center', va='top')
            sheet.text(middle, bottom + 20, below, fontsize=6.5, color=ink, ha='center', va='top')
    return sheet.save(path)


def embedding_map(
    points: NDArray,
    labels: NDArray | None,
    class_names: Sequence[str] | None,
    path: str | os.PathLike[str],
    of: str = 'held-out images',
) -> epath.Path:
    """Draws a map of features in the plane, with one colour for each class. Up to 20 classes have a legend.

    Args:
      points: [n, 2] from `dualcl_jax.reports.samples.in_plane`.
      labels: [n] integers, -1 if unknown; or None.
      class_names: a name for each label; or None.
      path: path of the PNG.
      of: what the features describe, for the title.
    """
    known = np.unique(labels[labels >= 0]) if labels is not None else np.empty(0, int)
    with_legend = 0 < len(known) <= len(CLASS_COLOURS) * len(CLASS_MARKERS)
    figure = _figure(7.2 if with_legend else 5.4, 5.2)
    axes = figure.subplots()
    axes.set_aspect('equal', adjustable='datalim')
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.set_title(f't-SNE of backbone features, {len(points):,} {of}', fontsize=10.5, loc='left', color=INK)
    style = {'s': 15, 'linewidths': 0.3, 'edgecolors': 'white', 'alpha': 0.9}
    if labels is None:
        axes.scatter(*points.T, color=BLUE, **style)
    else:
        axes.scatter(*points[labels < 0].T, color=FAINT, **style)
        for index, label in enumerate(known):
            axes.scatter(
                *points[labels == label].T,
                color=CLASS_COLOURS[index % len(CLASS_COLOURS)],
                marker=CLASS_MARKERS[index // len(CLASS_COLOURS) % len(CLASS_MARKERS)],
                # The space matters: matplotlib hides labels that begin with an underscore.
                label=f' {_class_name(class_names, label, 24)}',
                **style,
            )
    if with_legend:
        legend = axes.legend(
            loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, labelcolor=INK, markerscale=1.7,
            handletextpad=0, borderaxespad=0,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    return _save(figure, path)


class _Sheet:
    """A white canvas in pixels for images and text. Images are not resampled."""

    def __init__(self, height: int, width: int) -> None:
        self._canvas = np.full((height, width, 3), 255, np.uint8)
        self._figure = _figure(width / DPI, height / DPI, layout=None)

    def paste(self, image: NDArray, top: int, left: int, side: int) -> None:
        """Centres an image in the square at (top, left), with a gray hairline between image and white canvas."""
        image = _fit(image, side)
        height, width, _ = image.shape
        top, left = top + (side - height) // 2, left + (side - width) // 2
        outline = self._canvas[top - 1 : top + height + 1, left - 1 : left + width + 1]
        np.minimum(outline, 217, out=outline)
        self._canvas[top : top + height, left : left + width] = image

    def frame(self, top: int, left: int, side: int, thickness: int, colour: str) -> None:
        """Fills the square and a border around it. Call it before pasting the image."""
        from matplotlib.colors import to_rgb

        inside = slice(top - thickness, top + side + thickness), slice(left - thickness, left + side + thickness)
        self._canvas[inside] = np.round(255 * np.asarray(to_rgb(colour))).astype(np.uint8)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        height, width, _ = self._canvas.shape
        style = {'color': INK, 'fontsize': 8.5} | style
        self._figure.text(left / width, 1 - top / height, text, parse_math=False, **style)

    def save(self, path: str | os.PathLike[str]) -> epath.Path:
        self._figure.figimage(self._canvas)
        return _save(self._figure, path)


def _figure(width: float, height: float, layout: Literal['constrained'] | None = 'constrained') -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor='white')


def _save(figure: Any, path: str | os.PathLike[str]) -> epath.Path:
    """Writes a PNG to a local or remote path and creates its folder."""
    content = io.BytesIO()
    with warnings.catch_warnings():  # class names may use any script; a glyph missing from the font becomes a box
        warnings.filterwarnings('ignore', message='Glyph .* missing from font')
        figure.savefig(content, format='png', dpi=DPI)
    written = epath.Path(path)
    written.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(written, content.getvalue())
    return written


def _series(records: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """Rows [n, 2] of (step, value) from the records that have a finite value."""
    rows = [(record['step'], record[key]) for record in records if record.get(key) is not None]
    series = np.asarray(rows, np.float64).reshape(-1, 2)
    return series[np.isfinite(series[:, 1])]


def settled_step(records: Sequence[Mapping[str, Any]]) -> int:
    """The step from which on the queue is nearly full, as the chance level of the loss shows. Before it the loss rises
    from 0. It is 0 if no record has a chance level.
    """
    steps, levels = _series(records, 'train/loss_chance').T
    return int(np.min(steps[levels >= 0.95 * np.max(levels)])) if len(levels) else 0


def _running_mean(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred running mean over a fortieth of a long series; an empty series for a short one."""
    window = len(series) // 40
    if window < 2:
        return series[:0]
    kernel = np.full(window, 1 / window)
    return np.stack([np.convolve(column, kernel, mode='valid') for column in series.T], axis=1)


def _dress(axes: Any, title: str, last_step: int) -> None:
    axes.set_title(title, fontsize=10.5, loc='left', color=INK)
    axes.set_xlabel('step', fontsize=9, color=INK)
    axes.set_xlim(-0.02 * max(last_step, 1), 1.02 * max(last_step, 1))
    axes.xaxis.set_major_locator(_integer_ticks())
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.tick_params(labelsize=8.5, color=MUTED, labelcolor=INK)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['bottom', 'left']].set_color(MUTED)
    axes.grid(axis='y', color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _integer_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True)


def _line(axes: Any, series: NDArray[np.float64], colour: str, **style: Any) -> None:
    if len(series) == 1:
        style = {'marker': 'o', 'markersize': 3.5} | style
    axes.plot(series[:, 0], series[:, 1], color=colour, **({'linewidth': 1.6} | style))


def _label_ends(axes: Any, ends: Sequence[tuple[str, float, str]]) -> None:
    """Writes the text of each curve at its height to the right of the axes, and separates texts that would overlap."""
    bottom, top = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    heights = [(value - bottom) / (top - bottom) for _, value, _ in ends]
    pitch = 0.075
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + pitch)
    heights = [min(height, 1 - pitch * (len(heights) - 1 - index)) for index, height in enumerate(heights)]
    for (text, _, colour), height in zip(ends, heights, strict=True):
        axes.text(1.02, height, text, color=colour, fontsize=8.5, va='center', transform=axes.transAxes)


def _cell_side(height: int, width: int) -> int:
    """The pixels of the longer side of a drawn image: a multiple of its size near 100, or 128 for a large image."""
    longest = max(height, width)
    return longest * max(1, round(100 / longest)) if longest <= 128 else 128


def _fit(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Converts an image to RGB and fits it into a square: enlarges it by a whole number, or reduces it."""
    image = fit_within(image, side)
    times = side // max(image.shape[:2])
    return image.repeat(times, axis=0).repeat(times, axis=1)


def fit_within(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Converts an image [H, W, 1 or 3] to RGB, and reduces it if a side has more than `longest` pixels."""
    from PIL import Image

    image = np.broadcast_to(image, (*image.shape[:2], 3))
    side = max(image.shape[:2])
    if side <= longest:
        return image
    height, width = (max(1, round(length * longest / side)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.LANCZOS))


def _class_name(class_names: Sequence[str] | None, label: int, longest: int) -> str:
    """The name of a class, or its number, cut to `longest` characters."""
    name = str(label) if class_names is None else str(class_names[label]) if label >= 0 else ''
    return name if len(name) <= longest else name[: longest - 1] + '…'
