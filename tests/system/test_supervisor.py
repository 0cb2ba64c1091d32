"""The supervisor's verdict on the heartbeats of a run, and its messages to the processes."""

import json
import socket
import subprocess
import sys
import time

import pytest

from dualcl_jax.system.processes import supervisor
from dualcl_jax.system.processes.supervisor import Member, verdict

TOKEN = 'secret'


def member(index: int, *, heard: float = 100.0, **given) -> Member:
    return Member(index, f'host{index}', silence_s=10, stall_s=60, heard=heard, **given)


CASES = {
    'all is well': ([member(0, step=7), member(1, step=7)], ''),
    'a step ahead': ([member(0, step=9), member(1, step=7)], ''),
    'two ahead for a while': ([member(0, step=9), member(1, step=7, behind=41)], ''),
    'silent': ([member(0), member(1, heard=85)], 'process 1 on host1 has sent no heartbeat for 10 s'),
    'died': ([member(0, gone=True), member(1)], 'process 0 on host0 died'),
    'gave up': ([member(0), member(1, ended='no such file')], 'process 1 on host1 stopped: no such file'),
    'gave up, then was gone': ([member(0), member(1, ended='full', gone=True)], 'process 1 on host1 stopped: full'),
    'done': ([member(0, step=3), member(1, step=9, ended='', gone=True, heard=0)], ''),
    'stays behind': (
        [member(0, step=9), member(1, step=7, behind=39, phase='input')],
        'process 1 on host1 has not got past step 7 for 60 s (phase input); others have',
    ),
    'all stand still': ([member(0, step=9, behind=0), member(1, step=9)], ''),
}


@pytest.mark.parametrize('case', CASES)
def test_verdict(case: str) -> None:
    members, said = CASES[case]
    assert verdict(members, now=100.0).lost == said


@pytest.fixture
def kept():
    """A supervisor with a coordination service, as process 0 starts it."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    kept = supervisor.start(
        TOKEN, '127.0.0.1', f'[::]:{port}', 2, heartbeat_timeout=100, shutdown_timeout=10, recoverable=False
    )
    yield kept
    kept.process.kill()
    kept.process.communicate()


def connected(kept: supervisor.Supervised, index: int, silence_s: float = 10) -> socket.socket:
    connection = socket.create_connection(('127.0.0.1', kept.port), timeout=20)
    hello = {'token': TOKEN, 'index': index, 'host': f'host{index}', 'silence_s': silence_s, 'stall_s': 60}
    connection.sendall(json.dumps(hello).encode() + b'\n')
    return connection


def test_all_are_informed_and_the_supervisor_ends_with_the_last_process(kept: supervisor.Supervised) -> None:
    first, second = (connected(kept, index) for index in range(2))
    lines = first.makefile('rb')
    assert json.loads(lines.readline()) == {'lost': '', 'restart': True}
    second.close()
    end = time.monotonic() + 20
    lost = ''
    while not lost and time.monotonic() < end:
        lost = json.loads(lines.readline())['lost']
    assert lost == 'process 1 on host1 died'
    assert kept.process.poll() is None
    lines.close()
    first.close()
    assert kept.process.wait(20) == 0


def test_a_process_that_dies_before_the_others_connect(kept: supervisor.Supervised) -> None:
    """The others still join: they would find neither the supervisor nor JAX's service."""
    with connected(kept, 1) as first, first.makefile('rb') as lines:
        lines.readline()
    time.sleep(2 * supervisor.PERIOD)
    assert kept.process.poll() is None
    with connected(kept, 0) as second, second.makefile('rb') as lines:
        assert json.loads(lines.readline())['lost'] == 'process 1 on host1 died'


def test_the_supervisor_does_not_wait_for_a_lost_process(kept: supervisor.Supervised) -> None:
    """A host without power closes no connection; the supervisor would hold the port of the coordinator."""
    with connected(kept, 0, silence_s=1), connected(kept, 1, silence_s=1) as lost, lost.makefile('rb') as lines:
        end = time.monotonic() + 20
        while not json.loads(lines.readline())['lost'] and time.monotonic() < end:
            pass
        assert kept.process.poll() is None  # the others have time to end
        assert kept.process.wait(supervisor.LEAVE_S + 10) == 0


