"""Tables and plots of records whose numbers are known."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.ablation.plots import curves, draw_plots
from experiments.ablation.records import read_all, read_plan
from experiments.ablation.tables import compare, latex, markdown, notes, write_tables
from tests.support.runs import REPOSITORY, contents

SWEEP = {
    'title': 'Which is better',
    'arms': [
        {'name': name, 'x': x, 'series': '', 'levels': ()}
        for name, x in (('base_line', 1.0), ('worse', 2.0), ('same', None))
    ],
    'baseline': 'base_line',
    'seeds': [0, 1, 2],
    'x_label': 'x',
    'measure': 'knn',
    'command': 'python -m experiments.ablation run x.py',
}
ACCURACY = {'base_line': (0.46, 0.47, 0.48), 'worse': (0.43, 0.45, 0.44)}


def record(arm: str, seed: int, validation: float | None, **changes) -> dict:
    test = None if validation is None else validation - 0.01
    knn = {'validation_knn_backbone': validation, 'test_knn_backbone': test}
    knn |= {'validation_knn_projection': validation, 'test_knn_projection': test}
    others = {'raw_pixels': 0.3, 'random_encoder': 0.3, 'loss': 5.0, 'false_negative_rate': None}
    run = {'steps': 20, 'passes': 640, 'images_per_second': 400.0, 'wall_time_s': 9.0, 'state_sha256': 'abc'}
    points = [{'step': s, 'passes': 32 * s, 'wall_time_s': s / 2, 'knn_backbone': 0.3 + s / 200} for s in (0, 10, 20)]
    about = {'curve': points, 'versions': {'jax': '1'}, 'config': {'monitor': {'k': 200, 'temperature': 0.1}}}
    return {'arm': arm, 'seed': seed, 'validation_images': True} | knn | others | run | about | changes


@pytest.fixture
def records() -> list[dict]:
    return [record(arm, seed, values[seed]) for arm, values in ACCURACY.items() for seed in range(3)]


def test_differences_are_paired_by_seed(records) -> None:
    """Differences -3, -2 and -4 points: mean -3, standard error 1/√3, t(0.975; 2) 4.302653."""
    base, worse = compare(SWEEP, records).rows
    assert base.validation.difference is base.values[1].difference is None
    difference = worse.validation.difference
    assert difference[:2] == (3, pytest.approx(-0.03))
    reach = 4.302653 * 0.01 / np.sqrt(3)
    assert difference[3:] == pytest.approx((-0.03 - reach, -0.03 + reach), abs=1e-8)
    assert worse.values[1].found.mean == pytest.approx(0.43)


def test_what_is_worse_is_shown_as_what_is_better(records) -> None:
    found = compare(SWEEP, records)
    text = markdown(found)
    assert '| `base_line` | 3 | 47.00 ± 0.58 |  | 46.00 ± 0.58 |  |' in text
    assert '| `worse` | 3 | 44.00 ± 0.58 | −3.00 [−5.48, −0.52] | 43.00 ± 0.58 | −3.00 [−5.48, −0.52] |' in text
    assert r'worse & 3 & 44.00 $\pm$ 0.58 & $-$3.00 [$-$5.48, $-$0.52]' in latex(found)
    assert r'base\_line & 3' in latex(found)
    assert latex(found).count('tabular') == 2
    said = '\n'.join(notes(found))
    assert 'Comparisons with base_line: 1; intervals that exclude 0 on validation images: 1.' in said
    assert 'if nothing made a difference, 0.05 would' in said
    assert 'Best on validation images: base_line.' in said
    assert '6 records; 9 runs are planned' in said


def test_arms_without_a_pair_or_without_labels_are_told_apart() -> None:
    found = compare(SWEEP, [record('base_line', 0, 0.5), record('worse', 1, 0.4), record('same', 0, None)])
    assert [row.arm for row in found.rows] == ['base_line', 'worse']
    assert found.rows[1].validation.difference is None
    assert '| `worse` | 1 | 40.00 |  | 39.00 |  |' in markdown(found)
    assert '- No differences: no seed has a finished run of the baseline base_line' in markdown(found)


def test_measuring_on_test_images_is_reported(records) -> None:
    records[0]['validation_images'] = False
    assert 'No validation images' in markdown(compare(SWEEP, records))


def test_effects_of_factors() -> None:
    """a gains 2 points without b and 4 with it, or 3 and 3; b gains 1 and 3, or 2 and 2. Seed 3 lacks an arm."""
    arms = {'': 0.40, 'a': 0.42, 'b': 0.41, 'ab': 0.45}
    second = {'': 0.30, 'a': 0.33, 'b': 0.32, 'ab': 0.35}
    sweep = SWEEP | {
        'arms': [
            {
                'name': f'arm_{arm}',
                'x': None,
                'series': '',
                'levels': ('+a' if 'a' in arm else '-a', '+b' if 'b' in arm else '-b'),
            }
            for arm in arms
        ]
        + [{'name': 'apart', 'x': None, 'series': '', 'levels': ()}],
        'baseline': 'arm_',
    }
    records = [record(f'arm_{arm}', seed, run[arm]) for seed, run in enumerate((arms, second)) for arm in arms]
    records += [record('arm_', 2, 0.5), record('arm_a', 2, 0.9), record('arm_b', 2, 0.9), record('apart', 0, 0.1)]
    found = compare(sweep, records).effects
    assert [(effect.level, effect.instead_of, effect.pairs) for effect in found] == [('+a', '-a', 2), ('+b', '-b', 2)]
    for effect, mean in zip(found, (0.03, 0.02), strict=True):
        for values in effect.values:
            assert values is not None
            assert values.n == 2
            assert values[1:] == pytest.approx((mean, 0.0, mean, mean))
    assert '| `+a` for `-a` | 2 | 2 | +3.00 [+3.00, +3.00] |' in markdown(compare(sweep, records))
    assert r'+a for -a & 2 & 2 & +3.00 [+3.00, +3.00] & +3.00 [+3.00, +3.00] \\' in latex(compare(sweep, records))
    alone = sweep | {'arms': [arm for arm in sweep['arms'] if arm['name'] in ('arm_', 'arm_ab')]}
    assert compare(alone, records).effects == compare(SWEEP, records).effects == []


def test_other_budgets_are_reported(records) -> None:
    records[-1]['passes'] = 650
    assert '640 images through the pair of encoders (worse 650)' in markdown(compare(SWEEP, records))


STORED = sorted((REPOSITORY / 'experiments' / 'results' / 'ablations').iterdir())


@pytest.mark.parametrize('folder', STORED, ids=lambda folder: folder.name)
def test_stored_results_are_redrawn(folder: Path, tmp_path: Path) -> None:
    sweep = read_plan(folder)
    for name in write_tables(tmp_path, compare(sweep, read_all(folder, sweep))):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_points_without_a_value_are_not_drawn(records) -> None:
    """Older records have the measurements that are not finite, as null: here one of seed 0 and all of `worse`."""
    records[0]['curve'][1]['knn_backbone'] = None
    for each in records[3:]:
        each['curve'] = [point | {'knn_backbone': None} for point in each['curve']]
    better, worse = curves(compare(SWEEP, records)).axes[0].lines
    np.testing.assert_allclose(better.get_xydata(), [[0, 30], [10, 35], [20, 40]])
    assert len(worse.get_xdata()) == 0


def test_files(tmp_path: Path, records) -> None:
    found = compare(SWEEP, records)
    names = [*write_tables(tmp_path, found), *draw_plots(tmp_path, found)]
    first = contents(tmp_path)
    assert sorted(first) == sorted(names)
    assert {'bars.png', 'curves.png', 'axis.png'} < set(names)
    with open(tmp_path / 'runs.csv') as file:
        rows = list(csv.DictReader(file))
    assert [(row['arm'], row['seed']) for row in rows] == [(r['arm'], str(r['seed'])) for r in records]
    assert float(rows[0]['validation_knn_backbone']) == 0.46
    with open(tmp_path / 'curves.csv') as file:
        assert len(list(csv.DictReader(file))) == 3 * len(records)
    for name in ('bars.png', 'curves.png', 'axis.png'):
        with Image.open(tmp_path / name) as image:
            assert np.asarray(image.convert('L')).std() > 5
    write_tables(tmp_path, found)
    draw_plots(tmp_path, found)
    assert contents(tmp_path) == first
