"""A rendezvous that checks that all processes of a run are present and alike, before JAX joins them.

JAX aborts with a stack trace when a process is missing. So process 0 first listens at the coordinator's address itself,
receives the identity and the command of every other process, answers all of them, and frees the address for JAX.

If a process is missing or late, or process 0 does not answer, the remedy is to run the same command again: the process
may be on a machine that is still starting. A process that differs indicates a mistake.
"""

import contextlib
import errno
import json
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

from dualcl_jax.system.errors import RestartError, UserError, listed, reason_of
from dualcl_jax.system.processes.places import Place, scheduled
from dualcl_jax.system.processes.supervisor import allow_many_sockets, bind_host, listen

Facts = Mapping[str, str]
Message = dict[str, Any]
"""A message of a process, as JSON: the identity and the facts of a process, or the answer of process 0."""

GRACE_S = 2.0
"""How long the rendezvous continues after it has found a process that differs."""
MOST_BYTES = 2**24
"""The largest length of a message; a longer one is from something else."""


def meet(place: Place, facts: Facts, timeout_s: float) -> str:
    """Returns when every process is present and has the same facts.

    Returns:
      A secret that process 0 drew and sent to the others.

    Args:
      place: place of this process.
      facts: what must be equal everywhere, such as versions and the fields of the config.
      timeout_s: how long to wait for the others.

    Raises:
      UserError: a process differs, or the address cannot be used; every process then names it.
      RestartError: a process is missing or late; every process then names it.
    """
    hello = {'index': place.process, 'host': socket.gethostname(), 'facts': dict(facts), 'count': place.processes}
    end = time.monotonic() + timeout_s
    if place.process == 0:
        return _answer_all(place, hello, end, timeout_s)
    return _ask(place, hello, end, timeout_s)


def _answer_all(place: Place, mine: Message, end: float, timeout_s: float) -> str:
    """Process 0: receives a message from every other process, then sends all of them the same answer."""
    heard: dict[int, socket.socket] = {}
    callers: list[socket.socket] = []
    problem, token, restart = '', secrets.token_hex(16), False
    allow_many_sockets()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(place, end))
        while not _all_there(heard, place.processes - 1):
            listener.settimeout(max(end - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(listener.accept()[0])
            except TimeoutError:
                if not problem:
                    problem, restart = _missing(place, set(heard), timeout_s), True
                break
            connection.settimeout(5)
            hello = _receive(connection, ('index', 'host', 'facts', 'count'))
            if hello is None or not isinstance(hello['index'], int):  # a connection from something else
                continue
            index = hello['index']
            if index in heard and not _closed(heard[index]):  # if closed, it has ended and was started again
                problem = f'--process_id={index}: given to two processes; number them from 0'
            heard[index] = connection
            callers.append(connection)
            problem = problem or _difference(mine, hello)
            if problem:  # processes that are about to connect must receive it too
                end = min(end, time.monotonic() + GRACE_S)
        listener.close()
        for connection in callers:
            _answer(connection, problem, restart, token)
    if problem:
        raise (RestartError if restart else UserError)(problem)
    return token


def _listen(place: Place, end: float) -> socket.socket:
    """Listens at the address of process 0.

    While its port is in use, for instance by the last run until that has ended, it waits.

    Raises:
      UserError: the port cannot be used, or stays in use; RestartError if a scheduler started the process.
    """
    said = False
    while True:
        try:
            return listen(place.port, bind_host(place.host), backlog=4096)
        except OSError as error:
            kind = RestartError if scheduled() and error.errno == errno.EADDRINUSE else UserError
            if error.errno != errno.EADDRINUSE or time.monotonic() > end:
                raise kind(f'{place.problem}: cannot listen on it ({reason_of(error)}); use a free port') from error
        if not said:
            print(f'note: {place.problem}: the port is in use; waiting until it is free', flush=True)
        said = True
        time.sleep(0.2)


def _missing(place: Place, heard: set[int], timeout_s: float) -> str:
    missing = sorted(set(range(1, place.processes)) - heard)
    names = listed(map(str, missing[:8]), len(missing))
    return (
        f'process {names} of {place.processes} did not start within {timeout_s:g} s: '
        'check its output, or raise parallel.timeout_s'
    )


def _all_there(heard: dict[int, socket.socket], count: int) -> bool:
    """Whether `count` processes are waiting for their answers. Those that have ended since are dropped."""
    if len(heard) == count:
        for index in [index for index, connection in heard.items() if _closed(connection)]:
            del heard[index]
    return len(heard) == count


def _closed(connection: socket.socket) -> bool:
    """Whether a process that waits for its answer has ended."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(5)


def _answer(connection: socket.socket, problem: str, restart: bool, token: str) -> None:
    with contextlib.suppress(OSError):  # it gave up and printed its own error
        connection.sendall(json.dumps({'problem': problem, 'restart': restart, 'token': token}).encode() + b'\n')
        connection.recv(1)  # wait until it closes, so that the port is free at once


def _ask(place: Place, mine: Message, end: float, timeout_s: float) -> str:
    """Any other process: connects to process 0 until it answers."""
    while True:
        reason, unknown = 'it ended, or is no longer waiting', False
        try:
            with socket.create_connection((place.host, place.port), timeout=5) as connection:
                connection.sendall(json.dumps(mine).encode() + b'\n')
                connection.settimeout(max(end - time.monotonic(), 0.001) + 5)
                verdict = _receive(connection, ('problem', 'restart', 'token'))
            if verdict is not None:
                break
        except OSError as error:
            reason = reason_of(error)
            unknown = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
        if time.monotonic() > end:
            if unknown and not scheduled():
                raise UserError(f'{place.problem}: {reason}; correct the name of the host')
            raise RestartError(
                f'{place.problem}: no answer from process 0 in {timeout_s:g} s ({reason}); '
                'start process 0 there, or correct the address'
            )
        time.sleep(0.2)
    if verdict['problem']:
        raise (RestartError if verdict['restart'] else UserError)(verdict['problem'])
    return verdict['token']


def _receive(connection: socket.socket, names: tuple[str, ...]) -> Message | None:
    """Receives one line of JSON, an object with these names; None for anything else."""
    try:
        with connection.makefile('rb') as stream:
            message = json.loads(stream.readline(MOST_BYTES))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) and set(names) <= message.keys() else None


def _difference(first: Message, other: Message) -> str:
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
