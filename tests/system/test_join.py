"""Joining the processes by JAX, if that is impossible: one line and status 75, within the time given."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from dualcl_jax.system.processes import roll_call
from dualcl_jax.system.processes.places import Place
from tests.support.runs import REPOSITORY, TIMEOUT, free_port

PROGRAM = """
import sys
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.processes import roll_call, start
from dualcl_jax.system.processes.stop_signal import exits_on_signals

@exits_cleanly
def main():
    with exits_on_signals():
        start.start(sys.argv[1], 2, int(sys.argv[2]), {}, float(sys.argv[3]))
    return 0

sys.exit(main())
"""


def process(address: str, index: int, timeout_s: float, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, address, str(index), str(timeout_s)],
        cwd=REPOSITORY,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def versions() -> dict[str, str]:
    from dualcl_jax.system.processes import start

    return {f'version of {name}': start.importlib.metadata.version(name) for name in start.PACKAGES}


@pytest.mark.parametrize('silent', [True, False])
def test_the_service_cannot_be_reached(silent: bool) -> None:
    """Process 0 answers the roll call and is then gone, or something else accepts connections and says nothing."""
    place = Place(f'127.0.0.1:{free_port()}', 2, 0)
    began = time.monotonic()
    joining = process(place.address, 1, 2)
    try:
        roll_call.roll_call(place, versions(), TIMEOUT)
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


def test_the_other_process_is_gone_after_the_roll_call() -> None:
    place = Place(f'127.0.0.1:{free_port()}', 2, 1)
    joining = process(place.address, 0, 2)
    try:
        roll_call.roll_call(place, versions(), TIMEOUT)
        out, err = joining.communicate(timeout=TIMEOUT)
    finally:
        joining.kill()
    assert joining.returncode == 75, (out, err)
    assert err.splitlines()[-1].startswith(f'error: --coordinator_address={place.address}: the processes could not be')
    assert len(err.splitlines()) == 1


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
