"""The supervisor: a small process beside process 0 of a run, which outlives each process of the run.

It runs the coordination service, which JAX would run in process 0: when that service dies with process 0, JAX aborts
all other processes with a stack trace. The supervisor also listens to every process of the run, at a port that it
prints, and informs all of them as soon as one has died, hangs, or gave up. It ends when the last process has ended.

Every process sends lines of JSON: first {"index", "host", "silence_s", "stall_s"}, then {"step"} every `PERIOD`, and
finally {"ended": reason, empty on success}. It receives a line every `PERIOD`: {"lost": which and how, or empty}.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

PERIOD = 1.0
"""Seconds between heartbeats."""


@dataclasses.dataclass
class Member:
    """The last known state of a process: `heard` is the time of its last message, `behind` since when it lags."""

    index: int
    host: str
    silence_s: float
    stall_s: float
    heard: float
    behind: float | None = None
    step: int = 0
    ended: str | None = None
    gone: bool = False

    def __str__(self) -> str:
        return f'process {self.index} on {self.host}'


def verdict(members: list[Member], now: float) -> str:
    """Which process is lost, and how; empty if all is well. Also records which processes lag behind."""
    for member in members:
        if member.ended:
            return f'{member} stopped: {member.ended}'
    for member in members:
        if member.ended is not None:
            continue
        if member.gone:
            return f'{member} died'
        if now - member.heard > member.silence_s:
            return f'{member} has sent no heartbeat for {member.silence_s:g} s'
    working = [member for member in members if member.ended is None]
    first = max((member.step for member in working), default=0)
    for member in working:
        if member.step == first:
            member.behind = None
        elif member.behind is None:
            member.behind = now
        elif now - member.behind > member.stall_s:
            return f'{member} has not got past step {member.step} for {member.stall_s:g} s; others have'
    return ''


class Supervisor:
    """Receives the messages of all processes and answers them."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self._lost = ''
        self._open = 0
        self.last_closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one process, from its first message until it disconnects."""
        self._open += 1
        member = None
        try:
            hello = json.loads(await reader.readline())
            now = time.monotonic()
            member = self.members[hello['index']] = Member(**hello, heard=now)
            answering = asyncio.create_task(self._answer(writer))
            while line := await reader.readline():
                self._receive(member, json.loads(line))
            answering.cancel()
        except (OSError, ValueError, TypeError, KeyError):  # a connection reset, or a connection from something else
            pass
        finally:
            if member is not None:
                member.gone = True
            with contextlib.suppress(OSError):
                writer.close()
            self._open -= 1
            if self.members and not self._open:
                self.last_closed.set()

    def _receive(self, member: Member, message: dict[str, Any]) -> None:
        member.heard = time.monotonic()
        if message.get('step', 0) > member.step:
            member.step, member.behind = message['step'], None
        member.ended = message.get('ended', member.ended)

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        while True:
            self._lost = self._lost or verdict(list(self.members.values()), time.monotonic())
            writer.write(json.dumps({'lost': self._lost}).encode() + b'\n')
            await writer.drain()
            await asyncio.sleep(PERIOD / 4)


def start(*arguments: Any, **options: Any) -> 'Supervised':
    """Starts the supervisor in place of jaxlib's coordination service, whose arguments it takes."""
    given = json.dumps([arguments, options])
    process = subprocess.Popen(
        [sys.executable, '-m', 'dualcl_jax.system.processes.supervisor', given],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C must not reach it
    )
    assert process.stdout is not None
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


def listen(port: int, backlog: int | None = None) -> socket.socket:
    """A socket that listens at a port, 0 for any free one, for IPv4 and, if available, IPv6."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=backlog)


async def keep(arguments: list[Any], options: dict[str, Any]) -> None:
    """Runs the coordination service and the supervisor until the last process has ended."""
    from jaxlib import _jax

    service = _jax.get_distributed_runtime_service(*arguments, **options)
    supervisor = Supervisor()
    listener = listen(0)
    await asyncio.start_server(supervisor.serve, sock=listener)
    print(listener.getsockname()[1], flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the service logs at length what the processes report in one line
    parent = os.getppid()
    while not supervisor.last_closed.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(supervisor.last_closed.wait(), PERIOD)
        if not supervisor.members and os.getppid() != parent:  # process 0 ended before any process connected
            break
    del service


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    arguments, options = json.loads(sys.argv[1])
    asyncio.run(keep(arguments, options))
    os._exit(0)  # without waiting for the service's own shutdown


if __name__ == '__main__':
    main()
