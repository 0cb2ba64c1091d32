"""Benchmarks with a user's config or peer program: their output and their errors."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dualcl_jax.losses import info_nce, normalize, select_top_k
from dualcl_jax.method.negatives.queue import noise_queue
from experiments.benchmark import data, runs
from experiments.benchmark.__main__ import _head, compare, main
from tests.support.runs import REPOSITORY

SMALL = (
    'data.image_size=32',
    'model.name=tiny',
    'model.width=4',
    'queue.size=64',
    'model.norm=local',
    'loss.shuffle_keys=False',
)


@pytest.mark.slow
def test_step_of_a_config(in_process) -> None:
    """Without views the step has fewer operations. Times are positive, and the command that repeats it is printed."""
    fields = [f'--config.{field}' for field in SMALL]
    sizes = ('--batch=16', '--steps=2', '--rounds=1', '--peak_tflops=1')
    done = in_process(
        main, 'step', '--config=configs/imagenet.py:moco_v2', *sizes, *fields, '--config.data.image_size=32'
    )
    assert done.status == 0, done
    printed = json.loads(done.out.splitlines()[-1])
    views, plain = printed['cases']
    assert (views['config'], plain['config']) == (
        'configs/imagenet.py:moco_v2',
        'configs/imagenet.py:moco_v2, no views',
    )
    for case in (views, plain):
        assert case['batch'] == 16
        assert case['smallest'] <= case['images_per_second'] <= case['largest']
        assert case['share_of_peak'] == case['tflops_per_device'] > 0
        assert case['compile_seconds'] > 0
    assert views['tflops_per_device'] * views['seconds'] > plain['tflops_per_device'] * plain['seconds']
    assert '--config.queue.size=64' in printed['command']
    assert {'machine', 'devices', 'versions'} <= printed.keys()


def test_the_timed_head_has_negatives() -> None:
    queries, keys, noise = jax.random.split(jax.random.key(0), 3)
    queries, keys = (normalize(jax.random.normal(rng, (4, 8))) for rng in (queries, keys))
    queue = noise_queue(noise, 64, 8)
    loss, _ = _head('threshold', 16)(queries, keys, queue)
    expected = info_nce(queries, keys, queue.keys, temperature=0.1, select=select_top_k, k=16).loss.mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('step', '--config=nowhere.py'), 'error: --config=nowhere.py: no such file'),
        (('step', '--config=configs/cifar10.py', '--batch=6'), 'error: config.train.batch_size'),
        (('step', '--config.seed=1'), 'error: --config.seed=1: only `step --config=FILE` accepts fields'),
        (('head', '--rounds=0'), 'error: --rounds=0: must be at least 1'),
        (('peer_gpu',), 'error: --peer: name the script'),
        (('peer_gpu', '--peer=nowhere.py'), 'error: --peer=nowhere.py: not found'),
    ],
)
def test_mistakes(in_process, arguments: tuple[str, ...], message: str) -> None:
    done = in_process(main, *arguments)
    assert done.status == 2
    assert done.err.startswith(message), done


def test_a_peer_in_turn(in_process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each step runs as often as the peer's, and the ratios are those of the medians."""
    script = tmp_path / 'peer.py'
    script.write_text(
        'import json, sys\nprint(json.dumps({"images_per_second": 50 if "--views" in sys.argv else 100}))\n'
    )
    run, commands = runs._run, []

    def counted(command: list[str], *rest: object, **options: object) -> str:
        commands.append(command)
        if 'experiments.benchmark' in command:
            return json.dumps({'cases': [{'images_per_second': 150.0}, {'images_per_second': 120.0}]})
        return run(command, *rest, **options)

    monkeypatch.setattr(runs, '_run', counted)
    done = in_process(main, 'peer_gpu', f'--peer={script}', f'--peer_python={sys.executable}', '--rounds=2')
    assert done.status == 0, done
    cases = json.loads(done.out.splitlines()[-1])['cases']
    assert [(case['ratio'], case['ratio, views']) for case in cases] == [(1.2, 3.0), (1.2, 3.0)]
    assert len(commands) == 2 * 2 * 3


def test_decoders_and_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of two images."""
    monkeypatch.setenv('XDG_CACHE_HOME', '')  # the benchmark replaces it
    monkeypatch.setattr(data, 'BATCH', 2)
    monkeypatch.setattr(data, 'BATCHES', 1)
    monkeypatch.setattr(data, 'available_cores', lambda: 1)
    cases = {case['case']: case for case in data.decode(1, compare)}
    assert {'pillow', 'simplejpeg', 'decoder alone', 'loader'} <= cases.keys()
    assert all(case['smallest'] <= case['images_per_second'] <= case['largest'] for case in cases.values())
    assert cases['decoder alone']['ratio'] == cases['decoder alone']['cpu_ratio'] == 1
    assert cases['loader']['ratio'] > 0


def test_the_loader_is_described_as_it_was_recorded() -> None:
    """The record has the decoder's CPU time relative to the loader's, the page the inverse."""
    record = json.loads((REPOSITORY / 'experiments' / 'results' / 'decode.json').read_text())
    loader = next(case for case in record['cases'] if case['case'] == 'loader')
    said = f'{loader["ratio"]:.2f} × its rate, {1 / loader["cpu_ratio"]:.2f} × its CPU time per image'
    assert said in (REPOSITORY / 'docs' / 'measurements.md').read_text()
