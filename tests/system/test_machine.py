"""The cores that a process may use: affinity, quotas of control groups, and other processes of the run."""

import os
from pathlib import Path

import pytest

from dualcl_jax.system import machine
from dualcl_jax.system.processes.agreement import from_all, from_process_0

POD = 'kubepods/pod1'
QUOTAS = {
    'none': ({'cpu.max': 'max 100000\n'}, '0::/\n', 96),
    'a pod': ({'cpu.max': '800000 100000\n'}, '0::/\n', 8),
    'part of a core': ({'cpu.max': '250000 100000\n'}, '0::/\n', 3),
    'less than one': ({'cpu.max': '50000 100000\n'}, '0::/\n', 1),
    'more than there are': ({'cpu.max': '12800000 100000\n'}, '0::/\n', 96),
    'an outer group': ({f'{POD}/cpu.max': 'max 100000\n', 'kubepods/cpu.max': '400000 100000\n'}, f'0::/{POD}\n', 4),
    'another group': ({'user/cpu.max': '100000 100000\n'}, '0::/\n', 96),
    'version 1': (
        {'cpu/cpu.cfs_quota_us': '400000\n', 'cpu/cpu.cfs_period_us': '100000\n'},
        f'5:memory:/{POD}\n3:cpu,cpuacct:/{POD}\n0::/\n',
        4,
    ),
    'version 1, none': ({'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}, '1:cpu:/\n', 96),
    'no control groups': ({}, '', 96),
}


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine of 96 cores whose control groups have these files, and whose process belongs to these groups."""

    def limit(files: dict[str, str], memberships: str) -> None:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        (tmp_path / 'memberships').write_text(memberships)
        monkeypatch.setattr(machine, 'CGROUPS', tmp_path)
        monkeypatch.setattr(machine, 'MEMBERSHIPS', tmp_path / 'memberships')
        monkeypatch.setattr(machine, '_affinity', lambda: set(range(96)))

    return limit


@pytest.mark.parametrize('case', QUOTAS)
def test_quotas(limited, case: str) -> None:
    files, memberships, cores = QUOTAS[case]
    limited(files, memberships)
    assert machine.available_cores() == cores


def test_this_machine() -> None:
    assert 1 <= machine.available_cores() <= (os.cpu_count() or 1)
    assert machine.share_of_cores() == machine.available_cores()


def test_no_cgroups_on_this_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, 'MEMBERSHIPS', tmp_path / 'none')
    assert machine.available_cores() >= 1


def test_each_exchange_of_a_name_has_its_own_texts(two_processes) -> None:
    found: dict[int, list] = {}

    def check(index: int) -> None:
        found[index] = [from_all('name', f'{call} of {index}') for call in range(2)]
        found[index].append([from_process_0('other', f'{call} of {index}') for call in range(2)])

    assert two_processes(check) == [None, None]
    assert found[0] == found[1] == [['0 of 0', '0 of 1'], ['1 of 0', '1 of 1'], ['0 of 0', '1 of 0']]


@pytest.mark.parametrize(('apart', 'share'), [(False, 4), (True, 8)])
def test_processes_share_their_cores(two_processes, limited, monkeypatch, apart: bool, share: int) -> None:
    """Unless each has cores of its own, as a scheduler may arrange."""
    from jax._src import distributed

    limited({'cpu.max': '800000 100000\n'}, '0::/\n')
    found = {}
    if apart:
        monkeypatch.setattr(
            machine, '_affinity', lambda: {8 * distributed.global_state.process_id + core for core in range(8)}
        )

    def check(index: int) -> None:
        found[index] = machine.share_of_cores()

    assert two_processes(check) == [None, None]
    assert found == {0: share, 1: share}
