"""A sweep of sentences: what its runs are measured by, their records, and what tables and plots call it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dualcl_jax import evaluate
from dualcl_jax.system.config import to_json
from dualcl_jax.system.errors import UserError
from dualcl_jax.training.loop import train
from experiments.ablation import __main__ as ablation
from experiments.ablation import runs
from experiments.ablation.measures import MEASURES
from experiments.ablation.plots import axis, bars, curves
from experiments.ablation.records import (
    make_plan,
    path_of,
    read_all,
    read_plan,
    read_record,
    store,
    write_plan,
    write_record,
)
from experiments.ablation.sweep import configured, load_sweep, plan
from experiments.ablation.tables import compare
from tests.support.runs import REPOSITORY
from tests.support.text_sets import pair, write_sts

SENTENCES = REPOSITORY / 'experiments' / 'sweeps' / 'sentences.py'
SMALL = (
    'model.width=16',
    'model.dim=16',
    'model.vocabulary=400',
    'text.length=24',
    'queue.size=64',
    'train.batch_size=16',
    'log.every_steps=1',
)
OF_IMAGES = ('kNN', 'knn', 'image', 'pixel', 'accuracy', ' %')
KEYS = ('stsb_dev_backbone', 'stsb_test_backbone', 'avg7_backbone')


@pytest.fixture
def sweep():
    return dataclasses.replace(load_sweep(str(SENTENCES)), budget=2 * 16 * 4, seeds=(0,))


@pytest.mark.slow
def test_runs_are_measured_by_sts(in_process, monkeypatch: pytest.MonkeyPatch, sweep, tmp_path: Path) -> None:
    write_sts(tmp_path / 'sts')
    rng = np.random.default_rng(0)
    (tmp_path / 'pairs.tsv').write_text('\n'.join('\t'.join(pair(rng)[:2]) for _ in range(64)) + '\n')
    places = f'data.path={tmp_path / "pairs.tsv"}', f'sts.path={tmp_path / "sts"}'
    jobs = plan(sweep, [*places, *SMALL])
    job = next(job for job in jobs if job.arm == 'dual_view-hardest-queue_4096')
    workdir = tmp_path / 'runs' / job.name
    assert train(configured(sweep.config, job.fields), str(workdir))
    monkeypatch.setattr(runs, '_start', lambda folder, job, command: command)
    program, *arguments = runs._evaluate(tmp_path, job).process
    assert program == evaluate.__name__
    assert arguments == [f'--workdir={workdir}', '--protocols=sts', f'--config.{places[1]}']
    assert in_process(evaluate.main, *arguments).status == 0

    metrics = workdir / 'metrics.jsonl'
    collapsed = {'step': 4, 'wall_time_s': 1.0, MEASURES['sts'].logged: None}
    metrics.write_text(f'{metrics.read_text()}{json.dumps(collapsed)}\n')  # it has no correlation
    record = write_record(tmp_path, job)
    assert all(point['stsb_dev_backbone'] is not None for point in record['curve'])
    evaluated = json.loads((workdir / 'evaluation' / 'sts.json').read_text())['records']
    for key, place in zip(KEYS, (('STS-B', 'dev'), ('STS-B', 'test'), ('avg7', 'test')), strict=True):
        (expected,) = (
            found['value']
            for found in evaluated
            if (found['metric'], found['encoder'], found['layer']) == ('spearman', 'query', 'backbone')
            and (found['data_set'], found['split']) == place
        )
        assert record[key] == expected
    assert len({record[key] for key in KEYS}) == 3
    assert record['curve'][0]['stsb_dev_backbone'] == pytest.approx(record['random_encoder'], abs=5e-3)
    assert record['curve'][-1]['stsb_dev_backbone'] == pytest.approx(record['stsb_dev_backbone'], abs=5e-3)
    assert record['curve'][-1]['step'] == record['steps'] == 4
    assert record['tf_idf'] > 0.5
    assert read_record(tmp_path, job) == record
    report = json.loads((workdir / 'data_report.json').read_text())
    assert record['data_fingerprint'] == report['train']['fingerprint']
    assert str(tmp_path) not in path_of(tmp_path, job).read_text()

    write_plan(tmp_path, make_plan(sweep, 'sentences.py', [*places, *SMALL]))
    assert str(tmp_path) not in (tmp_path / 'sweep.json').read_text()
    for number, other in enumerate(jobs):
        values = {key: record[key] + number / 100 for key in KEYS}
        config = json.loads(to_json(configured(sweep.config, other.stored_fields)))
        store(tmp_path, other, record | {'arm': other.arm, 'fields': other.stored_fields, 'config': config} | values)
    drawn = in_process(ablation.main, 'draw', str(tmp_path))
    assert drawn.status == 0, drawn
    texts = {name: (tmp_path / name).read_text() for name in ('table.md', 'table.tex', 'runs.csv', 'curves.csv')}
    assert '| arm | n | STS-B dev | difference | STS-B test | difference | mean of seven | diff' in texts['table.md']
    assert '| changed | pairs | n | STS-B dev | STS-B test | mean of seven |' in texts['table.md']
    assert '| `hardest` for `all` | 2 | 1 | +1.00 | +1.00 | +1.00 |' in texts['table.md']
    assert '- Spearman × 100 of' in texts['table.md']
    assert 'Each run: 128 examples through the pair of encoders.' in texts['table.md']
    comparison = compare(read_plan(tmp_path), read_all(tmp_path, read_plan(tmp_path)))
    figures = [draw(comparison) for draw in (bars, axis, curves)]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [
        'STS-B dev',
        'STS-B test',
        'mean of seven',
    ]
    labels = [label for figure in figures for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())]
    assert labels.count('Spearman × 100, STS-B dev') == 2
    for word in OF_IMAGES:
        assert not any(word in text.partition('Versions')[0] for text in (*texts.values(), *labels)), word


def test_a_sweep_of_sentences_needs_the_sets(in_process, tmp_path: Path) -> None:
    found = in_process(ablation.main, 'run', str(SENTENCES), f'--output={tmp_path / "new"}')
    assert (found.status, found.err) == (
        2,
        'error: --config.sts.path=: the runs are measured with this field; give its value\n',
    )
    assert not (tmp_path / 'new').exists()


def test_a_record_of_another_measure_is_refused(sweep, tmp_path: Path) -> None:
    job = plan(sweep, SMALL)[0]
    knn = MEASURES['knn'].validation.key
    config = json.loads(to_json(configured(sweep.config, job.stored_fields)))
    about = {'arm': job.arm, 'seed': job.seed, 'fields': job.stored_fields, 'steps': job.steps, 'passes': job.passes}
    rest = {'wall_time_s': 9.0, 'curve': [], 'state_sha256': 'abc', 'versions': {}, 'config': config}
    store(tmp_path, job, about | rest | {knn: 0.5})
    with pytest.raises(UserError, match='was not measured by sts; use another --output'):
        read_record(tmp_path, job)
