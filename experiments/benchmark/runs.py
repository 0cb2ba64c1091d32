"""Benchmarks of whole runs: against a peer program, from the start to the first step, and over devices.

Each run has its own process, as if a user had started it.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualcl_jax.system.errors import UserError

Cases = list[dict[str, Any]]
REPOSITORY = Path(__file__).parents[2]
BATCH = 256
STEPS = {16: 20, 64: 5}
"""The number of timed steps of a run, by width; one more step precedes them."""


def peer(flags: argparse.Namespace) -> Cases:
    """Images per second of whole training steps of this package and a peer in turn: ResNet-18, one-way, batch 256."""
    if not flags.peer_python or not flags.peer:
        raise UserError('--peer_python and --peer: name the Python and the script of the program to compare with')
    python, script, data_dir = flags.peer_python.absolute(), flags.peer.absolute(), _data_dir(flags)
    for path in (python, script):
        if not path.exists():
            raise UserError(f'{path}: not found; correct --peer_python or --peer')
    cases: Cases = []
    for width, dtype in itertools.product(flags.widths, flags.dtypes):
        limit = BATCH * (STEPS.get(width, 5) + 1)
        theirs = [str(python), str(script), f'--data={data_dir}', f'--width={width}', f'--limit={limit}']
        theirs += ['--epochs=1', *(['--bf16'] if dtype == 'bfloat16' else [])]
        ours = f'data.limit={limit}', f'model.width={width}', f'model.dtype={dtype}'
        speeds: dict[str, list[float]] = {'ours': [], 'peer': []}
        for _ in range(flags.rounds):
            speeds['ours'].append(_speed(data_dir, *ours))
            speeds['peer'].append(_peer_speed(_run(theirs)))
        ratios = [ours / other for ours, other in zip(speeds['ours'], speeds['peer'], strict=True)]
        cases.append(
            {'width': width, 'dtype': dtype}
            | {name: statistics.median(values) for name, values in speeds.items()}
            | {'ratio': statistics.median(ratios), 'smallest': min(ratios), 'largest': max(ratios)}
        )
    return cases


PLAIN_BATCH_NORM = ('--config.model.norm=local', '--config.loss.shuffle_keys=False', '--config.model.dtype=bfloat16')
GPU_PAIRS = {
    'ResNet-50, 224, batch 256, queue 65,536': (
        ('--model=resnet50', '--batch=256', '--size=224', '--queue=65536'),
        ('--config=configs/imagenet.py:moco_v2', '--batch=256'),
    ),
    'ResNet-18, CIFAR stem, batch 512, queue 4,096': (
        ('--model=resnet18_cifar', '--batch=512', '--size=32', '--queue=4096'),
        ('--config=configs/cifar10.py:moco_v2', '--batch=512', '--config.model.projection=linear'),
    ),
}
"""The flags of the peer, and the flags of `benchmark step` for the same step."""


def peer_gpu(flags: argparse.Namespace) -> Cases:
    """Images per second of one-way bfloat16 steps of this package and a peer in turn, with examples on the device."""
    if not flags.peer:
        raise UserError('--peer: name the script of the program to compare with')
    python, script = flags.peer_python or Path(sys.executable), flags.peer.absolute()
    if not script.exists():
        raise UserError(f'--peer={flags.peer}: not found')
    step = [sys.executable, '-m', 'experiments.benchmark', 'step', '--rounds=3', *PLAIN_BATCH_NORM]
    cases: Cases = []
    for name, (theirs, ours) in GPU_PAIRS.items():
        speeds: dict[str, list[float]] = {kind: [] for kind in ('ours', 'ours, views', 'peer', 'peer, views')}
        for _ in range(flags.rounds):
            found = json.loads(_run([*step, *ours], platforms=None).splitlines()[-1])['cases']
            for kind, case in zip(('ours, views', 'ours'), found, strict=True):
                speeds[kind].append(case['images_per_second'])
            for kind, views in (('peer', ()), ('peer, views', ('--views',))):
                speeds[kind].append(_peer_speed(_run([str(python), str(script), *theirs, *views], platforms=None)))
        medians = {kind: statistics.median(values) for kind, values in speeds.items()}
        ratios = {
            'ratio': medians['ours'] / medians['peer'],
            'ratio, views': medians['ours, views'] / medians['peer, views'],
        }
        cases.append({'step': name} | medians | ratios)
    return cases


def _peer_speed(printed: str) -> float:
    """Reads the images per second from the last line that the peer printed."""
    try:
        return float(json.loads(printed.splitlines()[-1])['images_per_second'])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError('--peer: the last line that it prints must be JSON with images_per_second') from error


def startup(flags: argparse.Namespace) -> Cases:
    """Seconds from the start of the quick start's command to its first finished step: the first start, and later ones.

    Later starts find the programs that JAX compiled before in its persistent cache.
    """
    with tempfile.TemporaryDirectory() as cache:
        seconds = [_first_step(cache) for _ in range(flags.rounds + 1)]
    later = seconds[1:]
    return [
        {'start': 'first', 'seconds': seconds[0], 'smallest': seconds[0], 'largest': seconds[0]},
        {'start': 'later', 'seconds': statistics.median(later), 'smallest': min(later), 'largest': max(later)},
    ]


def _first_step(cache: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = _command(folder, 'configs/quickstart.py')
        began = time.monotonic()
        with _process(command, os.environ | {'XDG_CACHE_HOME': cache}) as process:
            log = Path(folder) / 'metrics.jsonl'
            while not (log.exists() and '"step": 1,' in log.read_text()):
                if process.poll() is not None:
                    raise UserError(f'the quick start ended with exit status {process.returncode}: see {command}')
                time.sleep(0.05)
            return time.monotonic() - began


def scaling(flags: argparse.Namespace) -> Cases:
    """Images per second of `cifar10_moco` at width 16 on 1, 2 and 4 devices of this machine's CPU, batch 256 in all.

    The devices of one CPU share its cores, so this shows the cost of dividing the work, not a speed-up.
    """
    cases: Cases = []
    data_dir = _data_dir(flags)
    layouts = list(itertools.product((1, 2, 4), ('pmap', 'shard_map')))
    speeds: dict[tuple[int, str], list[float]] = {layout: [] for layout in layouts}
    for _, (devices, mapper) in itertools.product(range(flags.rounds), layouts):
        speed = _speed(
            data_dir,
            f'data.limit={BATCH * (STEPS[16] + 1)}',
            'model.width=16',
            f'parallel.mapper={mapper}',
            XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
        )
        speeds[devices, mapper].append(speed)
    for (devices, mapper), values in speeds.items():
        ratio = statistics.median(one / other for one, other in zip(values, speeds[1, 'pmap'], strict=True))
        cases.append(
            {'devices': devices, 'mapper': mapper, 'images_per_second': statistics.median(values)}
            | {'ratio_to_one': ratio, 'smallest': min(values), 'largest': max(values)}
        )
    return cases


def _command(folder: str, config: str, *overrides: str) -> list[str]:
    flags = [f'--config={config}', f'--workdir={folder}', *(f'--config.{override}' for override in overrides)]
    return [sys.executable, '-m', 'dualcl_jax.main', *flags]


def _data_dir(flags: argparse.Namespace) -> Path:
    if not flags.data_dir.exists():
        raise UserError(f'--data_dir={flags.data_dir}: not found; name the TFDS directory that contains cifar10')
    return flags.data_dir.absolute()


def _speed(data_dir: Path, *overrides: str, **variables: str) -> float:
    """Images per second of one epoch of `cifar10_moco`, from its summary: loader, views and step, without compiling."""
    fields = (f'data.data_dir={data_dir}', *overrides, 'train.epochs=1', 'monitor.every_epochs=0', 'log.pictures=False')
    with tempfile.TemporaryDirectory() as folder:
        _run(_command(folder, 'configs/cifar10_moco.py', *fields), variables)
        return json.loads((Path(folder) / 'summary.json').read_text())['images_per_second']


def _run(command: list[str], variables: dict[str, str] | None = None, *, platforms: str | None = 'cpu') -> str:
    """Runs a command and returns its output. Raises UserError with the last line of its output if it fails."""
    environment = os.environ | ({'JAX_PLATFORMS': platforms} if platforms else {}) | (variables or {})
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or 'no message').splitlines()[-1]
        raise UserError(f'{" ".join(command)}: exit status {done.returncode}, {words}')
    return done.stdout


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A context with a process that is killed at its end."""
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
