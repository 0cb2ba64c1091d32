"""The same run on one device, on four, and in two processes with two each has equal losses and equal states."""

import functools
import socket
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh

from dualcl_jax import main
from dualcl_jax.data.images.source import image_source
from dualcl_jax.data.loader import Batch, make_batch
from dualcl_jax.system.devices import MAPPERS, device_mesh, process_rows, replicate, to_host
from dualcl_jax.training.in_flight import InFlight
from tests.support.image_folders import make_old, named, write_images
from tests.support.runs import (
    QUICK,
    Finished,
    Trainer,
    checkpoints,
    column,
    finish,
    records,
    summary,
)

STEPS = 20
REFERENCE = {'all': 'all-pmap-1', 'top_k': 'top_k-pmap-1'}
MORE = (
    'all-shard_map-4', 'all-pmap-2x2', 'top_k-shard_map-2x2', 'all-shard_map-8-sharded', 'top_k-pmap-2x2-sharded',
)  # fmt: skip
"""Layouts of the slow tests. The others have every mapper and number of processes once."""
LAYOUTS = [
    'all-pmap-4',
    'all-shard_map-2x2',
    *(pytest.param(layout, marks=pytest.mark.slow) for layout in MORE),
]


@pytest.fixture(scope='module')
def workdir(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The workdir of a layout, trained when it is first needed.

    The name of a layout has the selector, the mapper, the devices or processes × devices, and the layout of the queue.
    """
    folder = tmp_path_factory.mktemp('parallel')

    @functools.cache
    def run(layout: str) -> Path:
        selector, mapper, devices, *sharded = layout.split('-')
        fields = [f'negatives.selector={selector}', f'parallel.mapper={mapper}', f'queue.sharded={bool(sharded)}']
        if devices == '2x2':
            fields.append('checkpoint.every_seconds=0.05')
            trainer.run_processes(folder / layout, *fields, processes=2, devices=2)
        else:
            trainer.run(folder / layout, *fields, devices=int(devices))
        return folder / layout

    return run


@pytest.mark.parametrize('layout', LAYOUTS)
def test_equal_losses(workdir: Callable[[str], Path], layout: str) -> None:
    """Rounding differs by 1e-7 in a step. The differences grow to 1.4e-6 of the loss in 20 steps (8 devices, a sharded
    queue), and may change the selection of the hardest negatives in later steps.
    """
    selector = layout.split('-')[0]
    steps = {'all': STEPS, 'top_k': 5}[selector]
    reference, run = workdir(REFERENCE[selector]), workdir(layout)
    assert summary(run)['step'] == len(records(run)) == STEPS
    expected, losses = column(reference, 'train/loss'), column(run, 'train/loss')
    assert expected[0] == 0  # no negatives yet
    assert (expected[1:] > 1).all()
    np.testing.assert_allclose(losses[:steps], expected[:steps], rtol=3e-6)


@pytest.mark.slow  # tests/step/test_step_options.py compares single steps
@pytest.mark.parametrize('devices', [1, 2])
def test_mappers_give_the_same_bits(trainer: Trainer, tmp_path: Path, devices: int) -> None:
    """So parallel.mapper='auto' may stand for another one when a run resumes."""
    for mapper in MAPPERS:
        trainer.run(tmp_path / mapper, f'parallel.mapper={mapper}', 'train.steps=4', devices=devices)
    assert len({summary(tmp_path / mapper)['state_sha256'] for mapper in MAPPERS}) == 1


@pytest.mark.parametrize('layout', LAYOUTS)
def test_equal_metrics_at_first(workdir: Callable[[str], Path], layout: str) -> None:
    """Every metric describes the global batch, so none depends on the number of devices."""
    reference, run = records(workdir(REFERENCE[layout.split('-')[0]])), records(workdir(layout))
    for ours, theirs in zip(run[:5], reference[:5], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)), name


def test_two_processes_save_by_seconds(workdir: Callable[[str], Path]) -> None:
    """They save more than the last step, although no number of steps asks for it."""
    run = workdir('all-shard_map-2x2')
    assert summary(run)['config']['checkpoint']['every_steps'] == 0
    assert summary(run)['save_wait_seconds'] > 0
    saved = checkpoints(run)
    assert len(saved) == 2
    assert saved[-1] == STEPS


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
@pytest.mark.parametrize('layout', ['all-pmap-4', 'all-shard_map-2x2'])
def test_equal_states(workdir: Callable[[str], Path], layout: str) -> None:
    def state(run: Path, like: dict | None = None) -> dict:
        path = run / 'checkpoints' / f'{STEPS:08d}' / 'state'
        return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(path, like))

    expected = state(workdir(REFERENCE['all']))
    found = state(workdir(layout), like=expected)
    assert expected['step'] == STEPS
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))


def test_processes_with_different_numbers_of_devices(trainer: Trainer, tmp_path: Path) -> None:
    with trainer.processes(tmp_path / 'run', each=({'devices': 1}, {'devices': 2})) as started:
        ended = [finish(process, 2) for process in started]
    host = socket.gethostname()
    said = f'have different numbers of devices: 1 in process 0 on {host}, 2 in process 1 on {host}\n'
    assert all(said in done.err and len(done.err.splitlines()) == 2 for done in ended), ended
    assert not (tmp_path / 'run').exists()


def test_rows_of_processes_are_the_global_batch() -> None:
    """Each process loads the rows of its own devices; together, in the order of the mesh, they are the whole batch."""

    class Device:
        def __init__(self, process_index: int) -> None:
            self.process_index = process_index

    rows = {}
    for process in range(3):
        devices = [Device(index // 2 - process) for index in range(6)]  # this process is always number 0 in this test
        rows[process] = process_rows(Mesh(np.array(devices), ('batch',)), 24)
    assert [list(part) for part in rows.values()] == [list(range(start, start + 8)) for start in (0, 8, 16)]


@pytest.mark.parametrize('mapper', MAPPERS)
def test_batch_and_state_on_devices(mapper: str) -> None:
    """Device i gets rows i·b to (i + 1)·b with their positions, and its results are read back unchanged."""
    mesh = device_mesh()
    assert mesh.devices.size == 4
    source = image_source('toy', np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1), np.zeros(64, np.int32))
    batch = make_batch(source, process_rows(mesh, 16), seed=0, step=3, batch_size=16)
    np.testing.assert_array_equal(batch.positions, np.arange(16))

    def step(state: dict, batch: Batch) -> tuple[dict, dict]:
        first = jax.lax.axis_index('batch') * 4
        fits = (batch.positions == first + np.arange(4, dtype=np.int32)).all()
        ids = jax.lax.all_gather(batch.ids, 'batch', tiled=True)
        return {'seen': ids, 'kept': state['kept']}, {'fits': jax.lax.pmin(fits.astype(np.int32), 'batch')}

    state = {'seen': np.zeros(16, np.int32), 'kept': np.float32([[1.5, -2.0]])}
    devices = MAPPERS[mapper](mesh)
    mapped, metrics = devices.map(step)(devices.put_state(replicate(state, mesh)), devices.put_batch(batch))
    after = devices.global_state(mapped)
    assert to_host(metrics)['fits'].item() == 1
    np.testing.assert_array_equal(to_host(after)['seen'], batch.ids)
    np.testing.assert_array_equal(to_host(after)['kept'], state['kept'])
    assert after['kept'].is_fully_replicated
    assert after['kept'].sharding.device_set == set(mesh.devices.flat)


@pytest.mark.slow
@pytest.mark.parametrize('mapper', MAPPERS)
def test_resnet18(trainer: Trainer, tmp_path: Path, mapper: str) -> None:
    """In a real network, rounding changes the sign of some activations, so runs differ after the first update."""
    fields = ('model.name=resnet18', 'model.width=8', 'negatives.selector=all', 'train.steps=2')
    trainer.run(tmp_path / 'one', *fields)
    trainer.run_processes(tmp_path / 'four', *fields, f'parallel.mapper={mapper}', processes=2, devices=2)
    for name, tolerance in {'train/loss': 1e-6, 'train/gradient_norm': 1e-2}.items():
        ours, expected = column(tmp_path / 'four', name), column(tmp_path / 'one', name)
        assert expected[1] > 1
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=1e-5)


@pytest.mark.slow
def test_processes_on_a_folder_measure_what_one_does(trainer: Trainer, tmp_path: Path) -> None:
    """Each of two processes, with caches of their own, decodes a part of the images for the monitor."""
    for number, split in enumerate(('train', 'test')):
        write_images(tmp_path / 'images' / split, named('ab', 20), first=100 * number)
    make_old(tmp_path / 'images')
    fields = ['data.name=folder', f'data.path={tmp_path}/images', 'data.memory_bytes=1', 'parallel.workers=1']
    fields += ['train.steps=2', 'monitor.every_epochs=1', 'negatives.selector=all']
    trainer.run(tmp_path / 'one', *fields, devices=2)
    own_caches = [{'XDG_CACHE_HOME': f'{tmp_path}/cache{index}'} for index in range(2)]
    with trainer.processes(tmp_path / 'two', *fields, each=own_caches) as started:
        for process in started:
            finish(process, 0)
    assert (summary(tmp_path / 'one')['knn_top1'], summary(tmp_path / 'one')['knn_top1_raw_pixels']) == (
        pytest.approx(summary(tmp_path / 'two')['knn_top1'], abs=0.03),
        summary(tmp_path / 'two')['knn_top1_raw_pixels'],
    )
    np.testing.assert_allclose(
        column(tmp_path / 'two', 'train/loss'), column(tmp_path / 'one', 'train/loss'), atol=1e-5
    )
    caches = [next((tmp_path / f'cache{index}').rglob('*.npz')).read_bytes() for index in range(2)]
    assert caches[0] == caches[1]
    assert len(list((tmp_path / 'two' / 'data_cache').iterdir())) == 1


@pytest.mark.parametrize('mapper', ['pmap', pytest.param('shard_map', marks=pytest.mark.slow)])
def test_the_devices_hold_one_state(
    in_process: Callable[..., Finished], trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapper: str
) -> None:
    """The global state that a run starts from is freed when the mapper has its own."""
    given, alive = list[weakref.ref[jax.Array]](), list[int]()
    put, add = MAPPERS[mapper].put_state, InFlight.add

    def put_state(self: Any, state: Any) -> Any:
        given.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(state))
        return put(self, state)

    def add_step(self: InFlight, *arguments: Any) -> None:
        alive.append(sum(leaf() is not None for leaf in given))
        add(self, *arguments)

    monkeypatch.setattr(MAPPERS[mapper], 'put_state', put_state)
    monkeypatch.setattr(InFlight, 'add', add_step)
    fields = (f'data.path={trainer.data}', f'parallel.mapper={mapper}', 'train.steps=3')
    flags = (f'--config={QUICK}', f'--workdir={tmp_path / "run"}', *(f'--config.{field}' for field in fields))
    assert in_process(main.main, *flags).status == 0
    assert given
    assert alive == [0, 0, 0]
