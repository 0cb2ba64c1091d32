"""Reads one checkpoint; all processes of a run agree on the outcome.

Each process reads the files itself, and the read of one of them may fail. A failure that says nothing about the files,
such as storage that is unavailable for a moment, is distinguished from damage: it ends the start, and changes nothing.
"""

import json
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from dualcl_jax.method.state import TrainState
from dualcl_jax.system.devices import Specs, shapes
from dualcl_jax.system.errors import RestartError, UserError, is_refused, is_temporary, reason_of
from dualcl_jax.system.processes.agreement import from_all
from dualcl_jax.workdir.checksum import checksums, is_sealed

AWAY, REFUSED, DAMAGED = 'away', 'refused', 'damaged'
"""Outcomes of a failed read, in the order of their precedence."""


class DamagedError(Exception):
    """A checkpoint cannot be used; the message is the reason in a few words."""


def read_record(path: epath.Path) -> dict[str, Any]:
    """Reads the record of the checkpoint in a folder.

    Raises:
      DamagedError: it has been changed; OSError, ValueError or RecursionError: it cannot be read.
    """
    record = json.loads((path / 'run' / 'metadata').read_bytes())
    if not is_sealed(record):
        raise DamagedError('its record is damaged')
    return record


def read_checkpoint(path: epath.Path, like: TrainState, mesh: Mesh, specs: Specs) -> tuple[TrainState, dict[str, Any]]:
    """Restores the state of the checkpoint in a folder, and its record. Every process must call it.

    Args:
      path: the folder of a finished checkpoint.
      like: expected shapes and dtypes.
      mesh: all devices.
      specs: placement of the state on the devices, whatever it was when the state was saved.

    Raises, in every process, if the read failed in one of them:
      RestartError: the storage or the machine failed, perhaps temporarily.
      UserError: the files may not be read.
      DamagedError: the checkpoint is damaged or of another config.
    """
    problem: Exception | None = None
    handler = ocp.StandardCheckpointHandler()  # not the manager, whose restore ends with a barrier of all processes
    try:
        record = read_record(path)
        state = handler.restore(path / 'state', args=ocp.args.StandardRestore(shapes(like, mesh, specs)))
    except Exception as error:  # Orbax and tensorstore raise many types for one problem
        problem = error
    finally:
        handler.close()
    _agree(path, problem)
    found, saved = checksums(state), record['checksums']
    changed = [name for name in found if found[name] != saved.get(name)]
    if changed or len(found) != len(saved):
        raise DamagedError(f'{", ".join(changed[:2])}: differs from what was saved')
    return state, record


def _agree(path: epath.Path, problem: Exception | None) -> None:
    """Shares the outcome of a read with all processes, and raises the most severe one."""
    said = ['', ''] if problem is None else [outcome(path, problem), _words(problem)]
    told = [json.loads(text) for text in from_all('checkpoint read', json.dumps(said))]
    for kind in (AWAY, REFUSED, DAMAGED):
        for index, (found, why) in enumerate(told):
            if found == kind:
                raise failure(path, kind, f'process {index}: {why}' if len(told) > 1 else why) from problem


def _words(problem: Exception) -> str:
    return str(problem) if isinstance(problem, DamagedError) else reason_of(problem, typed=True)


def outcome(path: epath.Path, error: Exception) -> str:
    """What an exception says about the checkpoint in a folder."""
    if is_temporary(error) or is_gone(path.parent):
        return AWAY
    return REFUSED if is_refused(error) else DAMAGED


def failure(path: epath.Path, kind: str, why: str) -> Exception:
    """The exception for an outcome."""
    if kind == AWAY:
        remedy = 'run the same command again, or move the checkpoint away to resume without it'
        return RestartError(f'{path}: cannot be read now ({why})\nnothing was changed; {remedy}')
    if kind == REFUSED:
        remedy = 'correct the permissions, and run the same command again'
        return UserError(f'{path}: may not be read ({why})\nnothing was changed; {remedy}')
    return DamagedError(why)


def is_gone(directory: epath.Path) -> bool:
    """Whether a folder that existed cannot be found now, for instance because its storage is not mounted."""
    try:
        return not directory.exists()
    except Exception:  # each remote store raises its own types
        return True
