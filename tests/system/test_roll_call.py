"""Processes that find each other, and the line each gets where one is missing, late or different."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from dualcl_jax.system.errors import UserError
from dualcl_jax.system.processes import agreement, roll_call
from dualcl_jax.system.processes.roll_call import Place
from tests.support.runs import Trainer, column, contents, finish, free_port, killed_at_last, summary


def call(facts_of, *, present=None, timeout_s=1.0, late=0.0):
    """Roll call of the processes with these facts on one machine: what each is told, None for all is well."""
    address, count = f'127.0.0.1:{free_port()}', len(facts_of)

    def one(index):
        time.sleep(late * index)
        try:
            roll_call.roll_call(Place(address, count, index), facts_of[index], timeout_s)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count) if present is None else present))


def test_all_there_and_alike():
    assert call([{'seed': '0'}] * 3, late=0.1, timeout_s=5) == [None] * 3


def test_a_missing_process_is_named_to_all():
    for said in call([{}] * 4, present=[0, 1, 3]):
        assert 'process 2 of 4 did not start within 1 s' in said
        assert 'parallel.timeout_s' in said


def test_a_late_process_has_a_line_of_its_own():
    first, second = call([{}] * 2, late=1.5, timeout_s=0.5)
    assert 'process 1 of 2 did not start' in first
    assert 'no answer from process 0 in 0.5 s' in second


def test_a_different_process_is_named_to_all():
    first = {'loss.temperature': '0.1', 'version of jax': '1'}
    for said in call([first, first, {'loss.temperature': '0.2'}], timeout_s=20):
        assert said.startswith('process 2 on ')
        different = 'loss.temperature (0.1 on process 0, 0.2 there), version of jax (1 on process 0, None there)'
        assert f'has a different {different}' in said


def test_one_that_comes_after_a_difference_hears_of_it():
    first = {'seed': '0'}
    for said in call([first, {'seed': '1'}, first], late=0.4, timeout_s=20):
        assert said.startswith('process 1 on ')


@pytest.mark.parametrize('host', ['127.0.0.1', '[::1]'])
def test_the_port_is_free_afterwards(host):
    if host == '[::1]' and not socket.has_dualstack_ipv6():
        pytest.skip('no IPv6 here')
    address = f'{host}:{free_port()}'
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda index: roll_call.roll_call(Place(address, 2, index), {}, 5), range(2)))


@pytest.mark.parametrize(
    ('nodes', 'first'),
    [('a7', 'a7'), ('a[7-9,12],b1', 'a7'), ('gpu-[003,010]', 'gpu-003'), ('n1,n2', 'n1'), ('n1.x.org', 'n1.x.org')],
)
def test_first_host_of_slurm(nodes, first):
    assert roll_call.first_host(nodes) == first


def test_slurm(monkeypatch):
    for name, value in {'NTASKS': 4, 'PROCID': 3, 'STEP_NODELIST': 'a[1-4]', 'JOB_ID': 5000}.items():
        monkeypatch.setenv(f'SLURM_{name}', str(value))
    assert roll_call.detect() == Place('a1:62344', 4, 3)
    monkeypatch.setenv('SLURM_NTASKS', '1')
    assert roll_call.detect() is None


def run_two(trainer: Trainer, workdirs: list[Path], fields: list[tuple[str, ...]], status: int):
    join = (f'--coordinator_address=127.0.0.1:{free_port()}', '--num_processes=2', 'parallel.timeout_s=20')
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                killed_at_last(trainer.start(workdir, 'train.steps=2', *each, *join, f'--process_id={index}'))
            )
            for index, (workdir, each) in enumerate(zip(workdirs, fields, strict=True))
        ]
        return [finish(process, status) for process in started]


def test_commands_that_differ(trainer: Trainer, tmp_path: Path) -> None:
    for done in run_two(trainer, [tmp_path / 'run'] * 2, [(), ('seed=1',)], status=2):
        assert done.err.splitlines()[0].startswith('error: process 1 on ')
        assert 'has a different seed (0 on process 0, 1 there)' in done.err.splitlines()[0]
        assert len(done.err.splitlines()) <= 3
    assert not (tmp_path / 'run').exists()


def test_missing_process_as_a_command(trainer: Trainer, tmp_path: Path) -> None:
    flags = (f'--coordinator_address=127.0.0.1:{free_port()}', '--num_processes=2', '--process_id=0')
    done = trainer.run(tmp_path / 'run', *flags, 'parallel.timeout_s=1', status=2)
    assert done.err.splitlines()[0].startswith('error: process 1 of 2 did not start within 1 s')
    assert len(done.err.splitlines()) == 1


class Client:
    """The key-value store of several processes, each its own thread."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, name, value):
        self.values[name] = value

    def blocking_key_value_get(self, name, wait_ms):
        end = time.monotonic() + wait_ms / 1000
        while name not in self.values:
            if time.monotonic() > end:
                raise RuntimeError('DEADLINE_EXCEEDED')
            time.sleep(0.01)
        return self.values[name]


