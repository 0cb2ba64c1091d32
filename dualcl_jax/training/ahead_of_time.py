"""What a compiled step needs: memory by part, operations, collectives, and the least time that a device allows."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict, FrozenConfigDict
from rich import filesize
from rich.console import Console
from rich.table import Table

from dualcl_jax.data import batch_spec
from dualcl_jax.data.text.source import VOCABULARY
from dualcl_jax.data.tree import ArraySpec, batch_of, empty
from dualcl_jax.method import randomness
from dualcl_jax.method.build import Method, build_method
from dualcl_jax.method.choices import TYPICAL_IMAGES
from dualcl_jax.method.contrast import contrast
from dualcl_jax.method.negatives.queue import Queue, batch_queue, empty_queue
from dualcl_jax.method.negatives.queue_loss import Anchors
from dualcl_jax.method.resolve import resolve
from dualcl_jax.method.state import TrainState, create_train_state, queue_specs, state_specs
from dualcl_jax.method.validation import validate, validate_devices, validate_kind, validate_sizes
from dualcl_jax.method.views import VIEWS
from dualcl_jax.models.encoder import TEXT_MODELS
from dualcl_jax.step import train_step
from dualcl_jax.system.devices import AXIS, MAPPERS, ShardMapMapper, bytes_per_device, shapes
from dualcl_jax.system.errors import UserError, first_line
from dualcl_jax.system.kinds import IMAGES, TEXT
from dualcl_jax.system.tree import Tree
from dualcl_jax.training import cost
from dualcl_jax.workdir.saved_run import sentences_of

STEPS_PER_EPOCH = 100
"""An assumption, as no data are read. The length of a run is a constant of the step and does not affect the report."""
ASSUMED_MEAN, ASSUMED_STD = (0.5,), (0.25,)
"""The statistics of images, if the config takes them from the data."""
CROPPED_FROM = 128
"""The loader is assumed to deliver images of at least this many pixels a side as crops, and smaller ones as stored."""


LIBTPU_WITHOUT_A_TPU = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
"""Without these variables, libtpu queries the metadata of a TPU VM, and only one process can load libtpu."""


class Limits(NamedTuple):
    """The limits of one device; None if unknown.

    Attributes:
      flops: operations per second in bfloat16.
      bandwidth: memory bandwidth in bytes per second.
      memory: memory in bytes.
    """

    flops: float | None
    bandwidth: float | None
    memory: int | None


LIMITS = {
    'TPU v5 lite': Limits(197e12, 819e9, round(15.75 * 2**30)),
    'TPU v5': Limits(459e12, 2765e9, round(95.73 * 2**30)),
    'TPU v6 lite': Limits(918e12, 1640e9, round(31.24 * 2**30)),
}
"""The limits by `device_kind`. The speeds are from Google Cloud's pages on v5e, v5p and v6e. The memory is what libtpu
leaves to a program."""


def topology_devices(name: str) -> list[Any]:
    """The devices of a TPU topology such as v5e:4x4. They need not exist on this machine.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(f"--topology={name}: needs libtpu; pip install 'dualcl-jax[tpu]'")
    for variable, value in LIBTPU_WITHOUT_A_TPU.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, 'tpu').devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f'--topology={name}: {first_line(error)}\nuse one such as v5e:4x4') from error


