"""Processes that find each other, and the error of each if one is missing, late or different."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.processes import agreement, places, rendezvous
from dualcl_jax.system.processes.places import Place
from tests.support.runs import Trainer, contents, finish, free_port, killed_at_last


def call(facts_of, *, present=None, timeout_s=1.0, late=0.0):
    """Runs the rendezvous of processes with these facts on one machine; returns the error of each, None for success."""
    address, count = f'127.0.0.1:{free_port()}', len(facts_of)

    def one(index):
        time.sleep(late * index)
        try:
            rendezvous.meet(Place(address, count, index), facts_of[index], timeout_s)
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


def test_a_process_that_connects_after_a_difference_gets_the_same_error():
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
            list(pool.map(lambda index: rendezvous.meet(Place(address, 2, index), {}, 5), range(2)))


def test_a_missing_process_is_a_reason_to_restart():
    """In each process: the missing one may be on a machine that still starts. A process that differs is a mistake."""

    def kinds(facts, present):
        address = f'127.0.0.1:{free_port()}'

        def one(index):
            with pytest.raises(UserError) as raised:
                rendezvous.meet(Place(address, 3, index), facts[index], 1.0)
            return type(raised.value)

        with ThreadPoolExecutor(3) as pool:
            return set(pool.map(one, present))

    assert kinds([{}] * 3, [0, 1]) == {RestartError}
    assert kinds([{}] * 3, [2]) == {RestartError}
    assert kinds([{}, {'seed': '1'}, {}], [0, 1, 2]) == {UserError}


def hello(index):
    return json.dumps({'index': index, 'host': 'h', 'facts': {}, 'count': 3}).encode() + b'\n'


def test_a_process_that_is_started_again_while_others_are_missing():
    place = Place(f'127.0.0.1:{free_port()}', 3, 0)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(rendezvous.meet, place, {}, 20)
        with retried(place) as killed:
            killed.sendall(hello(1))
        others = [pool.submit(rendezvous.meet, place._replace(process=index), {}, 20) for index in (1, 2)]
        assert len({process.result() for process in [first, *others]}) == 1


def test_an_index_given_twice(monkeypatch):
    monkeypatch.setattr(rendezvous, 'GRACE_S', 0.3)
    place = Place(f'127.0.0.1:{free_port()}', 3, 0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rendezvous.meet, place, {}, 20)
        with retried(place) as other:
            other.sendall(hello(1))
            second = pool.submit(rendezvous.meet, place._replace(process=1), {}, 20)
            assert b'given to two processes' in other.recv(2**16)
        for process in (first, second):
            with pytest.raises(UserError, match='--process_id=1: given to two processes'):
                process.result()


@pytest.mark.parametrize(
    'words', [b'', b'GET / HTTP/1.1\r\n\r\n', b'{"index": [], "host": 0, "facts": 0, "count": 0}\n']
)
def test_strangers(words):
    place = Place(f'127.0.0.1:{free_port()}', 2, 0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rendezvous.meet, place, {}, 20)
        with retried(place) as stranger:
            stranger.sendall(words)
        assert pool.submit(rendezvous.meet, place._replace(process=1), {}, 20).result() == first.result()


def retried(place):
    """A connection to process 0, as soon as it listens."""
    end = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((place.host, place.port), timeout=20)
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize(('variables', 'kind'), [({}, UserError), ({'SLURM_JOB_ID': '7'}, RestartError)])
def test_a_port_in_use(monkeypatch, variables, kind):
    for name in places.SCHEDULERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (
        socket.create_server(('127.0.0.1', 0)) as other,
        pytest.raises(UserError, match=r'cannot listen on it .*; use a free port') as raised,
    ):
        rendezvous.meet(Place(f'127.0.0.1:{other.getsockname()[1]}', 2, 0), {}, 0.3)
    assert type(raised.value) is kind


def test_a_port_that_becomes_free(capsys):
    """As that of the last run, until its last process has ended."""
    with ThreadPoolExecutor(2) as pool:
        with socket.create_server(('127.0.0.1', 0)) as other:
            place = Place(f'127.0.0.1:{other.getsockname()[1]}', 2, 0)
            first = pool.submit(rendezvous.meet, place, {}, 20)
            time.sleep(0.3)
            assert not first.done()
        assert pool.submit(rendezvous.meet, place._replace(process=1), {}, 20).result() == first.result()
    said = capsys.readouterr().out.splitlines()
    assert said == [f'note: --coordinator_address={place.address}: the port is in use; waiting until it is free']


@pytest.mark.parametrize(
    ('number', 'variables', 'kind'),
    [
        (socket.EAI_NONAME, {}, UserError),
        (socket.EAI_NONAME, {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, RestartError),
        (socket.EAI_AGAIN, {}, RestartError),
    ],
)
def test_a_name_that_does_not_resolve(monkeypatch, number, variables, kind):
    """The name of a pod is unknown until the pod is there; otherwise it is wrong, unless the name server is away."""

    def unknown(*_, **__):
        raise socket.gaierror(number, 'Name or service not known')

    for name in places.SCHEDULERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    with pytest.raises(UserError, match=r'^--coordinator_address=nowhere:80: .*Name or service not known') as raised:
        rendezvous.meet(Place('nowhere:80', 2, 1), {}, 0.3)
    assert type(raised.value) is kind
    assert len(str(raised.value).splitlines()) == 1


def test_commands_that_differ(trainer: Trainer, tmp_path: Path) -> None:
    flags = ('train.steps=2', 'parallel.timeout_s=20')
    flags += (f'--coordinator_address=127.0.0.1:{free_port()}', '--num_processes=2')
    with (
        killed_at_last(trainer.start(tmp_path / 'run', *flags, '--process_id=0')) as first,
        killed_at_last(trainer.start(tmp_path / 'run', *flags, '--process_id=1', 'seed=1')) as second,
    ):
        ended = [finish(process, 2) for process in (first, second)]
    for done in ended:
        assert done.err.splitlines()[0].startswith('error: process 1 on ')
        assert 'has a different seed (0 on process 0, 1 there)' in done.err.splitlines()[0]
        assert len(done.err.splitlines()) <= 3
    assert not (tmp_path / 'run').exists()


def test_missing_process_as_a_command(trainer: Trainer, tmp_path: Path) -> None:
    flags = (f'--coordinator_address=127.0.0.1:{free_port()}', '--num_processes=2', '--process_id=0')
    done = trainer.run(tmp_path / 'run', *flags, 'parallel.timeout_s=1', status=75)
    assert done.err.splitlines()[0].startswith('error: process 1 of 2 did not start within 1 s')
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize('case', ['shared', 'apart', 'missing', 'late'])
def test_check_shared(two_processes, monkeypatch, tmp_path: Path, case: str) -> None:
    from etils import epath

    monkeypatch.setattr(agreement, 'APPEARS_S', 0.5)

    def check(index):
        folder = epath.Path(tmp_path / (str(index) if case == 'apart' else 'run'))
        folder.mkdir(exist_ok=True)
        if case == 'late' and index:
            threading.Event().wait(0.6)
        agreement.check_shared(folder, 0.3 if case in ('missing', 'late') else 20)

    said = two_processes(check, [0] if case == 'missing' else [0, 1])
    assert not contents(tmp_path)
    if case == 'shared':
        assert said == [None, None]
    elif case == 'apart':
        assert all('process 1 (' in text and 'sees a different folder from process 0' in text for text in said)
    else:
        assert all('process 1 of 2 did not open --workdir' in text for text in said)


def test_the_same_images_on_every_host(two_processes) -> None:
    assert two_processes(lambda index: agreement.check_same_data('folder', 'a b')) == [None, None]


def test_other_images_on_another_host(two_processes) -> None:
    for text in two_processes(lambda index: agreement.check_same_data('folder', f'a {index}')):
        assert text.startswith('data.name=folder: process 1 (')
        assert 'found different images from process 0' in text


def test_all_processes_get_the_texts_of_all(two_processes) -> None:
    found = {}

    def check(index):
        found[index] = [agreement.from_all(f'round {n}', f'{index}: {n}') for n in range(2)]

    assert two_processes(check) == [None, None]
    assert found[0] == found[1] == [['0: 0', '1: 0'], ['0: 1', '1: 1']]


@pytest.mark.parametrize('case', ['same', 'other key', 'has it', 'fails', 'cannot take it'])
def test_process_0_makes_what_the_others_need(two_processes, case: str) -> None:
    made, found = [], {}

    def check(index):
        def make() -> str:
            made.append(index)
            if case == 'fails':
                raise UserError('no such file')
            return f'made by {index}'

        def take() -> str | None:
            assert made == [0]
            return None if case == 'cannot take it' else 'taken'

        key = f'key {index}' if case == 'other key' else 'key'
        has = 'had' if case == 'has it' else None
        found[index] = agreement.made_once('thing', key, make, take, has=lambda: has)

    said = two_processes(check)
    assert said == [None, None] if case != 'fails' else ['no such file'] * 2
    if case != 'fails':
        assert found == {0: 'made by 0', 1: {'same': 'taken', 'has it': 'had'}.get(case, 'made by 1')}
    assert sorted(made) == ([0] if case in ('same', 'has it') else [0, 1])


def test_a_single_process_makes_what_it_needs() -> None:
    assert agreement.made_once('thing', 'key', lambda: 'made', lambda: 'taken', has=lambda: 'had') == 'made'