@pytest.fixture
def two_processes(monkeypatch):
    """Runs a function of the index as each of two processes, each a thread; gives what the user is told."""
    from threading import local

    from jax._src import distributed

    here = local()
    monkeypatch.setattr(roll_call.time, 'sleep', lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05)))

    class State:
        num_processes = 2
        client = Client()
        process_id = property(lambda self: here.index)

    monkeypatch.setattr(distributed, 'global_state', State())

    def run(check, present=(0, 1)):
        def one(index):
            here.index = index
            try:
                check(index)
            except UserError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, present))

    return run


@pytest.mark.parametrize('case', ['shared', 'apart', 'missing'])
def test_check_shared(two_processes, tmp_path: Path, case: str) -> None:
    from etils import epath

    def check(index):
        folder = epath.Path(tmp_path / (str(index) if case == 'apart' else 'run'))
        folder.mkdir(exist_ok=True)
        agreement.check_shared(folder, 0.3 if case == 'missing' else 20)

    said = two_processes(check, [0] if case == 'missing' else [0, 1])
    assert not contents(tmp_path)
    if case == 'shared':
        assert said == [None, None]
    elif case == 'apart':
        assert all('process 1 (' in text and 'sees a different folder from process 0' in text for text in said)
    else:
        assert 'process 1 of 2 did not open --workdir' in said[0]


def test_the_same_images_on_every_host(two_processes) -> None:
    assert two_processes(lambda index: agreement.check_same_data('folder', 'a b')) == [None, None]


def test_other_images_on_another_host(two_processes) -> None:
    for text in two_processes(lambda index: agreement.check_same_data('folder', f'a {index}')):
        assert text.startswith('data.name=folder: process 1 (')
        assert 'found different images from process 0' in text


ELASTIC = ('train.steps=12', 'checkpoint.every_steps=4', 'model.norm=sync')


def stop_at(workdir: Path, step: int) -> None:
    """As if the run had died right after this checkpoint."""
    import shutil

    (workdir / 'summary.json').unlink()
    for folder in (workdir / 'checkpoints').glob('000*'):
        if int(folder.name) > step:
            shutil.rmtree(folder)


@pytest.mark.slow
def test_elastic_resume(trainer: Trainer, tmp_path: Path) -> None:
    """8 devices, then 2, then 4, then 2 processes of one: the losses of one uninterrupted run."""
    workdir, whole = tmp_path / 'run', tmp_path / 'whole'
    fields = (*ELASTIC, 'checkpoint.keep=9')
    trainer.run(whole, *fields)
    trainer.run(workdir, *fields, devices=8)
    stop_at(workdir, 4)
    trainer.run(workdir, *fields, devices=2)
    stop_at(workdir, 8)
    trainer.run(workdir, *fields, devices=4)
    np.testing.assert_allclose(column(workdir, 'train/loss'), column(whole, 'train/loss'), rtol=0, atol=1e-5)
    stop_at(workdir, 4)
    trainer.run_processes(workdir, *fields, processes=2, devices=1)
    assert summary(workdir)['resumed_from_step'] == 4
    np.testing.assert_allclose(column(workdir, 'train/loss'), column(whole, 'train/loss'), rtol=0, atol=1e-5)


def test_views_do_not_depend_on_the_devices() -> None:
    """Bit for bit, though each program is compiled for another number of rows."""
    import jax

    from dualcl_jax.method import randomness
    from dualcl_jax.method.views.images import PRESETS, make_views

    images = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3)).astype(np.uint8)

    def views(images, positions):
        rngs = randomness.example_keys(0, randomness.VIEWS, jax.numpy.int32(5), positions)
        bits = jax.vmap(lambda rng: jax.random.bits(rng, (64,)))(rngs)
        return bits, make_views(rngs, images, PRESETS['moco_v3'], 10).swapaxes(0, 1)

    found = []
    for devices in (1, 2, 4):
        positions = np.arange(16, dtype=np.int32)
        parts = [rows.reshape(devices, -1, *rows.shape[1:]) for rows in (images, positions)]
        bits, pixels = jax.pmap(views, devices=jax.devices()[:devices])(*parts)
        found.append((np.asarray(bits).reshape(16, -1), np.asarray(pixels).reshape(16, -1)))
    for bits, pixels in found[1:]:
        np.testing.assert_array_equal(bits, found[0][0])
        np.testing.assert_array_equal(pixels, found[0][1])