def compile_step(config: ConfigDict, devices: Sequence[Any]) -> dict[str, Any]:
    """Compiles the training step for devices and reports on it. It runs no step and reads no data.

    Returns:
      These values by name; a value is None if it is unknown for the device or for a program that does not fit:
      - `fits`: whether the memory suffices;
      - `bytes_per_device` and `bytes_by_part`: the memory that the step needs;
      - `memory_bytes`: the memory of one device;
      - `global_batch`, `devices`, `device_kind`;
      - `flops_per_device`: the operations of one step;
      - `collectives` by kind and `collective_bytes`, as `dualcl_jax.training.cost` counts them;
      - `compute_seconds`: the time of one step's arithmetic at full speed;
      - `accessed_bytes`: the compiled program's reads and writes by XLA's estimate, which counts the body of each loop
        once, plus the further reads of the queue in loops over blocks of anchors;
      - `memory_seconds`: the time of these reads and writes;
      - `roofline_seconds`: the longer of the two;
      - `queue_and_head_bytes`: the memory of the queue and the loss of one view order, compiled alone;
      - `queue_reads`: how often the losses of one step read the keys of the queue;
      - `roofline_head_seconds`: the time of these losses: that of their arithmetic or of these reads, whichever is
        longer.

    Raises:
      UserError: the config has a mistake, or cannot be divided over the devices.
    """
    resolved = _resolved(config, devices)
    mesh, device, size = Mesh(np.asarray(devices), (AXIS,)), devices[0], resolved.train.batch_size
    kind, whole, example = _examples(resolved)
    views = VIEWS[kind](resolved, empty(batch_of(whole, 0)))
    method = build_method(
        resolved, views, total_steps=100 * STEPS_PER_EPOCH, steps_per_epoch=STEPS_PER_EPOCH, num_devices=len(devices)
    )
    step, specs, limits = partial(train_step, method), state_specs(method), _limits(device)
    state = shapes(jax.eval_shape(partial(create_train_state, method)), mesh, specs)
    batch = shapes(batch_spec(example, size), mesh, PartitionSpec(AXIS))
    counted = cost.count(ShardMapMapper(mesh, specs).map(step).trace(state, batch).jaxpr, device.platform)
    head, further = _head(method, mesh, limits, size)
    report = {
        'fits': False,
        'device_kind': device.device_kind,
        'devices': len(devices),
        'global_batch': size,
        'bytes_per_device': None,
        'memory_bytes': limits.memory,
        'bytes_by_part': _bytes_by_part(state, batch),
        'flops_per_device': counted.flops,
        'collectives': counted.collectives,
        'collective_bytes': sum(kind['bytes'] for kind in counted.collectives.values()),
        'accessed_bytes': None,
        **_roofline(limits, counted, None),
        **head,
    }
    try:
        compiled = MAPPERS[resolved.parallel.mapper](mesh, specs).lower(step, state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return report | {'bytes_per_device': _needed(str(error))}
    used: Any = compiled.memory_analysis()
    report['bytes_by_part'] |= {
        'activations and temporaries': used.temp_size_in_bytes,
        'program': used.generated_code_size_in_bytes,
    }
    total, accessed = _total(used), (compiled.cost_analysis() or {}).get('bytes accessed')
    if accessed is not None:
        accessed = round(accessed) + further
    return report | {
        'fits': None if limits.memory is None else total <= limits.memory,
        'bytes_per_device': total,
        'accessed_bytes': accessed,
        **_roofline(limits, counted, accessed),
    }


def _resolved(config: ConfigDict, devices: Sequence[Any]) -> FrozenConfigDict:
    """Checks and resolves a config for devices, with assumptions about the data. Raises UserError for a mistake."""
    validate(config)
    validate_kind(config, TEXT if config.data.name == TEXT else IMAGES, config.data.name)
    resolved = resolve(
        config,
        platform=devices[0].platform,
        num_devices=len(devices),
        num_processes=len({device.process_index for device in devices}),
        num_images=config.data.num_examples or TYPICAL_IMAGES,
        statistics=(ASSUMED_MEAN, ASSUMED_STD),
        vocabulary=VOCABULARY,
    )
    validate(resolved)
    validate_sizes(resolved)
    validate_devices(resolved, len(devices))
    return resolved


def _bytes_by_part(state: TrainState, batch: Tree) -> dict[str, int]:
    """The bytes on one device of the parts of a state and of a batch, both `shapes`."""
    return {
        'parameters': bytes_per_device((state.params, state.momentum_params)),
        'batch statistics': bytes_per_device((state.batch_stats, state.momentum_batch_stats)),
        'optimizer': bytes_per_device(state.opt_state),
        'queue': bytes_per_device(state.queue),
        'batch': bytes_per_device(batch),
    }


def _head(method: Method, mesh: Mesh, limits: Limits, batch_size: int) -> tuple[dict[str, Any], int]:
    """Reports on the loss of one view order and its gradient, compiled alone with the queue or the keys of a batch.

    With accumulation, it is the loss of one part of the batch.

    Returns:
      The part of the report, and the bytes of the queue that all losses of a step read in further iterations of loops.
    """
    times = (2 if method.symmetric else 1) * (2 if method.key_weight and method.key_term == 'queue' else 1)
    times *= method.accumulate_steps
    own = PartitionSpec(AXIS)
    specs = own, own, queue_specs(method)
    arguments = jax.eval_shape(partial(_head_arguments, method, batch_size))
    described = tuple(shapes(part, mesh, spec) for part, spec in zip(arguments, specs, strict=True))
    loss = partial(_loss_and_gradient, method)
    mapped = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=own, check_vma=False)
    traced = jax.jit(mapped).trace(*described)
    keys = described[2].keys
    shape = keys.sharding.shard_shape(keys.shape)
    counted = cost.count(traced.jaxpr, mesh.devices.flat[0].platform, shape)
    size = 4 * math.prod(shape)
    least = _roofline(limits, counted, counted.reads * size)['roofline_seconds']
    report = {
        'queue_and_head_bytes': _total(traced.lower().compile().memory_analysis()),
        'queue_reads': times * counted.reads,
        'roofline_head_seconds': None if least is None else times * least,
    }
    return report, times * counted.repeated_reads * size


def _loss(method: Method, embeddings: jax.Array, positives: jax.Array, anchors: Anchors, queue: Queue) -> jax.Array:
    """The summed loss, [] float32, of anchors [b, D] with positives [b, D] and negatives from a queue."""
    return contrast(method, queue, embeddings, positives, anchors=anchors, k=method.num_negatives).loss.sum()


