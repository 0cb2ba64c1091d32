"""A roll call that checks that all processes of a run are present and alike, before JAX joins them.

JAX aborts with a stack trace when a process is missing. So process 0 first listens at the coordinator's address itself,
receives the identity and the command of every other process, answers all of them, and frees the address for JAX.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from dualcl_jax.system.errors import UserError
from dualcl_jax.system.private_jax import tpu_pod
from dualcl_jax.system.processes.supervisor import bind_host, listen

Facts = Mapping[str, str]

GRACE_S = 2.0
"""How long the roll call continues after it found a process that differs."""


class Place(NamedTuple):
    """The place of one process in a run: HOST:PORT of process 0, the number of processes, the index of this one."""

    address: str
    processes: int
    process: int

    @property
    def host(self) -> str:
        """HOST of the address, an IPv6 address without its brackets."""
        return self.address.rpartition(':')[0].strip('[]')


def detect() -> Place | None:
    """The place according to SLURM or the TPU pod; None for a single process."""
    count = os.environ.get('SLURM_NTASKS', '1')
    if 'SLURM_PROCID' in os.environ and 'SLURM_STEP_NODELIST' in os.environ and count.isdecimal() and int(count) > 1:
        port = 61_440 + int(os.environ.get('SLURM_JOB_ID', '0')) % 4096
        return Place(
            f'{first_host(os.environ["SLURM_STEP_NODELIST"])}:{port}', int(count), int(os.environ['SLURM_PROCID'])
        )
    return _tpu_pod() if os.environ.get('JAX_PLATFORMS', 'tpu').startswith('tpu') and has_tpu() else None


def first_host(nodes: str) -> str:
    """The first node of a SLURM node list: 'a7' of 'a[7-9,12],b1'."""
    found = re.match(r'([^,\[]+)(?:\[(\d+))?([^,\]]*)', nodes)
    if not found:
        raise UserError(f'SLURM_STEP_NODELIST={nodes}: names no host; give --coordinator_address')
    return found[1] + (found[2] or '')


def has_tpu() -> bool:
    """Whether this machine has a TPU, regardless of the installed packages."""
    return any(os.path.exists(path) for path in ('/dev/accel0', '/dev/vfio/0'))


def _tpu_pod() -> Place | None:
    """The place of this TPU VM in its slice, from JAX's own detection."""
    found = tpu_pod()
    return Place(*found) if found else None


def roll_call(place: Place, facts: Facts, timeout_s: float) -> str:
    """Returns when every process is present and has the same facts.

    Returns:
      A secret that process 0 drew and sent to the others.

    Args:
      place: place of this process.
      facts: what must be equal everywhere, such as versions and the fields of the config.
      timeout_s: how long to wait for the others.

    Raises:
      UserError: the address is invalid, or a process is late or differs; every process then names it.
    """
    host, port = place.host, place.address.rpartition(':')[2]
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UserError(f'--coordinator_address={place.address}: must be HOST:PORT')
    hello = {'index': place.process, 'host': socket.gethostname(), 'facts': dict(facts), 'count': place.processes}
    end = time.monotonic() + timeout_s
    if place.process == 0:
        return _answer_all(place, hello, int(port), end, timeout_s)
    return _ask(place, hello, (host, int(port)), end, timeout_s)


def _answer_all(place: Place, mine: dict, port: int, end: float, timeout_s: float) -> str:
    """Process 0: receives a message from every other process, then sends all of them the same answer."""
    heard: dict[int, dict] = {}
    problem, token = '', secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(listen(port, bind_host(place.host), backlog=1024))
        except OSError as error:
            raise UserError(
                f'--coordinator_address={place.address}: cannot listen there ({error.strerror}); use a free port'
            ) from error
        connections = []
        while len(heard) < place.processes - 1:
            listener.settimeout(max(end - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                if problem:
                    break
                missing = sorted(set(range(1, place.processes)) - set(heard))
                names = ', '.join(map(str, missing))
                problem = (
                    f'process {names} of {place.processes} did not start within {timeout_s:g} s: '
                    'check its output, or raise parallel.timeout_s'
                )
                break
            connection.settimeout(5)
            hello = _receive(connection, ('index', 'host', 'facts', 'count'))
            if hello is None:  # a connection from something else
                continue
            connections.append(connection)
            if hello['index'] in heard:
                problem = f'--process_id={hello["index"]}: given to two processes; number them from 0'
            heard[hello['index']] = hello
            problem = problem or _difference(mine, hello)
            if problem:  # processes that are about to connect must receive it too
                end = min(end, time.monotonic() + GRACE_S)
        listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):  # it gave up and printed its own error
                connection.sendall(json.dumps({'problem': problem, 'token': token}).encode() + b'\n')
                connection.recv(1)  # wait until it closes, so that the port is free at once
    if problem:
        raise UserError(problem)
    return token


def _ask(place: Place, mine: dict, address: tuple[str, int], end: float, timeout_s: float) -> str:
    """The other processes: connect to process 0 until it answers."""
    while True:
        reason = 'it ended, or is no longer waiting'
        try:
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(json.dumps(mine).encode() + b'\n')
                connection.settimeout(max(end - time.monotonic(), 0.001) + 5)
                verdict = _receive(connection, ('problem', 'token'))
            if verdict is not None:
                break
        except OSError as error:
            reason = str(error)
        if time.monotonic() > end:
            raise UserError(
                f'--coordinator_address={place.address}: no answer from process 0 in {timeout_s:g} s ({reason}); '
                'start process 0 there, or correct the address'
            )
        time.sleep(0.2)
    if verdict['problem']:
        raise UserError(verdict['problem'])
    return verdict['token']


def _receive(connection: socket.socket, names: tuple[str, ...]) -> dict | None:
    """Receives one line of JSON, an object with these names; None for anything else."""
    try:
        with connection.makefile('rb') as stream:
            message = json.loads(stream.readline())
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) and set(names) <= message.keys() else None


def _difference(first: dict, other: dict) -> str:
    """How a process differs from process 0; empty if they agree."""
    who = f'process {other["index"]} on {other["host"]}'
    if other['count'] != first['count']:
        return f'--num_processes={other["count"]} on {who}, but {first["count"]} on process 0'
    before, now = first['facts'], other['facts']
    fields = [
        f'{name} ({before.get(name)} on process 0, {now.get(name)} there)'
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if not fields:
        return ''
    return f'{who} has a different {", ".join(fields[:5])}\ngive every process the same command and versions'