FORGED = b'{"token": "guessed", "index": 1, "host": "h", "silence_s": 10, "stall_s": 60}\n{"ended": "forged"}\n'


def test_a_mistake_of_another_process_is_no_reason_to_restart() -> None:
    members = [member(0), member(1, ended='no such file', restart=False)]
    assert verdict(members, now=100.0) == ('process 1 on host1 stopped: no such file', False)
    assert verdict([member(0), member(1, gone=True)], now=100.0).restart


HOSTS = {
    'node7': ['127.0.0.2', '::1'],  # as Debian's /etc/hosts has it
    'node8': ['127.0.0.1', '192.0.2.1'],
    'node9': ['192.0.2.1', '192.0.2.2'],
    'mine': ['127.0.0.1', '192.0.2.3'],
}


@pytest.mark.parametrize(
    ('host', 'found'),
    [
        ('localhost', '127.0.0.1'),
        ('127.0.0.1', '127.0.0.1'),
        ('127.0.0.2', '127.0.0.2'),
        ('192.0.2.1', ''),
        ('nowhere', ''),
        ('node7', ''),
        ('node8', ''),
        ('node9', ''),
        ('mine', '192.0.2.3'),
    ],
)
def test_bind_host(monkeypatch: pytest.MonkeyPatch, host: str, found: str) -> None:
    """One address of this machine, if others reach it there: not a loopback address, and not one of several."""
    resolve, create = socket.getaddrinfo, socket.create_server

    def resolve_some(name: str, *arguments, **options):
        if name == 'nowhere':
            raise socket.gaierror(socket.EAI_NONAME, 'unknown')
        entries = [resolve(address, *arguments, **options) for address in HOSTS.get(name, [name])]
        return [entry for found in entries for entry in found]

    def create_some(address, **options):
        return create(('', 0)) if address[0] == '192.0.2.3' else create(address, **options)

    monkeypatch.delenv('JAX_COORDINATOR_BIND_ADDRESS', raising=False)
    monkeypatch.setattr(socket, 'getaddrinfo', resolve_some)
    monkeypatch.setattr(socket, 'create_server', create_some)
    assert supervisor.bind_host(host) == found


@pytest.mark.parametrize(
    ('chosen', 'found'), [('[::]:80', ''), ('[fe80::1]:80', 'fe80::1'), ('10.0.0.1:80', '10.0.0.1')]
)
def test_bind_host_that_is_chosen(monkeypatch: pytest.MonkeyPatch, chosen: str, found: str) -> None:
    monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', chosen)
    assert supervisor.bind_host('127.0.0.1') == found


STRANGERS = (FORGED, b'', b'GET / HTTP/1.1\r\n\r\n', b'[]\n', b'{"index": 0}\n', bytes(range(256)) * 300)


def test_strangers_change_nothing(kept: supervisor.Supervised) -> None:
    """Of many at once: what the supervisor sends, a line each second, would show an effect of any of them."""
    mine = connected(kept, 0)
    for words in STRANGERS:
        with socket.create_connection(('127.0.0.1', kept.port), timeout=20) as stranger:
            stranger.sendall(words)
    with mine, mine.makefile('rb') as lines:
        assert [json.loads(lines.readline())['lost'] for _ in range(6)] == [''] * 6


def test_errors_of_the_service_are_raised() -> None:
    with pytest.raises(RuntimeError):
        supervisor.start(TOKEN, '', '127.0.0.1:1', 'two')


def test_more_sockets_than_the_usual_limit() -> None:
    """A shell allows 1,024 open files; process 0 and the supervisor of 1,024 processes need more."""
    program = (
        'import resource; from dualcl_jax.system.processes.supervisor import allow_many_sockets; '
        'hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); '
        'allow_many_sockets(); print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))'
    )
    assert subprocess.run([sys.executable, '-c', program], capture_output=True, check=True).stdout == b'True\n'
