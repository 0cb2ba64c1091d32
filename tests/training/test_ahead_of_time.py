"""The report of compiling ahead of time for this machine's devices and, if libtpu is installed, for TPUs."""

import importlib.util
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from configs import default
from dualcl_jax import compile as command
from dualcl_jax.method.negatives.queue import Queue, noise_queue
from dualcl_jax.method.negatives.queue_loss import Anchors, contrast_with_queue
from dualcl_jax.method.negatives.selectors import select_threshold
from dualcl_jax.system.config import load_config
from dualcl_jax.training import cost
from dualcl_jax.training.ahead_of_time import compile_step, topology_devices
from tests.support.runs import REPOSITORY, Finished

FIELDS = {'fits', 'bytes_per_device', 'memory_bytes', 'global_batch', 'flops_per_device', 'collective_bytes'}
FIELDS |= {'bytes_by_part', 'collectives', 'devices', 'device_kind', 'queue_and_head_bytes', 'roofline_seconds'}
FIELDS |= {'queue_reads', 'accessed_bytes'}
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install -e '.[tpu]'"
)


def tiny(**fields: Any) -> ConfigDict:
    config = default.get_config()
    config.data.image_size = 8
    config.views.preset = 'moco_cifar'
    config.model.update(name='tiny', width=4, dim=8, projection='linear', norm='local')
    config.queue.size, config.train.batch_size = 64, 16
    for field, value in fields.items():
        section, name = field.split('__')
        config[section][name] = value
    return config


def shaped(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def trips(program: str) -> list[int]:
    """How often each loop of a compiled program runs whose number of iterations is a constant."""
    conditions = re.findall(r'-> pred\[\] \{\n(.*?)\n\}', program, flags=re.DOTALL)
    counted = [text for text in conditions if re.search(r'ROOT \S+ = pred\S* compare\(.*direction=LT', text)]
    return [int(number) for text in counted for number in re.findall(r's32\[\]\S* constant\((\d+)\)', text)]


@pytest.fixture
def compile_(monkeypatch: pytest.MonkeyPatch, in_process: Callable[..., Finished]) -> Callable[..., Finished]:
    """Runs the command with flags."""
    monkeypatch.setattr('dualcl_jax.system.processes.start.start', lambda *_, **__: None)
    for name in ('JAX_PLATFORMS', 'TPU_SKIP_MDS_QUERY'):
        monkeypatch.setenv(name, 'cpu')
    return partial(in_process, command.main)


def test_the_command_on_this_machine(compile_, tmp_path: Path) -> None:
    path = tmp_path / 'config.py'
    path.write_text('import tests.training.test_ahead_of_time as t\nget_config = t.tiny\n')
    status, out, err = compile_(f'--config={path}', '--config.train.batch_size=32')
    assert (status, err) == (0, '')
    report = json.loads(out.splitlines()[-1])
    assert report.keys() >= FIELDS
    assert (report['devices'], report['global_batch'], report['device_kind'], report['fits']) == (4, 32, 'cpu', True)
    parameters = 3 * 3 * 3 * 4 + 3 * 3 * 4 * 8 + 8 * 8 + 8
    parts = report['bytes_by_part']
    assert parts['parameters'] == 2 * 4 * parameters
    assert parts['optimizer'] == 4 * parameters + 4
    assert parts['queue'] == 64 * (8 + 3) * 4 + 8
    assert parts['batch'] == 8 * (8 * 8 * 3 + 3 * 4)
    assert report['bytes_per_device'] >= sum(parts.values()) - parts['batch']
    assert parts['activations and temporaries'] > 0
    assert report['collectives']['all-reduce']['bytes'] >= 4 * parameters  # the gradient
    assert report['queue_reads'] == 2 * 2  # for each view order: similarities, and their gradient
    assert report['collective_bytes'] == sum(kind['bytes'] for kind in report['collectives'].values())
    assert (
        report['roofline_seconds'] is report['roofline_head_seconds'] is None
    )  # the speeds of this device are unknown


@pytest.mark.slow
def test_sharded_queue_takes_its_share() -> None:
    """With either mapper, a device holds K/n slots, and the collectives do not depend on the number of slots."""
    reports = [
        compile_step(tiny(queue__size=size, queue__sharded=True, parallel__mapper=mapper), jax.devices()[:4])
        for size, mapper in ((64, 'pmap'), (1024, 'shard_map'))
    ]
    assert [report['bytes_by_part']['queue'] for report in reports] == [16 * 44 + 8, 256 * 44 + 8]
    assert reports[0]['collective_bytes'] == reports[1]['collective_bytes']


@pytest.mark.slow
def test_parts_of_a_batch_count_as_often_as_they_run() -> None:
    """Four parts need the same arithmetic as one."""
    whole, parts = (
        compile_step(tiny(train__accumulate_steps=n, queue__size=0), jax.devices()[:1])['flops_per_device']
        for n in (1, 4)
    )
    assert whole == parts


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--topology=v5e:4x4'], 'the following arguments are required: --config'),
        (['--config=configs/cifar10.py', '--nonsense=1'], '--nonsense=1: no such flag'),
        (['--config=configs/cifar10.py', '--config.train.batch_size=511'], 'config.train.batch_size=511: must be a'),
        (['--config=cifar10', '--config.data.name=text'], "config.model.name='resnet18': text holds text; choose one"),
        (['--config=simcse', '--config.data.name=cifar10'], "config.model.name='transformer': cifar10 holds images;"),
        (['--config=configs/nothing.py'], '--config=configs/nothing.py: no such file'),
    ],
)
def test_mistakes(compile_, flags: list[str], message: str) -> None:
    status, out, err = compile_(*flags)
    assert (status, out) == (2, '')
    assert err.startswith('error: ' + message)
    assert len(err.splitlines()) <= 3


