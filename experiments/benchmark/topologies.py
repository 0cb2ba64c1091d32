"""Reports what a step of ResNet-50 needs on TPU slices that are not available here.

    python -m experiments.benchmark.topologies --output=FILE

Compiles the step of `configs/imagenet.py` (both view orders, the hardest quarter of the queue) at a global batch of
4,096 for each topology, one after the other, and prints a table in Markdown: memory, collectives, and the least times
by Google's figures for the speeds. It needs libtpu but no TPU; each topology takes minutes. The file is a JSON object,
which the program reads first: it compiles only what is not in it yet.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly

TOPOLOGIES = ('v5e:4x4', 'v5e:8x8', 'v5e:16x16', 'v6e:16x16')
CONFIG, BATCH = 'configs/imagenet.py', 4096
KINDS = ('all-reduce', 'all-gather', 'collective-permute')


def describe(topology: str) -> dict[str, Any]:
    """The report of compiling for a topology, with its command."""
    import jax

    from dualcl_jax.system.config import load_config
    from dualcl_jax.training.ahead_of_time import compile_step, topology_devices

    config = load_config(CONFIG)
    config.train.batch_size = BATCH
    report = compile_step(config, topology_devices(topology))
    jax.clear_caches()
    command = f'python -m dualcl_jax.compile --config={CONFIG} --topology={topology} --config.train.batch_size={BATCH}'
    return {'command': command, 'topology': topology, 'report': report}


def table(cases: Sequence[dict[str, Any]]) -> str:
    """The cases as a table in Markdown, one column for each topology."""
    reports = [case['report'] for case in cases]
    rows = {
        'memory a device needs, of what it has': [
            f'{_giga(report["bytes_per_device"])} of {_giga(report["memory_bytes"])} GB' for report in reports
        ],
        'of it activations and temporaries': [
            f'{_giga(report["bytes_by_part"].get("activations and temporaries"))} GB' for report in reports
        ],
        'arithmetic, at least': [_milliseconds(report['compute_seconds']) for report in reports],
        'memory traffic, at least': [_milliseconds(report['memory_seconds']) for report in reports],
        'losses, at least': [_milliseconds(report['roofline_head_seconds']) for report in reports],
        'reads of the queue': [str(report['queue_reads']) for report in reports],
    }
    for kind in KINDS:
        found = [report['collectives'].get(kind, {'count': 0, 'bytes': 0}) for report in reports]
        rows[kind] = [f'{entry["count"]} ×, {entry["bytes"] / 1e6:.1f} MB' for entry in found]
    head = ['ResNet-50, batch 4,096', *(case['topology'] for case in cases)]
    lines = [head, ['---'] * len(head), *([name, *values] for name, values in rows.items())]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _giga(size: int | None) -> str:
    return 'unknown' if size is None else f'{size / 1e9:.2f}'


def _milliseconds(seconds: float | None) -> str:
    return 'unknown' if seconds is None else f'{1e3 * seconds:.3g} ms'


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or has an invalid value."""
    parser = Parser('python -m experiments.benchmark.topologies', __doc__)
    parser.add_argument('--output', type=Path, required=True, help='JSON file of the reports')
    parser.add_argument('--topologies', nargs='+', default=TOPOLOGIES, help='the topologies, in the order of the table')
    return parser.parse_args(arguments)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    os.environ['JAX_PLATFORMS'] = 'cpu'
    from dualcl_jax.system.processes.start import start

    start(several=False)
    stored = json.loads(flags.output.read_text())['cases'] if flags.output.exists() else []
    cases = {case['topology']: case for case in stored}
    for topology in flags.topologies:
        if topology not in cases:
            cases[topology] = describe(topology)
            about = {'versions': {name: version(name) for name in ('jax', 'jaxlib', 'libtpu', 'flax')}}
            flags.output.write_text(json.dumps({'cases': list(cases.values())} | about, indent=1) + '\n')
    print(table([cases[topology] for topology in flags.topologies]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
