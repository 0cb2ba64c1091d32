"""The program that measures shares of the softmax and of noise; `tests/reports/test_hardness.py` has the former."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from dualcl_jax.method.negatives.queue import UNKNOWN
from experiments.ablation import queue_shares
from tests.support.random_run import random_run
from tests.support.runs import Finished

TINY = 'model.name=tiny'
NO_QUEUE = 'error: --workdir=a: the run has no queue of keys; choose one with queue.size above 0\n'


@pytest.fixture
def program(monkeypatch, in_process) -> Callable[..., Finished]:
    """Runs the program, which finds this run."""

    def run_on(found, *flags: str) -> Finished:
        monkeypatch.setattr(queue_shares, 'open_saved_run', lambda workdir: found)
        return in_process(queue_shares.main, *flags)

    return run_on


def cases(done: Finished) -> list[dict]:
    assert done.status == 0, done
    return json.loads(done.out.splitlines()[-1])['cases']


def test_shares_of_noise_by_hand() -> None:
    """Of four keys the hardest is one: noise for the second query alone. Weights of exp(s/τ) by hand."""
    similarities = np.log(np.array([[1.0, 4.0, 2.0, 1.0], [1.0, 1.0, 1.0, 5.0]]))
    shares = queue_shares.noise_shares(similarities, np.array([True, False, False, True]), temperature=1.0)
    assert shares == pytest.approx({'queue': 0.5, 'hardest': 0.5, 'softmax': (2 / 8 + 6 / 8) / 2})
    hotter = queue_shares.noise_shares(similarities, np.array([True, False, False, True]), temperature=0.5)
    assert hotter['softmax'] == pytest.approx((2 / 22 + 26 / 28) / 2)


def test_keys_without_an_image_are_noise(tmp_path, program) -> None:
    found = random_run(tmp_path, TINY)
    queue = found.state.queue
    ids = np.where(np.arange(queue.size) % 4, 5, UNKNOWN)
    full = dataclasses.replace(queue, ids=ids, filled=np.int32(queue.size))
    found = dataclasses.replace(found, state=dataclasses.replace(found.state, queue=full))
    (case,) = cases(program(found, '--of=noise', '--workdir=a'))
    assert (case.pop('workdir'), case['queue']) == ('a', 0.25)
    assert all(0 < share < 1 for share in case.values())


def test_shares_of_the_softmax_grow_with_the_part_and_fall_with_the_temperature(tmp_path, program) -> None:
    measured = cases(program(random_run(tmp_path, TINY), '--of=softmax', '--workdir=a', '--workdir=b'))
    assert [case.pop('workdir') for case in measured] == 3 * ['a'] + 3 * ['b']
    assert measured[:3] == measured[3:]
    by_part = [[case[f'1/{part}'] for part in queue_shares.PARTS] for case in measured[:3]]
    assert all(shares == sorted(shares) for shares in by_part)
    assert all(a > b for a, b in zip(by_part[0], by_part[1], strict=True))
    assert by_part[2][-1] > 0.5


@pytest.mark.parametrize('of', ['noise', 'softmax'])
def test_a_run_without_a_queue(tmp_path, program, of: str) -> None:
    done = program(random_run(tmp_path, TINY, 'queue.size=0'), f'--of={of}', '--workdir=a')
    assert (done.status, done.err) == (2, NO_QUEUE)


def test_mistakes(tmp_path, in_process) -> None:
    for flags in (
        ['--of=noise'],
        ['--workdir=a'],
        ['--of=all', '--workdir=a'],
        ['--of=noise', f'--workdir={tmp_path}'],
    ):
        assert in_process(queue_shares.main, *flags).status == 2
