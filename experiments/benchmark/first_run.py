"""Measures a first run on folders of images: accuracy beside raw pixels and the random encoder, and CPU time.

    python -m experiments.benchmark.first_run --data=DIR [--data=DIR ...] [--seeds 0 1 2] --workdirs=WORK \\
        --output=FILE [--config.FIELD=VALUE ...]

Each folder is trained on with `configs/folder.py`, in a process for each seed; `small_sets.py` writes such folders.
FILE is a JSON list of records, to which this command adds its own. What is already in it, with the same fields, is not
measured again.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.machine import processor
from dualcl_jax.workdir.metrics import KNN

TAKEN = (
    'step', 'images_seen', 'loss', 'knn_top1', 'knn_top1_projection', 'knn_top1_raw_pixels', 'knn_top1_random_encoder',
    'wall_time_s', 'state_sha256', 'versions',
)  # fmt: skip


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the fields of the config as 'FIELD=VALUE'. Raises UserError if a flag is wrong."""
    parser = Parser('python -m experiments.benchmark.first_run', __doc__)
    parser.add_argument('--data', type=Path, action='append', required=True, help='folder of images; repeatable')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--workdirs', type=Path, required=True, help='folder for the workdirs of the runs')
    parser.add_argument('--output', type=Path, required=True, help='JSON file of records')
    flags, fields = parser.parse_with_fields(arguments)
    if any(field.startswith('seed=') for field in fields):
        parser.error('--config.seed: give --seeds, by which the records are named')
    return flags, fields


@exits_cleanly
def main() -> int:
    flags, fields = parse(sys.argv[1:])
    overrides = [f'--config.{field}' for field in fields]
    for seed, data in product(flags.seeds, flags.data):
        records = json.loads(flags.output.read_text()) if flags.output.exists() else []
        if any((data.name, seed, overrides) == (old['data'], old['seed'], old['overrides']) for old in records):
            print(f'{data.name}, seed {seed}: is in {flags.output}')
            continue
        try:
            record = measure(data, seed, flags.workdirs / f'{data.name}-seed{seed}', overrides)
        except subprocess.CalledProcessError as error:  # it has printed the reason
            return error.returncode
        flags.output.write_text(json.dumps([*records, record], indent=1) + '\n')
    return 0


def measure(data: Path, seed: int, workdir: Path, overrides: list[str]) -> dict[str, Any]:
    """Trains on a folder in a process, and returns values of its summary and its metrics, with its CPU time.

    Raises:
      subprocess.CalledProcessError: the run failed.
    """
    command = [sys.executable, '-m', 'dualcl_jax.main', '--config=configs/folder.py', f'--config.data.path={data}']
    before = _cpu_seconds()
    subprocess.run([*command, f'--config.seed={seed}', f'--workdir={workdir}', *overrides], check=True)
    summary = json.loads((workdir / 'summary.json').read_text())
    metrics = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return {
        'data': data.name,
        'overrides': overrides,
        'seed': seed,
        'cpu_seconds': round(_cpu_seconds() - before, 1),
        'cores': len(os.sched_getaffinity(0)),
        'processor': processor(),
        **{name: summary[name] for name in TAKEN},
        'curve': {record['step']: record[KNN.backbone] for record in metrics if KNN.backbone in record},
        'config': summary['config'] | {'data': summary['config']['data'] | {'path': data.name}},
    }


def _cpu_seconds() -> float:
    """CPU time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == '__main__':
    sys.exit(main())
