"""libtpu's estimate of the time of the loss on a TPU.

    python -m experiments.benchmark.cycles [--keys=1048576 --anchors=64]

Compiles the loss of one view order and its gradient, with the hardest quarter of the queue, for one device of a v5e,
and adds up the cycles that libtpu writes beside each instruction of the program. A loop counts as often as it runs. The
search for the k hardest runs until it has found them: its passes are reported separately, and counted `--passes` times.
The last line is JSON. It needs libtpu but no TPU.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly

CLOCK = 1.5e9
"""Cycles of a v5e in a second: 197 TFLOP/s by four units of 128 × 128 multiplications and additions a cycle."""
DIM = 128


class Cycles(NamedTuple):
    """The cycles of a program: of all but the loops of unknown length, and of one iteration of each of those."""

    known: int
    search: int

    def __add__(self, other: 'Cycles') -> 'Cycles':  # type: ignore[override]
        return Cycles(self.known + other.known, self.search + other.search)

    def __mul__(self, times: int) -> 'Cycles':  # type: ignore[override]
        return Cycles(times * self.known, times * self.search)


def count(program: str) -> Cycles:
    """Adds up the cycles in the text of a compiled program.

    A condition counts as its cheapest branch, the one without ties.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ''
    for line in program.splitlines():
        if found := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$', line):
            name = found[2]
            computations[name] = []
            entry = name if found[1] else entry
        elif name:
            computations[name].append(line)

    def of(name: str) -> Cycles:
        total = Cycles(0, 0)
        for line in computations[name]:
            if found := re.search(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)', line):
                total += _of_loop(of(found[2]) + of(found[1]), computations[found[1]])
            elif found := re.search(r' conditional\(.*branch_computations=\{([^}]*)\}', line):
                total += min(of(branch.strip().lstrip('%')) for branch in found[1].split(','))
            elif found := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += Cycles(int(found[1]), 0)
        return total

    return of(entry)


def _of_loop(iteration: Cycles, condition: Sequence[str]) -> Cycles:
    """The cycles of a loop: a constant number of iterations, or one that depends on data."""
    counted = any(re.search(r'ROOT \S+ = pred\S* compare\(.*direction=LT', line) for line in condition)
    limits = [found[1] for line in condition if (found := re.search(r's32\[\]\S* constant\((\d+)\)', line))]
    return iteration * int(limits[0]) if counted and limits else Cycles(0, sum(iteration))


def describe(flags: argparse.Namespace) -> dict[str, Any]:
    """Compiles the loss, and reports its cycles, its temporaries and how often it reads the queue."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from dualcl_jax.method.negatives import queue_loss, top_k
    from dualcl_jax.method.negatives.queue import Queue, noise_queue
    from dualcl_jax.method.negatives.queue_loss import Anchors, contrast_with_queue
    from dualcl_jax.method.negatives.selectors import select_threshold
    from dualcl_jax.training import cost
    from dualcl_jax.training.ahead_of_time import topology_devices

    if flags.block_mib:
        queue_loss.TPU = queue_loss.TPU._replace(bytes=flags.block_mib * 2**20, least=1)
    top_k.TPU_PROBES = flags.probes or top_k.TPU_PROBES

    def loss(embeddings: jax.Array, anchors: Anchors, queue: Queue) -> jax.Array:
        contrast = contrast_with_queue(
            embeddings,
            embeddings,
            anchors,
            queue,
            temperature=0.1,
            select=select_threshold,
            k=flags.keys // 4,
        )
        return contrast.loss.mean()

    def arguments() -> tuple[jax.Array, Anchors, Queue]:
        column = jnp.zeros(flags.anchors, jnp.int32)
        anchors = Anchors(column, column, column, jax.random.split(jax.random.key(0), flags.anchors))
        return jnp.zeros((flags.anchors, DIM)), anchors, noise_queue(jax.random.key(0), flags.keys, DIM)

    device = NamedSharding(Mesh(np.array(topology_devices('v5e:1x1')), ('batch',)), PartitionSpec())
    shaped = [
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), part)
        for part in jax.eval_shape(arguments)
    ]
    traced = jax.jit(jax.value_and_grad(loss)).trace(*shaped)
    compiled = traced.lower().compile()
    found, used = count(compiled.as_text()), compiled.memory_analysis()
    return {
        'keys': flags.keys,
        'anchors': flags.anchors,
        'queue_reads': cost.count(traced.jaxpr, 'tpu', (flags.keys, DIM)).reads,
        'ms': 1e3 * (found.known + flags.passes * found.search) / CLOCK,
        'ms_without_the_search': 1e3 * found.known / CLOCK,
        'ms_of_one_pass_of_the_search': 1e3 * found.search / CLOCK,
        'passes': flags.passes,
        'temporary_bytes': used.temp_size_in_bytes,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or has an invalid value."""
    parser = Parser('python -m experiments.benchmark.cycles', __doc__)
    parser.add_argument('--keys', type=int, default=2**20, help='size of the queue')
    parser.add_argument('--anchors', type=int, default=64, help='number of anchors')
    parser.add_argument('--passes', type=int, default=5, help='how many passes the search is assumed to take')
    parser.add_argument('--block_mib', type=int, default=0, help='blocks of this size, of any number of anchors')
    parser.add_argument('--probes', type=int, default=0, help='guesses in a pass of the search')
    return parser.parse_args(arguments)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    os.environ['JAX_PLATFORMS'] = 'cpu'
    found = describe(flags)
    for name, value in found.items():
        print(f'{name:30} {value:,.6g}')
    command = ' '.join(['python -m experiments.benchmark.cycles', *sys.argv[1:]])
    versions = {name: version(name) for name in ('jax', 'jaxlib', 'libtpu')}
    print(json.dumps(found | {'command': command, 'versions': versions}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
