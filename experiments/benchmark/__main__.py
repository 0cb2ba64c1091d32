"""Compares the times of parts and of whole runs: python -m experiments.benchmark NAME [--rounds=5].

NAME is head, loader, step, views or decode (parts, in this process), or peer, peer_gpu, startup or scaling (runs in
their own processes). Each part is warmed up. Then all cases of a comparison run in turn, round after round, so that a
machine that slows down slows all of them. The program prints medians with the smallest and the largest value. The last
line is JSON.
"""

import argparse
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from dualcl_jax.data.images.source import image_source
from dualcl_jax.data.loader import Loader
from dualcl_jax.losses import info_nce, normalize
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, noise_queue
from dualcl_jax.method.negatives.queue_loss import Anchors, contrast_with_queue
from dualcl_jax.method.negatives.selectors import AUTO, EXACT, SELECTORS
from dualcl_jax.method.resolve import resolve
from dualcl_jax.method.views import VIEWS
from dualcl_jax.method.views.images import PRESETS, make_views
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.devices import device_mesh
from dualcl_jax.system.errors import UserError, exits_cleanly
from dualcl_jax.system.machine import processor
from dualcl_jax.system.processes.start import start
from dualcl_jax.system.versions import versions
from experiments.benchmark import data, runs
from experiments.benchmark.step import Stepper, config_step

Cases = list[dict[str, Any]]
Timing = tuple[float, float, float]
DTYPES = ['float32', 'bfloat16']


