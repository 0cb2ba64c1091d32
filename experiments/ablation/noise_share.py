"""Measures which share of the hardest negatives, and of the softmax, are random vectors in the queue of a run.

    python -m experiments.ablation.noise_share --workdir=DIR [--workdir=DIR ...]

For finished runs with keys that belong to no image, as those of `experiments/sweeps/noisy_bank.py`, the program prints
their share of the queue, of the hardest quarter, and of the sum of exp(s/τ) over all keys, at the run's own τ. It
averages over the projections of 1,000 training images without augmentation. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.method.negatives.queue import UNKNOWN
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.processes.start import start
from experiments.ablation.queues import open_run

PART = 4
"""The hardest 1/PART of the queue."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or missing."""
    parser = Parser('python -m experiments.ablation.noise_share', __doc__)
    parser.add_argument('--workdir', action='append', required=True, help='folder of a finished run; may be repeated')
    return parser.parse_args(arguments)


def noise_shares(similarities: NDArray, noise: NDArray[np.bool_], temperature: float) -> dict[str, float]:
    """The share of noise in the queue, among the hardest quarter of its keys, and in the softmax over them.

    Args:
      similarities: [N, K], cosines of queries and keys.
      noise: [K], which keys are noise.
      temperature: τ > 0.
    """
    hardest = np.argsort(-similarities, axis=1, kind='stable')[:, : max(similarities.shape[1] // PART, 1)]
    weights = np.exp((similarities - similarities.max(axis=1, keepdims=True)) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    return {
        'queue': float(noise.mean()),
        'hardest': float(noise[hardest].mean()),
        'softmax': float(weights[:, noise].sum(axis=1).mean()),
    }


def shares_of(workdir: str) -> dict[str, float]:
    """`noise_shares` of a run.

    Raises:
      UserError: there is no run, its queue is missing or empty, or its data have changed.
    """
    run, queue, train, images = open_run(workdir)
    queries = Embedder(run.method, run.mesh)(run.state.variables, train, images).projection.astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    filled = int(queue.filled)
    similarities = queries @ np.asarray(queue.keys)[:filled].T
    return noise_shares(similarities, np.asarray(queue.ids)[:filled] == UNKNOWN, run.method.temperature)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    start(several=False)
    cases = [{'workdir': workdir} | shares_of(workdir) for workdir in flags.workdir]
    table = Table(
        'workdir', 'of the queue', 'of its hardest quarter', 'of the softmax', title='Share of random vectors'
    )
    for case in cases:
        held = (f'{100 * case[name]:.1f} %' for name in ('queue', 'hardest', 'softmax'))
        table.add_row(case['workdir'], *held)
    Console(markup=False, width=None if sys.stdout.isatty() else 140).print(table)
    print(json.dumps({'cases': cases}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
