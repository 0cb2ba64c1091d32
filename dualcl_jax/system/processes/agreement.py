"""Agreement of joined processes on their workdir, their data, what one of them reads, and decisions of process 0."""

import contextlib
import json
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.private_jax import distributed_state

BOOT = Path('/proc/sys/kernel/random/boot_id')
"""Where Linux shows a random id of the boot of its kernel."""
APPEARS_S = 5.0
"""Seconds after which a new file is visible everywhere: it appears late on network file systems."""
_ONE_WEEK_S = 7 * 24 * 3600.0
_ANSWER_S = 10.0
_calls: Counter[tuple[int, str]] = Counter()  # by process, because tests run processes as threads
Made = TypeVar('Made')


def check_shared(folder: epath.Path, timeout_s: float) -> None:
    """Checks that every process sees the same folder.

    Every process must call it, after JAX has joined them. With a single process it does nothing.

    Raises:
      UserError: names the processes that see another folder.
      RestartError: names a process that did not call it in time.
    """
    _, index, count = _joined()
    if count == 1:
        return
    nonce = folder / f'.shared-{uuid.uuid4().hex}'
    if index == 0:
        nonce.write_text('')
    problem = (
        f'--workdir={folder}: process APART sees a different folder from process 0\n'
        'use one that all hosts share, such as gs://BUCKET/RUN or a network file system'
    )
    try:
        name = from_process_0('nonce', nonce.name, timeout_s)
        end = time.monotonic() + APPEARS_S
        while not (folder / name).exists() and time.monotonic() < end:
            time.sleep(0.2)
        _compare(name, 'yes' if (folder / name).exists() else 'no', problem, timeout_s)
    except _MissingError as missing:
        raise RestartError(
            f'process {missing} of {count} did not open --workdir={folder} within {timeout_s:g} s; check its output'
        ) from missing
    finally:
        if index == 0:
            nonce.unlink(missing_ok=True)


def check_same_data(name: str, fingerprint: str, unread: str = '') -> None:
    """Checks that every process found the same images. Every process must call it, like `check_shared`.

    It waits as long as another process is still examining its images. If that process is lost, JAX ends the wait.

    Args:
      name: name of the data set.
      fingerprint: fingerprint of the images that this process found.
      unread: a file that this process could not read for a while; empty if there is none.

    Raises:
      UserError: names the processes whose images differ from those of process 0.
      RestartError: they differ, and one of them could not read a file.
    """
    if _joined()[2] == 1:
        return
    problem = (
        f'data.name={name}: process APART found different images from process 0\n'
        'give every host the same files, or a folder that they share'
    )
    try:
        _compare('data', fingerprint, problem, _ONE_WEEK_S)
    except UserError as error:  # in every process
        for index, file in enumerate(from_all('unread', unread)):
            if file:
                raise RestartError(
                    f'data.name={name}: the processes found different images (process {index}: {file})\n'
                    'run the same command again'
                ) from error
        raise


def made_once(
    name: str,
    key: str,
    make: Callable[[], Made],
    take: Callable[[], Made | None],
    *,
    has: Callable[[], Made | None] = lambda: None,
) -> Made:
    """Returns what process 0 makes for all processes with the same key.

    Every process must call it, after JAX has joined them. The only process of a run makes it.

    Args:
      name: name of the result.
      key: identifies what it is made of. Processes whose key differs from that of process 0 make their own.
      make: makes the result. In process 0 it also leaves it where the others can take it. If it fails there, they make
        it as well.
      take: takes the result of process 0; None if this process cannot use it, and makes its own.
      has: what a process other than 0 has already, so that it does not wait for process 0; None if it has nothing.
    """
    client, index, count = _joined()
    if count == 1:
        return make()
    name = _of_this_call(name, index)
    if index == 0:
        client.key_value_set(f'dualcl/{name}/key', key)
        said = 'failed'
        try:
            result = make()
            said = 'made'
        finally:
            client.key_value_set(f'dualcl/{name}/made', said)
        return result
    found = has()
    if found is None and _read(client, f'{name}/key', _ONE_WEEK_S, by=0) == key:
        found = take() if _read(client, f'{name}/made', _ONE_WEEK_S, by=0) == 'made' else None
    return make() if found is None else found


def is_first() -> bool:
    """Whether this is process 0, or the only process."""
    return _joined()[1] == 0


def from_process_0(name: str, text: str, timeout_s: float = _ONE_WEEK_S) -> str:
    """Gives every process the text of process 0. Every process must call it, equally often with each name.

    It waits until process 0 has called it; if that process is lost, the heartbeats or JAX end the wait. In
    `check_shared` it waits for a limited time, and then raises `_MissingError`.
    """
    client, index, count = _joined()
    if count == 1:
        return text
    name = _of_this_call(name, index)
    if index == 0:
        client.key_value_set(f'dualcl/{name}', text)
        return text
    return _read(client, name, timeout_s, by=0)


def from_all(name: str, text: str, timeout_s: float = _ONE_WEEK_S) -> list[str]:
    """Gives every process the texts of all processes, by index. They must all call it, equally often with each name.

    Process 0 collects the texts, so that each of the others sends one message. It waits like `from_process_0`, or, in
    `check_shared`, for a limited time: without the text of one process, all of them raise `_MissingError`.
    """
    client, index, count = _joined()
    if count == 1:
        return [text]
    name = _of_this_call(name, index)
    if index:
        client.key_value_set(f'dualcl/{name}/{index}', text)
        said = json.loads(_read(client, f'{name}/all', timeout_s + _ANSWER_S, by=0))
    else:
        said, end = [text], time.monotonic() + timeout_s
        with contextlib.suppress(_MissingError):
            for other in range(1, count):
                said.append(_read(client, f'{name}/{other}', end - time.monotonic(), by=other))
        client.key_value_set(f'dualcl/{name}/all', json.dumps(said))
    if len(said) < count:
        raise _MissingError(len(said))
    return said


def _of_this_call(name: str, index: int) -> str:
    """A new name for each exchange, because a stored value never changes. All processes count alike."""
    _calls[index, name] += 1
    return f'{name}/{_calls[index, name]}'


def machine_id() -> str:
    """The name of this machine and the boot of its kernel: machines may share a name, and containers a kernel."""
    with contextlib.suppress(OSError):
        return f'{socket.gethostname()} {BOOT.read_text().strip()}'
    return socket.gethostname()


class _MissingError(RuntimeError):
    """A process did not answer; the argument is its index."""


def _compare(name: str, value: str, problem: str, timeout_s: float) -> None:
    """Compares the values of all processes.

    Raises:
      UserError: they differ; APART in `problem` is replaced by the processes whose values differ from that of
        process 0.
      _MissingError: a process did not publish its value in time.
    """
    said = [text.split(' ', 1) for text in from_all(name, f'{socket.gethostname()} {value}', timeout_s)]
    apart = [f'{index} ({host})' for index, (host, found) in enumerate(said) if found != said[0][1]]
    if apart:
        raise UserError(problem.replace('APART', ', '.join(apart)))


def _read(client: Any, name: str, timeout_s: float, *, by: int) -> str:
    """The value of a name. Raises _MissingError if the process `by` does not publish it in time."""
    try:
        return client.blocking_key_value_get(f'dualcl/{name}', max(1, int(1000 * timeout_s)))
    except RuntimeError as error:
        raise _MissingError(by) from error


def _joined() -> tuple[Any, int, int]:
    """JAX's key-value store, the index of this process and the number of processes, 1 for a single process."""
    state = distributed_state()
    alone = state.client is None or not state.num_processes
    return state.client, state.process_id, 1 if alone else state.num_processes
