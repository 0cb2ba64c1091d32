"""Joining the processes by JAX, if that is impossible: one line and status 75, within the time given."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from dualcl_jax.system.errors import UserError, ending
from dualcl_jax.system.processes import rendezvous, start
from dualcl_jax.system.processes.places import Place
from dualcl_jax.system.processes.stop_signal import SIGNALLED
from tests.support.runs import QUICK, REPOSITORY, TIMEOUT, Trainer, finish, free_port

PROGRAM = """
import sys
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.processes import rendezvous, start
from dualcl_jax.system.processes.stop_signal import exits_on_signals

@exits_cleanly
def main():
    with exits_on_signals():
        start.start(sys.argv[1], 2, int(sys.argv[2]), {}, float(sys.argv[3]))
    return 0

sys.exit(main())
"""


def process(
    address: str, index: int, *arguments: float | str, program: str = PROGRAM, **variables: str
) -> subprocess.Popen[str]:
    """Starts a process of a program that joins others, with further arguments and environment variables."""
    return subprocess.Popen(
        [sys.executable, '-c', program, address, str(index), *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def versions() -> dict[str, str]:
    return {f'version of {name}': start.importlib.metadata.version(name) for name in start.PACKAGES}


@pytest.mark.parametrize('silent', [True, False])
def test_the_service_cannot_be_reached(silent: bool) -> None:
    """Process 0 answers the rendezvous and is then gone, or something else accepts connections and says nothing."""
    place = Place(f'127.0.0.1:{free_port()}', 2, 0)
    began = time.monotonic()
    joining = process(place.address, 1, 2)
    try:
        rendezvous.meet(place, versions(), TIMEOUT)
        with socket.create_server((place.host, place.port)) if silent else contextlib.nullcontext():
            out, err = joining.communicate(timeout=TIMEOUT)
    finally:
        joining.kill()
    assert joining.returncode == 75, (out, err)
    assert err == (
        f'error: --coordinator_address={place.address}: the processes could not be joined within 2 s; '
        'run the same command again\n'
    )
    assert time.monotonic() - began < TIMEOUT


def test_the_other_process_is_gone_after_the_rendezvous() -> None:
    place = Place(f'127.0.0.1:{free_port()}', 2, 1)
    joining = process(place.address, 0, 2)
    try:
        rendezvous.meet(place, versions(), TIMEOUT)
        out, err = joining.communicate(timeout=TIMEOUT)
    finally:
        joining.kill()
    assert joining.returncode == 75, (out, err)
    assert err.splitlines()[-1].startswith(f'error: --coordinator_address={place.address}: the processes could not be')
    assert len(err.splitlines()) == 1


DEVICES = """
import os, sys, time
import jax
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.processes import start

address, index, case = sys.argv[1], int(sys.argv[2]), sys.argv[3]
initialise = jax.devices

def devices():
    if index == 0:
        return initialise()  # JAX waits here for the devices of the other process
    if case == 'hang':
        time.sleep(1000)
    if case == 'dies':
        os._exit(9)
    raise RuntimeError('INTERNAL: the driver does not answer')

@exits_cleanly
def main():
    jax.devices = devices
    start.DEVICES_S = 5.0 if index else 1000.0
    start.start(address, 2, index, {}, 100.0)
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize(
    ('case', 'status', 'said'),
    [
        ('fails', 75, 'JAX cannot use the devices of this machine now (INTERNAL: the driver does not answer)'),
        pytest.param('hang', 75, 'the devices of this process did not start within 5 s', marks=pytest.mark.slow),
        pytest.param('dies', 9, '', marks=pytest.mark.slow),
    ],
)
def test_the_devices_of_one_process_do_not_start(case: str, status: int, said: str) -> None:
    """The other one learns of it, although it waits in JAX, which would abort it after minutes."""
    began = time.monotonic()
    address = f'127.0.0.1:{free_port()}'
    joined = [process(address, index, case, program=DEVICES) for index in range(2)]
    try:
        ended = [one.communicate(timeout=TIMEOUT) for one in joined]
    finally:
        for one in joined:
            one.kill()
    assert [one.returncode for one in joined] == [75, status], ended
    assert ended[1][1] == (f'error: {said}; run the same command again\n' if said else '')
    cause = f'stopped: {said}; run the same command again' if said else 'died'
    assert ended[0][1].splitlines() == [
        f'error: process 1 on {socket.gethostname()} {cause}',
        'run the same command in all processes again: they resume from the last checkpoint',
    ]
    assert time.monotonic() - began < 90


