"""Checks between joined processes: that they share a workdir and have the same data."""

import socket
import time
import uuid
from typing import Any

from etils import epath

from dualcl_jax.system.errors import UserError
from dualcl_jax.system.private_jax import distributed_state

_ONE_WEEK_MS = 7 * 24 * 3600 * 1000


def check_shared(folder: epath.Path, timeout_s: float) -> None:
    """Checks that every process sees the same folder.

    Every process must call it, after JAX has joined them. With a single process it does nothing.

    Raises:
      UserError: names the processes that see another folder, or did not call it in time.
    """
    client, index, count = _joined()
    if count == 1:
        return
    wait_ms = max(1, int(1000 * timeout_s))
    nonce = folder / f'.shared-{uuid.uuid4().hex}'
    if index == 0:
        nonce.write_text('')
        client.key_value_set('dualcl/workdir', nonce.name)
    answers: dict[int, tuple[str, str]] = {}
    try:
        name = client.blocking_key_value_get('dualcl/workdir', wait_ms)
        end = time.monotonic() + 5  # a new file appears late on network file systems
        while not (folder / name).exists() and time.monotonic() < end:
            time.sleep(0.2)
        _publish(client, f'workdir/{index}', 'yes' if (folder / name).exists() else 'no')
        for other in range(count):
            answers[other] = _read(client, f'workdir/{other}', wait_ms)
    except RuntimeError as error:  # a timeout
        missing = sorted(set(range(count)) - set(answers))
        raise UserError(
            f'process {missing[0]} of {count} did not open --workdir={folder} within {timeout_s:g} s; check its output'
        ) from error
    finally:
        if index == 0:
            nonce.unlink(missing_ok=True)
    apart = [f'{other} ({host})' for other, (host, seen) in answers.items() if seen == 'no']
    if apart:
        raise UserError(
            f'--workdir={folder}: process {", ".join(apart)} sees a different folder from process 0\n'
            'use one that all hosts share, such as gs://BUCKET/RUN or a network file system'
        )


def check_same_data(name: str, fingerprint: str) -> None:
    """Checks that every process found the same images. Every process must call it, as `check_shared`.

    It waits as long as another process is still examining its images. If that process is lost, JAX ends the wait.

    Args:
      name: name of the data set.
      fingerprint: fingerprint of the images that this process found.

    Raises:
      UserError: names the processes whose images differ from those of process 0.
    """
    client, index, count = _joined()
    if count == 1:
        return
    _publish(client, f'data/{index}', fingerprint)
    answers = [_read(client, f'data/{other}', _ONE_WEEK_MS) for other in range(count)]
    apart = [f'{other} ({host})' for other, (host, found) in enumerate(answers) if found != answers[0][1]]
    if apart:
        raise UserError(
            f'data.name={name}: process {", ".join(apart)} found different images from process 0\n'
            'give every host the same files, or a folder that they share'
        )


def _joined() -> tuple[Any, int, int]:
    """JAX's key-value store, the index of this process and the number of processes, 1 for a single process."""
    state = distributed_state()
    alone = state.client is None or not state.num_processes
    return state.client, state.process_id, 1 if alone else state.num_processes


def _publish(client: Any, name: str, value: str) -> None:
    """Publishes a value, with the name of this host, to all processes."""
    client.key_value_set(f'dualcl/{name}', f'{socket.gethostname()} {value}')


def _read(client: Any, name: str, wait_ms: int) -> tuple[str, str]:
    """The host and the value that another process published. Raises RuntimeError after `wait_ms`."""
    host, _, value = client.blocking_key_value_get(f'dualcl/{name}', wait_ms).partition(' ')
    return host, value
