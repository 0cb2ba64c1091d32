"""Measures the cost of checkpoints and of the step's check for finite numbers with the demo's model.

    python -m tests.faults.overhead FOLDER ROUNDS

Prints a JSON object as its last line.
"""

import json
import statistics
import sys
import time
from functools import partial
from typing import Any

import jax
from etils import epath

from configs import quickstart
from dualcl_jax import step
from dualcl_jax.data.loader import make_batch
from dualcl_jax.system.devices import process_rows
from dualcl_jax.system.processes.start import start
from dualcl_jax.training.run import open_run
from dualcl_jax.workdir.checkpoint import Checkpoints

STEPS = 6


def main(folder: str, rounds: int) -> None:
    start()
    config = quickstart.get_config()
    config.data.limit = 1280
    config.monitor.every_epochs = 0
    config.optimizer.warmup_epochs = 0.0
    run, state = open_run(config, folder)
    batch = make_batch(run.plan.splits.train, process_rows(run.plan.mesh, 128), seed=0, step=0, batch_size=128)
    placed, state = run.mapper.put_batch(batch), run.mapper.put_state(state)
    state = jax.block_until_ready(state)

    def block(function: Any, state: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        for _ in range(STEPS):
            state, metrics = function(state, placed)
            jax.block_until_ready(metrics)
        return state, time.perf_counter() - began

    tested = run.mapper.map(partial(step.train_step, run.plan.method))
    all_finite = step.all_finite
    step.all_finite = lambda tree: jax.numpy.array(True)
    untested = run.mapper.map(partial(step.train_step, run.plan.method))
    state, _ = block(untested, state)  # compiles
    step.all_finite = all_finite
    state, _ = block(tested, state)

    checkpoints = Checkpoints(epath.Path(folder).resolve() / 'checkpoints')
    checkpoints.save(1, run.mapper.global_state(state), {}, None)
    checkpoints.finish()
    blocked, with_save, without, bare = [], [], [], []
    for number in range(rounds):
        state, seconds = block(untested, state)
        bare.append(seconds)
        state, seconds = block(tested, state)
        without.append(seconds)
        began = time.perf_counter()
        checkpoints.save(number + 2, run.mapper.global_state(state), {}, None)
        blocked.append(time.perf_counter() - began)
        state, seconds = block(tested, state)
        with_save.append(blocked[-1] + seconds)
        checkpoints.finish()
    checkpoints.close()

    step_s = statistics.median(without) / STEPS
    cost_s = statistics.median(one - other for one, other in zip(with_save, without, strict=True))
    finite = statistics.median(one / other - 1 for one, other in zip(without, bare, strict=True))
    found = {'rounds': rounds, 'steps': STEPS, 'step_s': step_s, 'blocked_s': statistics.median(blocked)}
    found |= {'cost_s': cost_s, 'share': cost_s / (500 * step_s), 'finite_share': finite, 'tried': rounds}
    print(json.dumps(found))


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