def _loss_and_gradient(
    method: Method, embeddings: jax.Array, anchors: Anchors, queue: Queue
) -> tuple[jax.Array, jax.Array]:
    """The `_loss` [1] of anchors with themselves as positives, and its gradient [b, D] for the anchors."""
    value, gradient = jax.value_and_grad(partial(_loss, method))(embeddings, embeddings, anchors, queue)
    return value[None], gradient


def _head_arguments(method: Method, batch_size: int) -> tuple[jax.Array, Anchors, Queue]:
    """Zeros for `_loss_and_gradient`: the anchors of one part of a global batch, and the queue or the batch's keys."""
    rows = batch_size // method.accumulate_steps
    embeddings, column = jnp.zeros((rows, method.dim)), jnp.zeros(rows, jnp.int32)
    anchors = Anchors(column, column, column, jax.random.split(randomness.root(0), rows))
    if method.queue_size:
        return embeddings, anchors, empty_queue(method.queue_size, method.dim)
    keys, column = jnp.zeros((batch_size, method.dim)), jnp.zeros(batch_size, jnp.int32)
    return embeddings, anchors, batch_queue(keys, column, column, column[0])


def _roofline(limits: Limits, counted: cost.Cost, accessed: float | None) -> dict[str, float | None]:
    compute = counted.passes / limits.flops if limits.flops else None
    memory = accessed / limits.bandwidth if limits.bandwidth and accessed else None
    known = [seconds for seconds in (compute, memory) if seconds is not None]
    return {'compute_seconds': compute, 'memory_seconds': memory, 'roofline_seconds': max(known, default=None)}


def _examples(config: FrozenConfigDict) -> tuple[str, Tree, Tree]:
    """The kind of the examples, the shape of one, and the shape of what the loader is assumed to deliver for it.

    The loader delivers a sentence as it is and, for an image with 8 bits, the image itself or a crop for each view.
    """
    if config.model.name in TEXT_MODELS:
        return TEXT, sentences_of(config), sentences_of(config)
    side, pixels, channels = config.data.image_size, np.dtype(np.uint8), config.data.channels or 3
    of_views = (2,) if side >= CROPPED_FROM else ()
    return IMAGES, ArraySpec((1, 1, channels), pixels), ArraySpec((*of_views, side, side, channels), pixels)


def _total(used: Any) -> int:
    """The bytes of a compiled program with its arguments and results; memory that they share counts once."""
    shared = used.alias_size_in_bytes
    arrays = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    return arrays - shared + used.generated_code_size_in_bytes


def _needed(message: str) -> int | None:
    """The bytes that a program rejected by XLA as too large needs, from the error message; None if not given."""
    found = re.search(r'Used ([\d.]+)([KMGT]) of|total memory required[^(]*\(([\d.]+)([KMGT])\)', message)
    if found is None:
        return None
    number, unit = (text for text in found.groups() if text)
    return round(float(number) * 1024 ** ('KMGT'.index(unit) + 1))


def _limits(device: Any) -> Limits:
    if device.device_kind in LIMITS:
        return LIMITS[device.device_kind]
    if device.platform == 'cpu':
        return Limits(None, None, os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count())
    try:
        return Limits(None, None, (device.memory_stats() or {}).get('bytes_limit'))
    except jax.errors.JaxRuntimeError:  # a device of a topology, which does not exist here
        return Limits(None, None, None)


def show(report: dict[str, Any]) -> None:
    """Prints a report as a table."""
    table = Table(title=f'{report["devices"]} × {report["device_kind"]}, batch {report["global_batch"]:,}')
    table.add_column('on one device')
    table.add_column('', justify='right')
    for name, size in report['bytes_by_part'].items():
        table.add_row(name, _size(size))
    table.add_section()
    table.add_row('total, shared memory once', _size(report['bytes_per_device']))
    table.add_row('memory of the device', _size(report['memory_bytes']))
    table.add_row('fits', {True: 'yes', False: 'no', None: 'unknown'}[report['fits']])
    table.add_row('queue and loss alone', _size(report['queue_and_head_bytes']))
    table.add_section()
    table.add_row('operations of a step', f'{report["flops_per_device"]:.3g}')
    for kind, found in report['collectives'].items():
        table.add_row(f'{kind} × {found["count"]:,}', _size(found['bytes']))
    table.add_row('reads of the queue or the keys', f'{report["queue_reads"]:,}')
    for name, field in (
        ('arithmetic', 'compute_seconds'),
        ('memory', 'memory_seconds'),
        ('loss', 'roofline_head_seconds'),
    ):
        if report[field] is not None:
            table.add_row(f'{name}, at least', f'{1e3 * report[field]:.3g} ms')
    console = Console()
    console.print(table)
    if report['fits'] is False:
        console.print('to make it fit: model.remat=True, train.accumulate_steps=2 or more, or more devices')


def _size(count: int | None) -> str:
    return 'unknown' if count is None else filesize.decimal(count, precision=2)
