"""What the processes of a run agree on once JAX has joined them: that they share a workdir and have the same data."""

import socket
import time
import uuid
from typing import Any

from etils import epath

from dualcl_jax.system.errors import UserError

_EVER_MS = 7 * 24 * 3600 * 1000


def check_shared(folder: epath.Path, timeout_s: float) -> None:
    """Checks that every process sees the same folder. All call it, once JAX has joined them; alone it does nothing.

    Raises:
      UserError: names the processes that see another folder, or did not come.
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
        end = time.monotonic() + 5  # network file systems show a new file late
        while not (folder / name).exists() and time.monotonic() < end:
            time.sleep(0.2)
        _tell(client, f'workdir/{index}', 'yes' if (folder / name).exists() else 'no')
        for other in range(count):
            answers[other] = _hear(client, f'workdir/{other}', wait_ms)
    except RuntimeError as error:  # its deadline
        missing = sorted(set(range(count)) - set(answers))
        raise UserError(
            f'process {missing[0]} of {count} did not open --workdir={folder} within {timeout_s:g} s: see what it says'
        ) from error
    finally:
        if index == 0:
            nonce.unlink(missing_ok=True)
    apart = [f'{other} ({host})' for other, (host, seen) in answers.items() if seen == 'no']
    if apart:
        raise UserError(
            f'--workdir={folder}: process {", ".join(apart)} sees another folder than process 0\n'
            'use one that all hosts share, such as gs://BUCKET/RUN or a network file system'
        )


def check_same_data(name: str, fingerprint: str) -> None:
    """Checks that every process found the same images. All call it, as `check_shared`.

    It waits for as long as another one examines them: JAX ends it where that one is lost.

    Args:
      name: of the data set.
      fingerprint: of what was found.

    Raises:
      UserError: names the processes that found others than process 0.
    """
    client, index, count = _joined()
    if count == 1:
        return
    _tell(client, f'data/{index}', fingerprint)
    answers = [_hear(client, f'data/{other}', _EVER_MS) for other in range(count)]
    apart = [f'{other} ({host})' for other, (host, found) in enumerate(answers) if found != answers[0][1]]
    if apart:
        raise UserError(
            f'data.name={name}: process {", ".join(apart)} found other images than process 0\n'
            'give every host the same files, or a folder that they share'
        )


def _joined() -> tuple[Any, int, int]:
    """JAX's store of keys and values, the index of this process, and how many there are; 1 for a process alone."""
    from jax._src import distributed

    state = distributed.global_state
    alone = state.client is None or not state.num_processes
    return state.client, state.process_id, 1 if alone else state.num_processes


def _tell(client: Any, name: str, value: str) -> None:
    """Says something to all processes, with the name of this host."""
    client.key_value_set(f'dualcl/{name}', f'{socket.gethostname()} {value}')


def _hear(client: Any, name: str, wait_ms: int) -> tuple[str, str]:
    """The host and the value that another process told. Raises RuntimeError where it is silent for so long."""
    host, _, value = client.blocking_key_value_get(f'dualcl/{name}', wait_ms).partition(' ')
    return host, value
