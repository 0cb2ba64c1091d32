import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dualcl_jax.reports import figures


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def opened(path, widths, heights):
    """Opens a picture as RGB and checks that it is a complete PNG of sensible size, not blank, with a white margin."""
    assert path.exists()
    Image.open(io.BytesIO(path.read_bytes())).verify()
    image = Image.open(io.BytesIO(path.read_bytes()))
    assert image.format == 'PNG'
    assert widths[0] <= image.width <= widths[1]
    assert heights[0] <= image.height <= heights[1]
    pixels = np.asarray(image.convert('RGB'))
    assert pixels.std() > 3
    assert (pixels[0] == 255).all()
    return pixels


def has_colour(pixels, colour):
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return bool((pixels == wanted).all(axis=-1).any())


def run_records(steps=40, knn=True):
    records = []
    for step in range(steps + 1):
        record = {
            'step': step,
            'wall_time_s': float(step),
            'train/loss': 0.0 if step == 0 else 7 - step / steps,
            'train/loss_chance': 0.0 if step == 0 else 7.0,
        }
        if knn and step % 10 == 0:
            record |= {
                'monitor/knn_top1_backbone': 0.47 + step / 200,
                'monitor/knn_top1_projection': 0.45 + step / 200,
            }
        records.append(record)
    if knn:
        records[0]['monitor/knn_top1_raw_pixels'] = 0.34
    return records


CURVES = (1300, 1500), (450, 600)
LOSS_ONLY = (700, 900), (450, 600)


def test_curves_of_a_run(tmp_path):
    path = figures.curves(run_records(), 'raw pixels', tmp_path / 'figures' / 'curves.png')
    assert str(path) == str(tmp_path / 'figures' / 'curves.png')
    pixels = opened(path, *CURVES)
    for colour in (figures.BLUE, figures.ORANGE, figures.GREEN, figures.MUTED):
        assert has_colour(pixels, colour)


def test_curves_of_a_long_run_show_a_running_mean(tmp_path, monkeypatch):
    """It is over 50 of 2,000 steps, so that noise of alternating signs disappears; the loss itself is drawn lighter."""
    drawn, line = [], figures._line

    def observed(axes, series, colour, **style):
        drawn.append((series, style))
        line(axes, series, colour, **style)

    monkeypatch.setattr(figures, '_line', observed)
    records = run_records(steps=2000)
    for record in records[1:]:
        record['train/loss'] += 0.5 * (-1) ** record['step']
    opened(figures.curves(records, 'raw pixels', str(tmp_path / 'curves.png')), *CURVES)
    (loss, lighter), (mean, _), *_ = drawn
    assert len(loss) == 2001
    assert lighter['alpha'] < 1
    np.testing.assert_allclose(mean[:, 0], np.arange(25.5, 1976))
    np.testing.assert_allclose(mean[:, 1], 7 - mean[:, 0] / 2000)


def test_curves_without_labels_show_only_the_loss(tmp_path):
    pixels = opened(figures.curves(run_records(knn=False), 'raw pixels', tmp_path / 'curves.png'), *LOSS_ONLY)
    assert not has_colour(pixels, figures.ORANGE)


@pytest.mark.parametrize('records', [run_records()[:1], run_records()[20:21], run_records()[:2]])
def test_curves_of_one_or_two_records(tmp_path, records):
    opened(figures.curves(records, 'raw pixels', tmp_path / 'curves.png'), *CURVES)


@pytest.mark.parametrize('records', [[], [{'step': 3}], [{'step': 0, 'train/loss': float('nan')}]])
def test_curves_without_any_value(tmp_path, records):
    opened(figures.curves(records, 'raw pixels', tmp_path / 'curves.png'), *LOSS_ONLY)


def test_curves_omit_values_that_are_not_finite(tmp_path):
    records = run_records()
    clean = figures.curves(records, 'raw pixels', tmp_path / 'clean.png').read_bytes()
    records += [
        {'step': 40, 'train/loss': float('nan'), 'monitor/knn_top1_backbone': float('nan')},
        {'step': 40, 'train/loss': float('inf'), 'train/loss_chance': None},
    ]
    assert figures.curves(records, 'raw pixels', tmp_path / 'other.png').read_bytes() == clean


def test_the_step_from_which_on_the_queue_is_nearly_full():
    levels = [0.0, 4.0, 6.6, 6.7, None, 7.0]
    records = [{'step': step, 'train/loss_chance': level} for step, level in enumerate(levels)]
    assert figures.settled_step(records) == 3
    assert figures.settled_step([{'step': 5}]) == 0


