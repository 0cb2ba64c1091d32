"""Measures the cost of a step for the host with each mapper.

    python -m experiments.benchmark.mappers [--mappers shard_map] [--processes=2 --leaves=709 --rounds=51]

Starts the processes of a run on this machine, with a CPU device each. Their step adds one to every leaf of a state as
in training. It is compiled as in a run, and the state is donated from step to step. After a warm-up the mappers take
turns, one call each in a round; a single mapper finds its code and data in the processor's caches, as in a run. The
program prints the median and the smallest time until a call returns in process 0, and the same for the processor time
of its main thread. The last line is JSON.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import UserError, exits_cleanly
from dualcl_jax.system.machine import processor
from dualcl_jax.system.versions import versions

Cases = list[dict[str, Any]]
NAMES = 'pmap', 'shard_map'


def measure(names: Sequence[str], leaves: int, rounds: int) -> Cases:
    """Times the calls of a step by the named mappers in the processes that are joined. Every process must call it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dualcl_jax.system.devices import AXIS, MAPPERS, Mapper, device_mesh, replicate

    def step(state: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
        return jax.tree.map(lambda leaf: leaf + 1.0, state), jax.lax.pmean(batch.sum(), AXIS)

    mesh = device_mesh()
    mappers: dict[str, Mapper] = {name: MAPPERS[name](mesh) for name in names}
    batch = np.zeros((len(mesh.local_devices), 8), np.float32)
    shape = jax.ShapeDtypeStruct((mesh.size, 8), jnp.float32)
    state = replicate([np.zeros(8, np.float32) for _ in range(leaves)], mesh)
    steps = {name: mapper.compile(step, state, shape) for name, mapper in mappers.items()}
    states = {name: mapper.put_state(state) for name, mapper in mappers.items()}
    batches = {name: mapper.put_batch(batch) for name, mapper in mappers.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in mappers}
    for number in range(rounds + 2):
        for name in mappers:
            began, used = time.perf_counter(), time.thread_time()
            states[name], metric = steps[name](states[name], batches[name])
            took = time.perf_counter() - began, time.thread_time() - used
            jax.block_until_ready((states[name], metric))
            if number >= 2:
                seconds[name].append(took)
    return [{'mapper': name, **_summary(times)} for name, times in seconds.items()]


def _summary(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median and smallest wall time, and the same for the processor time, in milliseconds."""
    wall, processor_time = ([1e3 * value for value in column] for column in zip(*times, strict=True))
    return {
        'ms': statistics.median(wall),
        'smallest_ms': min(wall),
        'processor_ms': statistics.median(processor_time),
        'smallest_processor_ms': min(processor_time),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or has an invalid value."""
    parser = Parser('python -m experiments.benchmark.mappers', __doc__)
    parser.add_argument('--mappers', nargs='+', choices=NAMES, default=NAMES, help='the mappers that take turns')
    parser.add_argument('--processes', type=int, default=2, help='number of processes')
    parser.add_argument('--leaves', type=int, default=709, help='number of arrays of the state')
    parser.add_argument('--rounds', type=int, default=51, help='how often to time each mapper')
    parser.add_argument('--place', nargs=2, metavar=('ADDRESS', 'INDEX'), help='used by the program itself')
    flags = parser.parse_args(arguments)
    for name in ('processes', 'leaves', 'rounds'):
        if getattr(flags, name) < 1:
            raise UserError(f'--{name}={getattr(flags, name)}: must be at least 1')
    return flags


def one_process(flags: argparse.Namespace) -> int:
    """The work of one process of the run; process 0 prints the cases as JSON."""
    from dualcl_jax.system.processes.start import start

    if flags.processes == 1:
        start(several=False)
    else:
        start(flags.place[0], flags.processes, int(flags.place[1]))
    cases = measure(flags.mappers, flags.leaves, flags.rounds)
    if flags.place[1] == '0':
        print(json.dumps({'cases': cases, 'versions': versions()}))
    return 0


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    if flags.place:
        return one_process(flags)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = '{}:{}'.format(*free.getsockname())
    itself = [sys.executable, '-m', 'experiments.benchmark.mappers', *sys.argv[1:], '--place', address]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
    started = [
        subprocess.Popen([*itself, str(index)], env=environment, stdout=subprocess.PIPE, text=True)
        for index in range(flags.processes)
    ]
    printed = [process.communicate()[0] for process in started]
    failed = [index for index, process in enumerate(started) if process.returncode]
    if failed:
        raise UserError(f'--processes={flags.processes}: process {failed[0]} failed; see its message')
    found = json.loads(printed[0].splitlines()[-1])
    for case in found['cases']:
        print('  '.join(f'{name} {value:.3g}' if name != 'mapper' else f'{value:10}' for name, value in case.items()))
    command = ' '.join(['python -m experiments.benchmark.mappers', *sys.argv[1:]])
    about = {'command': command, 'machine': f'{os.cpu_count()} cores of {processor()}'}
    print(json.dumps({'cases': found['cases'], **about, 'versions': found['versions']}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