def compare(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Times functions in turn, `rounds` times after a warm-up. Returns (median, smallest, largest) seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for counted, (name, function) in itertools.product(range(rounds + 1), functions.items()):
        began = time.perf_counter()
        jax.block_until_ready(function())
        if counted:
            seconds[name].append(time.perf_counter() - began)
    return {name: (statistics.median(times), min(times), max(times)) for name, times in seconds.items()}


def head(rounds: int, batch: int = 0) -> Cases:
    """Loss and gradient with every selector, D 128, against plain InfoNCE over all negatives.

    There are `batch` anchors; if it is 0, 256, and on accelerators also 1,024 and 4,096.
    """
    cases: Cases = []
    batches = (batch,) if batch else (256,) if jax.default_backend() == 'cpu' else (256, 1024, 4096)
    for count, (size, k) in itertools.product(batches, ((4096, 1024), (65_536, 1024), (65_536, 16_384))):
        rngs = jax.random.split(jax.random.key(0), 3)
        queries, keys = (normalize(jax.random.normal(rng, (count, 128))) for rng in rngs[:2])
        queue = noise_queue(rngs[2], size, 128)

        functions = {'all': functools.partial(_plain_head(), queries, keys, queue.keys)}
        for name in SELECTORS:
            if name != 'all':
                functions[name] = functools.partial(_head(name, k), queries, keys, queue)
        timings = compare(functions, rounds)
        cases += [
            {
                'batch': count,
                'queue': size,
                'k': k,
                'selector': name,
                'exact': name in EXACT,
                'seconds': median,
            }
            | {'ratio_to_all': median / timings['all'][0], 'smallest': smallest, 'largest': largest}
            for name, (median, smallest, largest) in timings.items()
        ]
    return cases


def _plain_head() -> Callable:
    """InfoNCE over all negatives with its gradient with respect to the queries, storing all similarities at once."""

    def loss(queries: jax.Array, keys: jax.Array, negatives: jax.Array) -> jax.Array:
        return info_nce(queries, keys, negatives, temperature=0.1).loss.mean()

    return jax.jit(jax.value_and_grad(loss))


def _head(selector: str, k: int) -> Callable:
    """Value and gradient with respect to the queries, computed as in a training step."""

    def loss(queries: jax.Array, keys: jax.Array, queue: Queue) -> jax.Array:
        ids = jnp.arange(len(queries), dtype=jnp.int32)  # those of noise are unknown, so that every key is allowed
        rngs = jax.random.split(jax.random.key(0), len(queries))
        contrast = contrast_with_queue(
            queries,
            keys,
            Anchors(ids, ids, jnp.full_like(ids, UNKNOWN), rngs),
            queue,
            temperature=0.1,
            select=SELECTORS[selector].select,
            k=k,
        )
        return contrast.loss.mean()

    return jax.jit(jax.value_and_grad(loss))


def loader(rounds: int) -> Cases:
    """Images per second that the loader prepares from memory: 32×32×3, batch 256, without transfer."""
    count, batch, steps = 50_000, 256, 2000
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    source = image_source('benchmark', pixels, np.zeros(count, np.int32))

    def epoch() -> None:
        load = Loader(
            source, rows=np.arange(batch), seed=0, batch_size=batch, start_step=0, stop_step=steps, place=lambda b: b
        )
        with load as batches:
            for _ in batches:
                pass

    median, smallest, largest = compare({'memory': epoch}, rounds)['memory']
    images = steps * batch
    return [
        {'batch': batch, 'images_per_second': images / median}
        | {'smallest': images / largest, 'largest': images / smallest}
    ]


def step(rounds: int) -> Cases:
    """The whole step of ResNet-18, width 16, batch 256: one-way MoCo; dual view with the hardest quarter; the views."""
    from configs import cifar10_moco

    mesh = device_mesh()
    examples = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    functions: dict[str, Callable] = {}
    for dtype in DTYPES:
        for name, symmetric, selector in (('one-way, all', False, 'all'), ('dual view, hardest', True, AUTO)):
            config = cifar10_moco.get_config()
            config.model.width, config.model.dtype = 16, dtype
            config.loss.symmetric, config.negatives.selector = symmetric, selector
            config = resolve(config, platform=mesh.devices.flat[0].platform, num_devices=mesh.size)
            functions[f'{name}, {dtype}'] = Stepper(config, VIEWS['images'](config, examples), examples, steps=1)
    make, images = jax.jit(make_views, static_argnums=(2, 3)), jnp.asarray(examples)
    keys = jax.random.split(jax.random.key(0), len(images))
    for preset, specs in PRESETS.items():
        functions[f'two views alone, {preset}, float32'] = functools.partial(make, keys, images, specs, 32)
    timings = compare(functions, rounds)
    return [
        {'case': name, 'seconds': median, 'images_per_second': 256 / median}
        | {'ratio_to_one_way': median / timings[f'one-way, all, {name.split(", ")[-1]}'][0]}
        | {'smallest': smallest, 'largest': largest}
        for name, (median, smallest, largest) in timings.items()
    ]


def views(rounds: int) -> Cases:
    """Two views of 256 images 32×32 and of 16 images 224×224 by preset; then each operation alone, once per image."""
    cases: Cases = []
    for size, count in ((32, 256), (224, 16)):
        images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
        keys = jax.random.split(jax.random.key(0), count)
        run = jax.jit(make_views, static_argnums=(2, 3))
        functions = {name: functools.partial(run, keys, jnp.asarray(images), PRESETS[name], size) for name in PRESETS}
        cases += [
            {
                'size': size,
                'images': count,
                'operation': f'two views, {name}',
                'seconds': median,
                'smallest': low,
                'largest': high,
            }
            for name, (median, low, high) in compare(functions, rounds).items()
        ]
    return cases + data.operations(rounds, compare)


BENCHMARKS: dict[str, Callable[[int], Cases]] = {'head': head, 'loader': loader, 'step': step, 'views': views}
BENCHMARKS['decode'] = functools.partial(data.decode, compare=compare)
BENCHMARKS['decode'].__doc__ = data.decode.__doc__
RUNS: dict[str, Callable[[argparse.Namespace], Cases]] = {
    'peer': runs.peer,
    'peer_gpu': runs.peer_gpu,
    'startup': runs.startup,
    'scaling': runs.scaling,
}


def conditions(flags: argparse.Namespace) -> dict[str, Any]:
    """The command, and the machine and versions that it ran on."""
    machine = f'{os.cpu_count()} cores of {processor()}'
    command = f'python -m experiments.benchmark {flags.name} --rounds={flags.rounds}'
    if flags.name == 'head' and flags.batch:
        command += f' --batch={flags.batch}'
    if flags.name == 'peer':
        command += f' --widths {" ".join(map(str, flags.widths))} --dtypes {" ".join(flags.dtypes)}'
    if flags.name == 'step' and flags.config:
        command += f' --steps={flags.steps}' + (f' --batch={flags.batch}' if flags.batch else '')
        command += ''.join(f' --config={path}' for path in flags.config)
        command += ''.join(f' --config.{field}' for field in flags.fields)
    return {'command': command, 'machine': machine, 'devices': devices(), 'versions': versions()}


def devices() -> str:
    """The accelerators of this machine, with the driver of a GPU; empty if there is none."""
    if shutil.which('nvidia-smi') is None:
        return '' if jax.default_backend() == 'cpu' else f'{jax.device_count()} × {jax.devices()[0].device_kind}'
    query = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split('\n')
    return '; '.join(f'{name}, driver {driver}' for name, driver in (line.split(', ') for line in found if line))


def show(flags: argparse.Namespace, cases: Cases) -> None:
    """Prints the cases as a table, then the cases and their conditions as one line of JSON."""
    about = (BENCHMARKS | RUNS)[flags.name].__doc__
    table = Table(title=f'{flags.name}: {about}', title_justify='left')
    columns = max(cases, key=len)
    for column in columns:
        table.add_column(column, justify='right')
    for case in cases:
        values = [case.get(column, '') for column in columns]
        table.add_row(*(f'{value:.4g}' if isinstance(value, float) else str(value) for value in values))
    Console().print(table)
    print(json.dumps({'cases': cases} | conditions(flags)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags; `fields` are the overrides of config fields as 'field=value'.

    Raises:
      UserError: a flag is unknown or missing, or has an invalid value.
    """
    parser = Parser('python -m experiments.benchmark', __doc__)
    parser.add_argument('name', choices=[*BENCHMARKS, *RUNS])
    parser.add_argument('--rounds', type=int, default=5, help='how often to time each case')
    parser.add_argument('--data_dir', type=Path, default=Path('../shared/tfds'), help='TFDS directory of the runs')
    parser.add_argument('--peer', type=Path, help='script of the program for peer to compare with')
    parser.add_argument('--peer_python', type=Path, help='Python that runs this script')
    parser.add_argument(
        '--widths', type=int, nargs='+', default=[16, 64], help='widths of the networks for peer to compare'
    )
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=DTYPES, help='dtypes for peer to compare')
    parser.add_argument(
        '--config', action='append', default=[], help='config for step to time instead of its own cases'
    )
    parser.add_argument('--batch', type=int, default=0, help='batch of head and of step --config; 0 for their defaults')
    parser.add_argument('--steps', type=int, default=20, help='steps per timing of step --config')
    parser.add_argument(
        '--views', choices=('with', 'without', 'both'), default='both', help='which steps step --config times'
    )
    parser.add_argument(
        '--peak_tflops', type=float, default=0.0, help='peak of one device, to report the share that is used'
    )
    flags, fields = parser.parse_with_fields(arguments)
    flags.fields = fields
    for name in ('rounds', 'steps'):
        if getattr(flags, name) < 1:
            raise UserError(f'--{name}={getattr(flags, name)}: must be at least 1')
    if flags.fields and not (flags.name == 'step' and flags.config):
        raise UserError(f'--config.{flags.fields[0]}: only `step --config=FILE` accepts fields')
    return flags


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    if flags.name in RUNS:
        show(flags, RUNS[flags.name](flags))
    else:
        start(several=False)
        if flags.name == 'step' and flags.config:
            show(flags, config_step(flags, flags.fields, compare))
            return 0
        if flags.name == 'head':
            show(flags, head(flags.rounds, flags.batch))
            return 0
        show(flags, BENCHMARKS[flags.name](flags.rounds))
    return 0


if __name__ == '__main__':
    sys.exit(main())