def test_curves_are_named_with_their_last_value(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(figures, '_label_ends', lambda axes, ends: named.append({text for text, _, _ in ends}))
    figures.curves(run_records(), 'raw pixels', tmp_path / 'whole.png')
    assert named.pop() == {'backbone 67.0 %', 'projection 65.0 %', 'before training 47.0 %', 'raw pixels 34.0 %'}
    assert named.pop() == {'loss 6.00', 'chance 7.00'}
    figures.curves(
        run_records()[1:], 'raw pixels', tmp_path / 'later.png'
    )  # without step 0 no record is of a random encoder
    assert named.pop() == {'backbone 67.0 %', 'projection 65.0 %'}
    figures.curves(run_records(), 'bag of words', tmp_path / 'text.png')
    assert 'bag of words 34.0 %' in named.pop()


def test_curves_of_text_show_sts(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(figures, '_label_ends', lambda axes, ends: named.append({text for text, _, _ in ends}))
    start = 'monitor/sts_dev_spearman'
    records = [
        {'step': 0, f'{start}_backbone': 0.5, f'{start}_projection': 0.4, f'{start}_tf_idf': 0.7},
        {'step': 9, f'{start}_backbone': 0.75, f'{start}_projection': None, 'train/loss': 2.0},
    ]
    figures.curves(records, 'bag of words', tmp_path / 'curves.png')
    assert named == [{'loss 2.00'}, {'backbone 75.0', 'projection 40.0', 'before training 50.0', 'TF-IDF 70.0'}]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(('size', 'view_size', 'scale'), [(32, 32, 3), (28, 28, 4), (40, 32, 2)])
def test_view_pairs_keep_the_pixels(tmp_path, rng, channels, size, view_size, scale):
    images = rng.integers(256, size=(10, size, size, channels), dtype=np.uint8)
    views = rng.integers(256, size=(2, 10, view_size, view_size, channels), dtype=np.uint8)
    pixels = opened(figures.view_pairs(images, views, tmp_path / 'views.png'), (900, 1400), (300, 460))
    enlarged = images[0].repeat(scale, axis=0).repeat(scale, axis=1)
    enlarged = np.broadcast_to(enlarged, (*enlarged.shape[:2], 3))
    window = np.lib.stride_tricks.sliding_window_view(pixels[:, :260], enlarged.shape[:2], axis=(0, 1))
    corner = (window[..., 0, 0] == enlarged[0, 0]).all(-1) & (window[..., -1, -1] == enlarged[-1, -1]).all(-1)
    places = np.argwhere(corner)
    assert any(np.array_equal(pixels[y:, x:][: len(enlarged), : len(enlarged)], enlarged) for y, x in places)


def test_view_pairs_of_large_images_and_several_views(tmp_path, rng):
    images = rng.integers(256, size=(4, 150, 260, 3), dtype=np.uint8)
    views = rng.integers(256, size=(3, 4, 224, 224, 3), dtype=np.uint8)
    opened(figures.view_pairs(images, views, tmp_path / 'views.png'), (500, 800), (500, 700))


def neighbour_arguments(rng, channels=3, m=4, k=5):
    labels = np.arange(m)
    neighbour_labels = np.tile(labels[:, None], (1, k))
    neighbour_labels[1, 2:] = 0
    return {
        'query_images': rng.integers(256, size=(m, 32, 32, channels), dtype=np.uint8),
        'query_labels': labels,
        'neighbour_images': rng.integers(256, size=(m, k, 32, 32, channels), dtype=np.uint8),
        'neighbour_labels': neighbour_labels,
        'similarities': -np.sort(-rng.uniform(size=(m, k))),
        'class_names': ['astronaut', 'a name that goes on and on', '$x$', '_hidden'],
    }


NEIGHBOURS = (600, 1100), (450, 750)


@pytest.mark.parametrize('channels', [1, 3])
def test_neighbours_are_framed_by_class(tmp_path, rng, channels):
    pixels = opened(
        figures.neighbours(**neighbour_arguments(rng, channels), path=tmp_path / 'neighbours.png'), *NEIGHBOURS
    )
    assert has_colour(pixels, figures.GREEN)
    assert has_colour(pixels, figures.VERMILLION)


def test_neighbours_without_labels_or_names(tmp_path, rng):
    arguments = neighbour_arguments(rng) | {'class_names': None}
    opened(figures.neighbours(**arguments, path=tmp_path / 'unnamed.png'), *NEIGHBOURS)
    arguments |= {'query_labels': None, 'neighbour_labels': None, 'similarities': np.full((4, 5), np.nan)}
    pixels = opened(figures.neighbours(**arguments, path=tmp_path / 'unlabelled.png'), *NEIGHBOURS)
    assert not has_colour(pixels, figures.GREEN)
    assert not has_colour(pixels, figures.VERMILLION)


def test_neighbours_of_unknown_class_are_gray(tmp_path, rng):
    arguments = neighbour_arguments(rng)
    arguments['query_labels'] = np.full(4, -1)
    pixels = opened(figures.neighbours(**arguments, path=tmp_path / 'neighbours.png'), *NEIGHBOURS)
    assert has_colour(pixels, figures.MUTED)
    assert not has_colour(pixels, figures.GREEN)
    assert not has_colour(pixels, figures.VERMILLION)


MAP = (700, 1200), (700, 900)


@pytest.mark.parametrize('num_classes', [1, 3, 20])
def test_embedding_map_by_class(tmp_path, rng, num_classes):
    labels = rng.integers(-1, num_classes, size=60)
    names = ['_first', '$second$', '猫', *(f'class {index}' for index in range(17))]
    points = rng.normal(size=(60, 2))
    pixels = opened(figures.embedding_map(points, labels, names, tmp_path / 'map.png'), *MAP)
    assert pixels.shape[1] > 1000  # a legend


def test_embedding_map_without_labels_names_or_room_for_a_legend(tmp_path, rng):
    points = rng.normal(size=(60, 2))
    plain = opened(figures.embedding_map(points, None, None, tmp_path / 'plain.png'), *MAP)
    assert plain.shape[1] < 900
    numbered = opened(figures.embedding_map(points, np.arange(60) % 2, None, tmp_path / 'numbered.png'), *MAP)
    assert numbered.shape[1] > 1000
    many = opened(figures.embedding_map(points, np.arange(60) % 21, None, tmp_path / 'many.png'), *MAP)
    assert many.shape[1] < 900


def test_importing_is_light_and_pyplot_stays_out(tmp_path):
    code = (
        'import sys; from dualcl_jax.reports import figures; '
        "assert not {'matplotlib', 'sklearn', 'PIL'} & set(sys.modules); "
        "figures.curves([], 'raw pixels', sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'curves.png')]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