def test_libtpu_is_missing(monkeypatch: pytest.MonkeyPatch, compile_) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr('dualcl_jax.system.config.load_config', lambda path: tiny())
    status, _, err = compile_('--config=any', '--topology=v5e:4x4')
    assert status == 2
    assert err == "error: --topology=v5e:4x4: needs libtpu; pip install 'dualcl-jax[tpu]'\n"


@needs_libtpu
def test_unknown_topology(compile_) -> None:
    status, _, err = compile_('--config=configs/cifar10.py', '--topology=v5e:3x5')
    assert status == 2
    assert err.startswith('error: --topology=v5e:3x5: ')
    assert err.splitlines()[1] == 'use one such as v5e:4x4'


@needs_libtpu
@pytest.mark.parametrize('k', [1024, 16_384])
def test_head_on_tpu(k: int) -> None:
    """Exact hard negatives of 65,536 keys for 256 anchors need little memory, and similarities at full precision.

    The program reads the queue as often as the roofline counts: twice in each of two blocks.
    """
    one = NamedSharding(Mesh(np.array(topology_devices('v5e:1x1')), ('batch',)), PartitionSpec())

    def loss(anchors: jax.Array, rows: Anchors, queue: Queue) -> jax.Array:
        contrast = contrast_with_queue(
            anchors,
            anchors,
            rows,
            queue,
            temperature=0.1,
            select=select_threshold,
            k=k,
        )
        return contrast.loss.mean()

    def arguments() -> tuple[jax.Array, Anchors, Queue]:
        embedding, column = jnp.zeros((256, 128)), jnp.zeros(256, jnp.int32)
        rows = Anchors(column, column, column, jax.random.split(jax.random.key(0), 256))
        return embedding, rows, noise_queue(jax.random.key(0), 65_536, 128)

    traced = jax.jit(jax.value_and_grad(loss)).trace(*shaped(jax.eval_shape(arguments), one))
    compiled = traced.lower().compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 20e6
    products = re.findall(r'= (\w+)\[([\d,]+)\]\S* (?:convolution|dot)\((.*)', compiled.as_text())
    assert {shape for _, shape, _ in products} == {'128,65536', '128,128'}  # blocks of similarities, and their gradient
    (blocks,) = trips(compiled.as_text())
    assert cost.count(traced.jaxpr, 'tpu', (65_536, 128)).reads == len(products) * blocks == 4
    for dtype, _, rest in products:
        assert dtype == 'f32'
        assert 'operand_precision={highest,highest}' in rest


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize('mapper', ['pmap', 'shard_map'])
def test_step_on_tpu(mapper: str) -> None:
    """The topology has several hosts."""
    devices = topology_devices('v5e:4x4')
    assert len({device.process_index for device in devices}) > 1
    report = compile_step(tiny(parallel__mapper=mapper, model__dtype='bfloat16'), devices)
    assert report['fits'] is True
    assert report['devices'] == 16
    assert report['roofline_seconds'] >= report['compute_seconds'] > 0


@needs_libtpu
@pytest.mark.slow
def test_a_million_keys_on_tpu() -> None:
    """The global batch is 4,096, with the hardest quarter of a sharded queue of 1,048,576 keys."""
    fields = {'queue__size': 2**20, 'queue__sharded': True, 'train__batch_size': 4096, 'model__dim': 128}
    report = compile_step(tiny(**fields), topology_devices('v5e:4x4'))
    assert report['bytes_by_part']['queue'] == 2**16 * (128 + 3) * 4 + 8
    assert report['queue_and_head_bytes'] < 1.5e9
    assert report['fits'] is True


@needs_libtpu
@pytest.mark.slow
def test_a_replicated_million_keys_on_tpu() -> None:
    """64 anchors a device read the keys twice in each view order, and the roofline is of these reads."""
    fields = {'queue__size': 2**20, 'train__batch_size': 256, 'model__dim': 128}
    report = compile_step(tiny(**fields), topology_devices('v5e:2x2'))
    assert report['queue_reads'] == 4
    assert report['roofline_head_seconds'] >= 4 * 2**20 * 128 * 4 / 819e9


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v5e:4x4', 'v5e:16x16'])
@pytest.mark.parametrize('recipe', ['dualcl_v2', 'moco_v3'])
def test_imagenet_on_tpu(recipe: str, topology: str) -> None:
    """ResNet-50 at global batch 4,096; each case takes about ten minutes."""
    config = load_config(str(REPOSITORY / f'configs/imagenet.py:{recipe}'))
    config.train.batch_size = 4096
    devices = topology_devices(topology)
    report = compile_step(config, devices)
    assert report['fits'] is True
    assert math.prod(map(int, topology[4:].split('x'))) == report['devices']