def test_a_mistake_of_one_process_in_a_dry_run(trainer: Trainer, tmp_path: Path) -> None:
    """The others end with it; they wait neither for it, nor for JAX, which would abort them."""
    os.symlink(trainer.data, tmp_path / 'here.npz')
    (tmp_path / 'elsewhere').mkdir()
    began = time.monotonic()
    fields, folders = ('data.path=here.npz', '--dry_run'), [{'folder': tmp_path}, {'folder': tmp_path / 'elsewhere'}]
    with trainer.processes(tmp_path / 'run', *fields, each=folders, config=str(REPOSITORY / QUICK)) as started:
        first, second = (finish(process, 2) for process in started)
    assert 'here.npz' in second.err
    assert first.err.startswith(f'error: process 1 on {socket.gethostname()} stopped: data.path=here.npz')
    assert time.monotonic() - began < 90


@pytest.mark.parametrize(
    ('problem', 'status'),
    [
        (RuntimeError('ABORTED: The TPU is already in use by process with pid 7.'), 75),
        (RuntimeError('UNAVAILABLE: TPU initialization failed: open(/dev/vfio/0): Device or resource busy'), 75),
        (RuntimeError('INTERNAL: CUDA_ERROR_SYSTEM_NOT_READY: system not yet initialized'), 75),
        (RuntimeError("Unable to initialize backend 'cuda': FAILED_PRECONDITION: No visible GPU devices."), 2),
        (RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE: No TPU Platform available."), 2),
        (RuntimeError("Backend 'foo' is not in the list of known backends: ['cpu']"), 2),
        (AssertionError(), 2),
    ],
)
def test_the_devices_of_a_single_process(monkeypatch: pytest.MonkeyPatch, problem: Exception, status: int) -> None:
    def devices() -> None:
        raise problem

    monkeypatch.setattr(jax, 'devices', devices)
    with pytest.raises(UserError, match='JAX cannot use') as raised:
        start._start_devices()
    found = ending(raised.value)
    assert found is not None
    assert found[0] == status


EXAMINING = """
import sys, time
from configs import default
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.processes import start
from dualcl_jax.system.processes.heartbeat import Heartbeat, ending_together
from dualcl_jax.system.processes.stop_signal import StopSignal, exits_on_signals

@exits_cleanly
def main():
    with exits_on_signals():
        start.start(sys.argv[1], 2, int(sys.argv[2]), {}, 100.0)
        with ending_together(), StopSignal(several_processes=True) as stop, Heartbeat(default.get_config()):
            print('ready', flush=True)
            if sys.argv[2] == sys.argv[3]:
                stop.after(1)
            time.sleep(1000)
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize(
    ('number', 'status', 'ahead'),
    [
        (signal.SIGTERM, 75, None),
        (signal.SIGTERM, 75, 0),
        pytest.param(signal.SIGTERM, 75, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, None, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 75, None, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, None, marks=pytest.mark.slow),
    ],
)
def test_a_signal_before_the_first_step(number: int, status: int, ahead: int | None) -> None:
    """To one of two processes that examine their data, or of which one has taken its first step: both end at once."""
    address = f'127.0.0.1:{free_port()}'
    started = [process(address, index, str(ahead), program=EXAMINING) for index in range(2)]
    try:
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == 'ready\n'
        began = time.monotonic()
        started[1].send_signal(number)
        ended = [one.communicate(timeout=TIMEOUT) for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [75, status], ended
    assert ended[0][1].splitlines()[0] == f'error: process 1 on {socket.gethostname()} stopped: {SIGNALLED}'
    assert 'run the same command' in ended[1][1]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_while_it_waits_for_the_others(number: int) -> None:
    """Preempted before it has started: nothing is lost, and the same command continues."""
    place = Place(f'127.0.0.1:{free_port()}', 2, 0)
    with socket.create_server((place.host, place.port)) as process_0:
        process_0.settimeout(TIMEOUT)
        waiting = process(place.address, 1, TIMEOUT)
        try:
            with process_0.accept()[0] as connection:
                connection.recv(1)
                waiting.send_signal(number)
                out, err = waiting.communicate(timeout=TIMEOUT)
        finally:
            waiting.kill()
    assert waiting.returncode == 75, (out, err)
    assert err == 'stopped before the first step was completed; run the same command to continue\n'
