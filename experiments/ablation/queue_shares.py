"""Measures which share of the softmax the hardest negatives hold, or how much of the queue is random vectors.

    python -m experiments.ablation.queue_shares --of=softmax|noise --workdir=DIR [--workdir=DIR ...]

It analyses finished runs with a queue, over 1,000 training images with the encoders in evaluation mode. The last line
is JSON.

- softmax: the share of the sum of exp(s/τ) over a query's negatives that the hardest 1/64 to 1/2 of them hold, and so
  how much selecting them can change; at the run's own τ and at two and four times that.
- noise: for runs with keys that belong to no image, as those of `experiments/sweeps/noisy_bank.py`, their share of the
  queue, of the hardest quarter, and of the sum of exp(s/τ) over all keys, at the run's own τ.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dualcl_jax.data import Source, data_config, load
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue
from dualcl_jax.reports.hardness import PARTS, softmax_shares
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import UserError, exits_cleanly
from dualcl_jax.system.processes.start import start
from dualcl_jax.workdir.saved_run import SavedRun, open_saved_run

IMAGES = 1000
TIMES = (1, 2, 4)
"""Multiples of the run's temperature."""
PART = 4
"""The hardest 1/PART of the queue."""
HEADINGS: dict[str, tuple[tuple[str, ...], str]] = {
    'softmax': (('τ', *(f'1/{part}' for part in PARTS)), 'Share of the softmax over all negatives'),
    'noise': (('of the queue', 'of its hardest quarter', 'of the softmax'), 'Share of random vectors'),
}
"""The columns of the table, in the order of the values, and its title, by what is measured."""


class RunWithQueue(NamedTuple):
    """A run, its queue, its training split, and at most `IMAGES` random images of the split (indices)."""

    run: SavedRun
    queue: Queue
    train: Source
    images: NDArray[np.int64]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or missing."""
    parser = Parser('python -m experiments.ablation.queue_shares', __doc__)
    parser.add_argument('--of', choices=tuple(HEADINGS), required=True, help='what is measured')
    parser.add_argument('--workdir', action='append', required=True, help='folder of a finished run; may be repeated')
    return parser.parse_args(arguments)


def open_run(workdir: str) -> RunWithQueue:
    """Opens a run.

    Raises:
      UserError: there is no run, its queue is missing or empty, or its data have changed.
    """
    run = open_saved_run(workdir)
    queue = run.state.queue
    if queue is None or not int(queue.filled):
        raise UserError(f'--workdir={workdir}: the run has no queue of keys; choose one with queue.size above 0')
    train = load(data_config(run.config, run.folder), validate=False).train
    if train.fingerprint != run.data_fingerprint:
        raise UserError(f'--workdir={workdir}: the images differ from those of training; restore them')
    return RunWithQueue(run, queue, train, np.random.default_rng(0).permutation(len(train))[:IMAGES])


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


def of_noise(opened: RunWithQueue) -> list[dict[str, float]]:
    """`noise_shares` of a run, the only item."""
    run, queue, train, images = opened
    queries = Embedder(run.method, run.mesh)(run.state.variables, train, images).projection.astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    filled = int(queue.filled)
    similarities = queries @ np.asarray(queue.keys)[:filled].T
    return [noise_shares(similarities, np.asarray(queue.ids)[:filled] == UNKNOWN, run.method.temperature)]


def of_softmax(opened: RunWithQueue) -> list[dict[str, float]]:
    """The shares of a run at each temperature: a dict with `temperature` and the share of each part by name."""
    run, queue, train, images = opened
    temperatures = [times * run.method.temperature for times in TIMES]
    found = softmax_shares(run.method, run.state, train, images, queue, PARTS, temperatures)
    names = [f'1/{part}' for part in PARTS]
    return [
        {'temperature': temperature} | dict(zip(names, map(float, shares), strict=True))
        for temperature, shares in zip(temperatures, found, strict=True)
    ]


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    start(several=False)
    measure = {'softmax': of_softmax, 'noise': of_noise}[flags.of]
    found = [(workdir, shares) for workdir in flags.workdir for shares in measure(open_run(workdir))]
    headings, title = HEADINGS[flags.of]
    table = Table('workdir', *headings, title=title)
    for workdir, shares in found:
        shown = (f'{value:g}' if name == 'temperature' else f'{100 * value:.1f} %' for name, value in shares.items())
        table.add_row(workdir, *shown)
    Console(markup=False, width=None if sys.stdout.isatty() else 140).print(table)
    print(json.dumps({'cases': [{'workdir': workdir} | shares for workdir, shares in found]}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
