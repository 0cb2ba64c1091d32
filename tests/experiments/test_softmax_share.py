"""The program around `softmax_shares`, which `tests/reports/test_hardness.py` checks against its definition."""

import json
import sys

import pytest

from dualcl_jax.system.processes import start
from experiments.ablation import queues, softmax_share
from tests.support.random_run import random_run

TINY = 'model.name=tiny'


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs the program with flags; returns its exit status, its output and its error output."""
    monkeypatch.setattr(start, 'start', lambda *_, **__: None)

    def run(*flags):
        monkeypatch.setattr(sys, 'argv', ['softmax_share.py', *flags])
        status = softmax_share.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_shares_grow_with_the_part_and_fall_with_the_temperature(monkeypatch, tmp_path, program):
    found = random_run(tmp_path, TINY)
    monkeypatch.setattr(queues, 'open_saved_run', lambda workdir: found)
    status, printed, _ = program('--workdir=a', '--workdir=b')
    cases = json.loads(printed.splitlines()[-1])['cases']
    assert status == 0
    assert [case.pop('workdir') for case in cases] == 3 * ['a'] + 3 * ['b']
    assert cases[:3] == cases[3:]
    by_part = [[case[f'1/{part}'] for part in softmax_share.PARTS] for case in cases[:3]]
    assert all(shares == sorted(shares) for shares in by_part)
    assert all(a > b for a, b in zip(by_part[0], by_part[1], strict=True))
    assert by_part[2][-1] > 0.5


def test_a_run_without_a_queue(monkeypatch, tmp_path, program):
    found = random_run(tmp_path, TINY, 'queue.size=0')
    monkeypatch.setattr(queues, 'open_saved_run', lambda workdir: found)
    status, _, said = program('--workdir=a')
    assert status == 2
    assert said == 'error: --workdir=a: the run has no queue of keys; choose one with queue.size above 0\n'


def test_mistakes(tmp_path, program):
    assert program(f'--workdir={tmp_path}')[0] == 2
    assert program()[0] == 2
