"""Measures what many processes cost process 0 and the supervisor beside it.

    python -m experiments.benchmark.processes --count=1024

Process 0 and the supervisor are real; the others are simulated by one process over the loopback interface: each answers
the rendezvous, then sends a heartbeat a second. After `--seconds` one of them disconnects without notice. The program
prints messages, sockets, processor time, and how long it took to inform all others. The last line is JSON.

Not simulated: networks between machines, and JAX's own messages, for which the supervisor runs a service in C++.
"""

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.config import flatten, load_config
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.machine import processor
from dualcl_jax.system.processes import supervisor
from dualcl_jax.system.versions import versions

HOST = '127.0.0.1'
PROCESS_0 = """
import json, resource, sys, time
from dualcl_jax.system.processes import rendezvous
address, count, facts = json.load(sys.stdin)
began = time.monotonic()
rendezvous.meet(rendezvous.Place(address, count, 0), facts, 300)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.monotonic() - began, used.ru_utime + used.ru_stime]))
"""


async def answer(address: tuple[str, int], index: int, count: int, facts: dict[str, str]) -> tuple[int, str]:
    """A simulated process in the rendezvous; returns the bytes of its message, and the secret that it received."""
    message = json.dumps({'index': index, 'host': f'host{index}', 'facts': facts, 'count': count}).encode() + b'\n'
    while True:
        try:
            reader, writer = await asyncio.open_connection(*address)
        except OSError:  # process 0 starts
            await asyncio.sleep(0.2)
            continue
        writer.write(message)
        told = json.loads(await reader.readline())
        writer.close()
        assert not told['problem'], told
        return len(message), told['token']


async def meet_all(count: int, facts: dict[str, str]) -> dict[str, Any]:
    """The rendezvous of `count` processes."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    process_0 = subprocess.Popen([sys.executable, '-c', PROCESS_0], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process_0.stdin is not None
    process_0.stdin.write(json.dumps([f'{HOST}:{port}', count, facts]).encode())
    process_0.stdin.close()
    process_0.stdin = None
    asking = asyncio.gather(*(answer((HOST, port), index, count, facts) for index in range(1, count)))
    most = 0
    while not asking.done():
        most = max(most, sockets(process_0.pid))
        await asyncio.sleep(0.02)
    found = await asking
    out, _ = process_0.communicate()
    seconds, used = json.loads(out)
    assert len({token for _, token in found}) == 1
    return {
        'messages': 2 * (count - 1),
        'bytes_received': sum(size for size, _ in found),
        'sockets_of_process_0': most,
        'seconds': seconds,
        'processor_seconds_of_process_0': used,
    }


async def beat(port: int, index: int, lost: dict[int, float], received: list[int]) -> None:
    """A simulated process that sends heartbeats until it is informed that another one is lost."""
    reader, writer = await asyncio.open_connection(HOST, port)
    hello = {'token': 'secret', 'index': index, 'host': f'host{index}', 'silence_s': 30, 'stall_s': 600}
    writer.write(json.dumps(hello).encode() + b'\n')

    async def send() -> None:
        while True:
            writer.write(json.dumps({'step': 1, 'phase': 'step'}).encode() + b'\n')
            await asyncio.sleep(supervisor.PERIOD)

    sending = asyncio.create_task(send())
    try:
        while line := await reader.readline():
            received[0] += 1
            if json.loads(line)['lost']:
                lost[index] = time.monotonic()
                return
    finally:
        sending.cancel()
        writer.close()


async def heartbeats(count: int, seconds: float) -> dict[str, Any]:
    """Runs the heartbeats of `count` processes for a while, and then without the last one."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    options = {'heartbeat_timeout': 100, 'shutdown_timeout': 10, 'recoverable': False}
    beside = supervisor.start('secret', HOST, f'[::]:{port}', count, **options)
    lost: dict[int, float] = {}
    received = [0]
    working = [asyncio.create_task(beat(beside.port, index, lost, received)) for index in range(count)]
    await asyncio.sleep(3)  # until all are connected
    used, before, began = processor_seconds(beside.process.pid), received[0], time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - began
    answers, used = received[0] - before, processor_seconds(beside.process.pid) - used
    open_sockets = sockets(beside.process.pid)
    working[-1].cancel()
    gone = time.monotonic()
    await asyncio.gather(*working, return_exceptions=True)
    beside.process.wait()
    took = sorted(when - gone for index, when in lost.items() if index != count - 1)
    return {
        'heartbeats_per_second': count / supervisor.PERIOD,
        'answers_per_second': answers / passed,
        'sockets_of_the_supervisor': open_sockets,
        'processor_share_of_the_supervisor': used / passed,
        'told_of_a_lost_process': len(took),
        'seconds_until_told_median': took[len(took) // 2],
        'seconds_until_told_largest': took[-1],
    }


def sockets(pid: int) -> int:
    """How many sockets a process of this machine has."""
    try:
        return sum(os.readlink(file).startswith('socket') for file in Path(f'/proc/{pid}/fd').iterdir())
    except OSError:  # it ended, or closed one
        return 0


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or has an invalid value."""
    parser = Parser('python -m experiments.benchmark.processes', __doc__)
    parser.add_argument('--count', type=int, default=1024, help='number of processes')
    parser.add_argument('--seconds', type=float, default=20, help='how long to measure the heartbeats')
    return parser.parse_args(arguments)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    facts = {name: repr(value) for name, value in flatten(load_config('configs/imagenet.py:moco_v3'))}
    found: dict[str, Any] = {'count': flags.count}
    found['rendezvous'] = asyncio.run(meet_all(flags.count, facts))
    found['heartbeats'] = asyncio.run(heartbeats(flags.count, flags.seconds))
    for part in ('rendezvous', 'heartbeats'):
        for name, value in found[part].items():
            print(f'{part}  {name:35} {value:,.6g}')
    command = f'python -m experiments.benchmark.processes --count={flags.count} --seconds={flags.seconds:g}'
    machine = f'{os.cpu_count()} cores of {processor()}'
    print(json.dumps(found | {'command': command, 'machine': machine, 'versions': versions()}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
