"""The program that measures how much of the hardest negatives and of the softmax is noise."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from dualcl_jax.method.negatives.queue import UNKNOWN
from dualcl_jax.system.processes import start
from experiments.ablation import noise_share, queues
from tests.support.random_run import random_run


def test_shares_by_hand() -> None:
    """Of four keys the hardest is one: noise for the second query alone. Weights of exp(s/τ) by hand."""
    similarities = np.log(np.array([[1.0, 4.0, 2.0, 1.0], [1.0, 1.0, 1.0, 5.0]]))
    shares = noise_share.noise_shares(similarities, np.array([True, False, False, True]), temperature=1.0)
    assert shares == pytest.approx({'queue': 0.5, 'hardest': 0.5, 'softmax': (2 / 8 + 6 / 8) / 2})
    hotter = noise_share.noise_shares(similarities, np.array([True, False, False, True]), temperature=0.5)
    assert hotter['softmax'] == pytest.approx((2 / 22 + 26 / 28) / 2)


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs the program on a run; returns its exit status, its output and its error output."""
    monkeypatch.setattr(start, 'start', lambda *_, **__: None)

    def run_on(found, *flags):
        monkeypatch.setattr(queues, 'open_saved_run', lambda workdir: found)
        monkeypatch.setattr(sys, 'argv', ['noise_share.py', *flags])
        status = noise_share.main()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_on


def test_keys_without_an_image_are_noise(tmp_path, program) -> None:
    found = random_run(tmp_path, 'model.name=tiny')
    queue = found.state.queue
    ids = np.where(np.arange(queue.size) % 4, 5, UNKNOWN)
    full = dataclasses.replace(queue, ids=ids, filled=np.int32(queue.size))
    status, printed, _ = program(
        dataclasses.replace(found, state=dataclasses.replace(found.state, queue=full)), '--workdir=a'
    )
    (case,) = json.loads(printed.splitlines()[-1])['cases']
    assert (status, case.pop('workdir'), case['queue']) == (0, 'a', 0.25)
    assert all(0 < share < 1 for share in case.values())

    empty = dataclasses.replace(found, state=dataclasses.replace(found.state, queue=None))
    status, _, said = program(empty, '--workdir=a')
    assert (status, said) == (
        2,
        'error: --workdir=a: the run has no queue of keys; choose one with queue.size above 0\n',
    )
    assert program(found)[0] == 2
