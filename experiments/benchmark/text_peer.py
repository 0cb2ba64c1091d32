"""Compares the speed of a training step on sentences with the same step in PyTorch, in CPU time of one thread.

    python -m experiments.benchmark.text_peer --peer='PYTHON experiments/benchmark/text_torch.py' [--rounds=20]

PYTHON is an interpreter with torch and transformers. Both programs train an encoder of MiniLM-L6's sizes from random
weights on random sentences, with dropout, one view as the query, a queue of 2,048, all negatives, no projection and
AdamW. They run on the same core and take steps in turn; the ratio is that of a step of the peer to our step before it.
The program prints medians with the smallest and the largest value, as JSON.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import UserError, exits_cleanly

BATCH, LENGTH = 64, 32
FIELDS = {
    'data.name': 'text', 'text.length': LENGTH, 'views.preset': 'simcse', 'model.name': 'transformer',
    'model.width': 384, 'model.dim': 384, 'model.projection': 'none', 'model.vocabulary': 30_522, 'model.norm': 'local',
    'loss.symmetric': False, 'loss.temperature': 0.05, 'queue.size': 2048, 'queue.init': 'noise',
    'negatives.selector': 'all', 'optimizer.name': 'adamw', 'optimizer.learning_rate': 3e-5,
    'optimizer.weight_decay': 0.01, 'train.batch_size': BATCH,
}  # fmt: skip


def work() -> None:
    """Takes a step for each line on stdin, and prints the CPU seconds of this process that it took."""
    from dualcl_jax.system.processes.start import start

    start(several=False)
    import jax
    import numpy as np

    from configs import default
    from dualcl_jax.data import Batch
    from dualcl_jax.method.build import build_method
    from dualcl_jax.method.resolve import resolve
    from dualcl_jax.method.state import create_train_state, state_specs
    from dualcl_jax.method.views import VIEWS
    from dualcl_jax.step import train_step
    from dualcl_jax.system.devices import MAPPERS, device_mesh, place

    config, mesh = default.get_config(), device_mesh()
    config.update_from_flattened_dict(FIELDS)
    config = resolve(config, platform='cpu', num_devices=1)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, 30_000, (BATCH, 1, LENGTH), dtype=np.int32)
    examples = {'tokens': tokens, 'length': rng.integers(8, LENGTH + 1, (BATCH, 1), dtype=np.int32)}
    rows = np.arange(BATCH, dtype=np.int32)
    method = build_method(
        config, VIEWS['text'](config, examples), total_steps=10**6, steps_per_epoch=100, num_devices=1
    )
    specs = state_specs(method)
    mapper = MAPPERS[config.parallel.mapper](mesh, specs)
    state = mapper.put_state(place(jax.jit(partial(create_train_state, method))(), mesh, specs))
    step, batch = mapper.map(partial(train_step, method)), mapper.put_batch(Batch(examples, rows, -rows, rows))
    while input():
        began = time.process_time()
        state, _ = jax.block_until_ready(step(state, batch))
        print(time.process_time() - began, flush=True)


def compare(commands: dict[str, list[str]], rounds: int, core: int) -> dict[str, list[float]]:
    """Starts the programs on one core and lets them take steps in turn; the first two steps of each do not count."""
    one_thread = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
    programs = {
        name: subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | one_thread,
            preexec_fn=partial(os.sched_setaffinity, 0, {core}),
        )
        for name, command in commands.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for counted in range(-2, rounds):
        for name, program in programs.items():
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write('step\n')
            program.stdin.flush()
            taken = float(program.stdout.readline())
            if counted >= 0:
                seconds[name].append(taken)
    for program in programs.values():
        program.communicate('\n')
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return {'median': statistics.median(values), 'smallest': min(values), 'largest': max(values)}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or missing, or has an invalid value."""
    parser = Parser('python -m experiments.benchmark.text_peer', __doc__)
    parser.add_argument('--peer', help='the command of the peer')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--core', type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if not flags.worker and not flags.peer:
        raise UserError('--peer: name the command of the peer')
    return flags


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    if flags.worker:
        work()
        return 0
    ours = [sys.executable, '-m', 'experiments.benchmark.text_peer', '--worker']
    seconds = compare({'ours': ours, 'peer': shlex.split(flags.peer)}, flags.rounds, flags.core)
    from dualcl_jax.system.machine import processor

    report = {
        'processor': processor(),
        'rounds': flags.rounds,
        'batch': BATCH,
        'length': LENGTH,
        **{name: {'cpu_seconds_a_step': spread(times)} for name, times in seconds.items()},
        'ratio': spread([peer / own for own, peer in zip(seconds['ours'], seconds['peer'], strict=True)]),
    }
    print(json.dumps(report))
    return 0


if __name__ == '__main__':
    sys.exit(main())
