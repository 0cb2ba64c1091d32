"""The supervisor: a small process beside process 0 of a run, which outlives each process of the run.

It runs the coordination service, which JAX would run in process 0: when that service dies with process 0, JAX aborts
all other processes with a stack trace. The supervisor also listens to every process of the run, at a port that it
prints, and informs all of them as soon as one has died, hangs or has given up. It ends when the last process has ended,
or `LEAVE_S` after it has informed them: the connection of a process that is lost may stay open for a long time.

Every process sends lines of JSON: first {"token", "index", "host", "silence_s", "stall_s"}, then {"step", "phase"}
every `PERIOD`, {"silence_s", "stall_s"} to change these limits, and finally {"ended": reason, empty on success;
"restart": whether running the same command again cures it}. It receives a line every `PERIOD`: {"lost": which and how,
or empty; "restart"}. The token is a secret that the processes share from their rendezvous: connections without it are
closed.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import ipaddress
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

from dualcl_jax.system.private_jax import run_coordination_service

PERIOD = 1.0
"""Seconds between heartbeats."""
LEAVE_S = 10.0
"""Seconds that processes have to end once one is lost; then the coordinator's port is free for the next start."""
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that stop a run; processes beside it must outlive them."""


@dataclasses.dataclass
class Member:
    """The last known state of a process: `heard` is the time of its last message, `behind` the start of its lag."""

    index: int
    host: str
    silence_s: float
    stall_s: float
    heard: float
    behind: float | None = None
    step: int = 0
    phase: str = 'start'
    ended: str | None = None
    restart: bool = True
    gone: bool = False

    def __str__(self) -> str:
        return f'process {self.index} on {self.host}'


class Verdict(NamedTuple):
    """Which process is lost, and how; empty if all is well. `restart`: whether running the same command again helps."""

    lost: str = ''
    restart: bool = True


def verdict(members: list[Member], now: float) -> Verdict:
    """Determines whether a process is lost, and records which of them lag behind."""
    for member in members:
        if member.ended:
            return Verdict(f'{member} stopped: {member.ended}', member.restart)
    for member in members:
        if member.ended is not None:
            continue
        if member.gone:
            return Verdict(f'{member} died')
        if now - member.heard > member.silence_s:
            return Verdict(f'{member} has sent no heartbeat for {member.silence_s:g} s')
    working = [member for member in members if member.ended is None]
    first = max((member.step for member in working), default=0)
    for member in working:
        if member.step == first:
            member.behind = None
        elif member.behind is None:
            member.behind = now
        elif now - member.behind > member.stall_s:
            stalled = f'{member} has not got past step {member.step} for {member.stall_s:g} s'
            return Verdict(f'{stalled} (phase {member.phase}); others have')
    return Verdict()


class Supervisor:
    """Receives the messages of all processes and answers them.

    Args:
      token: the secret of the run's processes.
      count: the number of these processes.
    """

    def __init__(self, token: str, count: int) -> None:
        self.members: dict[int, Member] = {}
        self._token, self._count = token, count
        self._verdict = Verdict()
        self._decided = asyncio.Event()
        self._open = 0
        self.last_closed = asyncio.Event()

    async def judge(self) -> None:
        """Checks the processes repeatedly until one is lost, then informs all of them at once."""
        while not self._verdict.lost:
            await asyncio.sleep(PERIOD / 4)
            self._verdict = verdict(list(self.members.values()), time.monotonic())
        self._decided.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one process, from its first message until it disconnects."""
        member = None
        try:
            hello = json.loads(await reader.readline())
            if hmac.compare_digest(str(hello.pop('token')).encode(), self._token.encode()):
                member = self.members[hello['index']] = Member(**hello, heard=time.monotonic())
                await self._converse(member, reader, writer)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # a reset, or a foreign connection
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _converse(self, member: Member, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            answering = asyncio.create_task(self._answer(writer))
            while line := await reader.readline():
                self._receive(member, json.loads(line))
            answering.cancel()
        finally:
            member.gone = True
            self._open -= 1
            if not self._open and len(self.members) == self._count:  # else one that is yet to connect is informed
                self.last_closed.set()

    def _receive(self, member: Member, message: dict[str, Any]) -> None:
        member.heard = time.monotonic()
        if message.get('step', 0) > member.step:
            member.step, member.behind = message['step'], None
        member.phase = message.get('phase', member.phase)
        member.silence_s = message.get('silence_s', member.silence_s)
        member.stall_s = message.get('stall_s', member.stall_s)
        member.restart = message.get('restart', member.restart)
        member.ended = message.get('ended', member.ended)

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(json.dumps(self._verdict._asdict()).encode() + b'\n')
            await writer.drain()
            if self._verdict.lost:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._decided.wait(), PERIOD)


