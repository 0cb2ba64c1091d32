"""Measures the encoders of a sweep on another data set, by linear probes of their features.

    python -m experiments.ablation.transfer DIR --data=cifar10 [--config.data.data_dir=DATA]

DIR is the `--output` folder of a sweep whose runs still have their workdirs. The program evaluates each finished run
(`dualcl evaluate --protocols=linear --config.data.name=...`), writes `DIR/transfer_DATA.json` with one record per run
and `DIR/transfer_DATA.md` with the table, and prints the table. Runs that were measured before are not repeated.
Further `--config.FIELD=VALUE` are settings of the evaluation.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import UserError, exits_cleanly
from dualcl_jax.system.files import write_output
from experiments.ablation.records import read_all, read_plan
from experiments.ablation.tables import compare_arms, markdown_arms

LAYERS = 'backbone', 'projection'


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags, and the settings of the evaluation as 'field=value'. Raises UserError if one is invalid."""
    parser = Parser('python -m experiments.ablation.transfer', __doc__)
    parser.add_argument('output', type=Path, metavar='DIR', help='the --output folder of a sweep')
    parser.add_argument('--data', required=True, metavar='NAME', help='a data set of TFDS, such as cifar10')
    flags, fields = parser.parse_with_fields(arguments)
    if not re.fullmatch(r'\w+', flags.data):
        parser.error(f'--data={flags.data}: give the name of one data set, such as cifar10')
    return flags, fields


def probe(workdir: Path, data: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Evaluates the encoder of a run in a process of its own; returns the records of the evaluation.

    Raises:
      UserError: there is no run, or the evaluation failed.
    """
    command = [sys.executable, '-m', 'dualcl_jax.evaluate', f'--workdir={workdir}', '--protocols=linear']
    command += [f'--config.{field}' for field in (f'data.name={data}', *fields)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
        raise UserError(f'{workdir}: {lines[-1].removeprefix("error: ")}')
    return json.loads(done.stdout.splitlines()[-1])['records']


def record(arm: str, seed: int, state: str, evaluated: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The stored record of a run: its accuracies in [0, 1] by layer, with the data, state and versions behind them."""
    accuracies = {found['layer']: found['value'] for found in evaluated if found['metric'] == 'top1'}
    first = evaluated[0]
    return {
        'arm': arm,
        'seed': seed,
        **{layer: accuracies[layer] for layer in LAYERS},
        'data_set': first['data_set'],
        'data_fingerprint': first['data_fingerprint'],
        'examples': first['examples'],
        'state_sha256': state,
        'versions': first['versions'],
    }


def table(plan: dict[str, Any], data: str, records: list[dict[str, Any]]) -> str:
    """The table as Markdown: accuracies of each arm in %, and their differences from the baseline paired by seed."""
    lines = [f'**{plan["title"]}: linear probe on {data}**', '']
    lines += markdown_arms(LAYERS, compare_arms(plan, records, LAYERS))
    lines += ['', f'Accuracy on {records[0]["examples"]:,} test images in %, mean ± standard error over n seeds.']
    return '\n'.join(lines) + '\n'


@exits_cleanly
def main() -> int:
    flags, fields = parse(sys.argv[1:])
    plan = read_plan(flags.output)
    path = flags.output / f'transfer_{flags.data}.json'
    found = {(one['arm'], one['seed']): one for one in (json.loads(path.read_bytes()) if path.exists() else [])}
    records = read_all(flags.output, plan)
    if not records:
        raise UserError(f'{flags.output}/records: no run is finished yet')
    for run in records:
        key = run['arm'], run['seed']
        if found.get(key, {}).get('state_sha256') != run['state_sha256']:
            workdir = flags.output / 'runs' / f'{run["arm"]}-seed{run["seed"]}'
            found[key] = record(*key, run['state_sha256'], probe(workdir, flags.data, fields))
            ordered = [found[one['arm'], one['seed']] for one in records if (one['arm'], one['seed']) in found]
            print(f'{workdir.name}  {flags.data} {100 * found[key]["backbone"]:.1f} %', file=sys.stderr)
            write_output(str(path), (json.dumps(ordered, indent=1, allow_nan=False) + '\n').encode())
    text = table(plan, flags.data, list(found.values()))
    write_output(str(path.with_suffix('.md')), text.encode())
    print(text, end='')
    return 0


if __name__ == '__main__':
    sys.exit(main())
