"""Measures which share of the softmax the hardest negatives hold, and so how much selecting them can change.

    python -m experiments.ablation.softmax_share --workdir=DIR [--workdir=DIR ...]

For finished runs with a queue, the program prints the share of the sum of exp(s/τ) over a query's negatives that the
hardest 1/64 to 1/2 of them hold. It averages over 1,000 training images, with the encoders in evaluation mode, at
the run's own τ and at two and four times that. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dualcl_jax.reports.hardness import PARTS, softmax_shares
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.processes.start import start
from experiments.ablation.queues import open_run

TIMES = (1, 2, 4)
"""Multiples of the run's temperature."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or missing."""
    parser = Parser('python -m experiments.ablation.softmax_share', __doc__)
    parser.add_argument('--workdir', action='append', required=True, help='folder of a finished run; may be repeated')
    return parser.parse_args(arguments)


def shares_of(workdir: str) -> list[dict[str, float]]:
    """Computes the shares of a run at each temperature: a dict with `temperature` and the share of each part by name.

    Raises:
      UserError: there is no run, its queue is missing or empty, or its data have changed.
    """
    run, queue, train, images = open_run(workdir)
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
    cases = [{'workdir': workdir} | shares for workdir in flags.workdir for shares in shares_of(workdir)]
    table = Table('workdir', 'τ', *(f'1/{part}' for part in PARTS), title='Share of the softmax over all negatives')
    for case in cases:
        held = (f'{100 * case[f"1/{part}"]:.1f} %' for part in PARTS)
        table.add_row(case['workdir'], f'{case["temperature"]:g}', *held)
    Console(markup=False, width=None if sys.stdout.isatty() else 140).print(table)
    print(json.dumps({'cases': cases}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