def start(token: str, host: str, *arguments: Any, **options: Any) -> 'Supervised':
    """Starts the supervisor in place of jaxlib's coordination service.

    Args:
      token: the secret of the run's processes.
      host: where to listen, see `bind_host`.
      arguments, options: arguments of the coordination service.
    """
    process = subprocess.Popen(
        [sys.executable, '-m', 'dualcl_jax.system.processes.supervisor'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C must not reach it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps([token, host, arguments, options]))  # other users can read a command line
        process.stdin.close()
    process.stdin = None  # or communicate() would flush it
    port = process.stdout.readline()
    if not port:
        _, words = process.communicate()
        raise RuntimeError(words.strip().splitlines()[-1])
    return Supervised(int(port), process)


@dataclasses.dataclass
class Supervised:
    """The coordination service as process 0 sees it, with the port of the supervisor."""

    port: int
    process: subprocess.Popen[str]

    def shutdown(self) -> None:
        """Nothing to do: the supervisor ends by itself."""


def bind_host(host: str) -> str:
    """The address of this machine at which other processes reach it as `host`.

    It is empty if only listening at all addresses is safe. Otherwise it is the address to which a name resolves
    here, unless it resolves to several, or to one that other machines cannot reach: many systems give their own name to
    the loopback interface. An address that does not belong to this machine may be that of a router in front of it.
    JAX's own variable JAX_COORDINATOR_BIND_ADDRESS=ADDRESS:PORT sets another address.
    """
    if 'JAX_COORDINATOR_BIND_ADDRESS' in os.environ:
        chosen = os.environ['JAX_COORDINATOR_BIND_ADDRESS'].rpartition(':')[0].strip('[]')
        return '' if chosen in ('0.0.0.0', '::') else chosen
    if host == 'localhost':
        return '127.0.0.1'
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        if found != {host}:
            found = {address for address in found if not ipaddress.ip_address(address).is_loopback}
        (address,) = found
        socket.create_server((address, 0), family=_family(address)).close()
    except (ValueError, OSError):  # none or several, or not of this machine
        return ''
    return address


def allow_many_sockets() -> None:
    """Raises the limit of open files to what the system allows: a run of 1,024 processes needs more than 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ':' in host else socket.AF_INET


def listen(port: int, host: str = '', backlog: int | None = None) -> socket.socket:
    """A socket that listens at a port, 0 for any free one.

    Without a host it listens at all addresses, IPv4 and, if available, IPv6.
    """
    if host:
        return socket.create_server((host, port), family=_family(host), backlog=backlog)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=backlog)


async def supervise(token: str, host: str, arguments: list[Any], options: dict[str, Any]) -> None:
    """Runs the coordination service and the supervisor until the last process has ended, or should have."""
    if host:
        port = str(arguments[0]).rpartition(':')[2]
        arguments[0] = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
    service = run_coordination_service(arguments, options)
    supervisor = Supervisor(token, arguments[1])
    listener = listen(0, host, backlog=4096)
    await asyncio.start_server(supervisor.serve, sock=listener, backlog=4096)
    judging = asyncio.create_task(supervisor.judge())
    print(listener.getsockname()[1], flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the service logs at length what the processes report in one line
    parent = os.getppid()
    closed = asyncio.create_task(supervisor.last_closed.wait())
    while not closed.done():
        await asyncio.wait({closed, judging}, timeout=PERIOD, return_when=asyncio.FIRST_COMPLETED)
        if judging.done():
            await asyncio.wait({closed}, timeout=LEAVE_S)
            break
        if 0 not in supervisor.members and os.getppid() != parent:  # process 0 ended before it connected
            break
    judging.cancel()
    del service


def main() -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    allow_many_sockets()
    asyncio.run(supervise(*json.load(sys.stdin)))
    os._exit(0)  # without waiting for the service's own shutdown


if __name__ == '__main__':
    main()
