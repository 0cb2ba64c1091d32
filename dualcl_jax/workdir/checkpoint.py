"""Checkpoints by Orbax: global states without a device axis, saved while training continues.

Each checkpoint stores checksums of its state (`dualcl_jax.workdir.checksum`), which are computed on the devices before
it is saved and again after it is restored. A damaged checkpoint is skipped, reported and kept. The record of a
checkpoint also stores the score of its encoder, because Orbax remembers only the scores of the current process.
"""

import json
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import jax
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dualcl_jax.method.state import TrainState
from dualcl_jax.system.devices import REPLICATED, Specs, shapes
from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.files import absolute, check_writable
from dualcl_jax.workdir.checksum import checksums, is_sealed, seal

BEST = 'knn_top1'
"""The field of a record with the score: the first of `dualcl_jax.workdir.metrics.SCORES` that the run has."""


class Checkpoint(NamedTuple):
    """An intact checkpoint that was restored, and the damaged ones that were skipped before it, by step with reason."""

    step: int
    state: TrainState
    record: dict[str, Any]
    damaged: Mapping[int, str]


class DamagedError(Exception):
    """A checkpoint cannot be used; the message is the reason in a few words."""


class Best:
    """Orbax's policy that preserves the checkpoints with the highest score, and the later of equal ones.

    Args:
      n: how many checkpoints to preserve.

    Attributes:
      scores: the score by step; None for a checkpoint whose record cannot be read, which is preserved.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self.scores: dict[int, float | None] = {}

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        known = {step: self.scores[step] for step in steps if step in self.scores}
        ranked = sorted((score, step) for step, score in known.items() if score is not None)
        best = {step for _, step in ranked[-self._n :]}
        return [step in best or known.get(step, 0.0) is None for step in steps]


class Checkpoints:
    """The checkpoints of a workdir. Every process must call every method.

    Use it as a context manager or call `close`: both wait until everything is on disk.

    Args:
      directory: local or remote folder, created if missing.
      keep: how many of the newest checkpoints to keep.
      keep_best: how many of the checkpoints with the highest scores to keep in addition.
      read_only: change nothing in the directory, not even unfinished checkpoints that a run left there.

    Attributes:
      waited_s: seconds for which saving has blocked the caller: copying off the devices, and waiting for the previous
        or the last checkpoint.
    """

    def __init__(self, directory: epath.Path, *, keep: int = 1, keep_best: int = 0, read_only: bool = False) -> None:
        policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(keep)]
        self._best = Best(keep_best) if keep_best else None
        if self._best is not None:
            policies.append(self._best)
        self._directory = absolute(directory)  # as Orbax requires
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            step_format_fixed_length=8,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._manager = self._open()
        for step in self._manager.all_steps() if self._best is not None else ():
            self._rank(step, self._stored_record(step))
        self._saved = self._manager.latest_step()
        self._saving: int | None = None
        self._problem, self._usable, self._away = '', True, False
        self.waited_s = 0.0

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._directory, options=self._options)

    def _stored_record(self, step: int) -> dict[str, Any] | None:
        """The record of a checkpoint; None if it cannot be read."""
        try:
            record = json.loads((self._directory / f'{step:08d}' / 'run' / 'metadata').read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return record if is_sealed(record) else None

    def _rank(self, step: int, record: Mapping[str, Any] | None) -> None:
        """Ranks a checkpoint by its score, if that was measured."""
        if self._best is None:
            return
        self._best.scores.pop(step, None)
        if record is None or record.get(BEST) is not None:
            self._best.scores[step] = record[BEST] if record else None

    def save(self, step: int, state: TrainState, record: dict[str, Any], score: float | None) -> str:
        """Starts saving a global state and a JSON record; returns once the state is copied off the devices.

        Returns:
          What went wrong with this checkpoint or the previous one, if training can continue; empty if all is well.

        Raises:
          UserError: the copies of the state differ between devices; or saving failed in a run of several processes.
        """
        began = time.monotonic()
        sealed = seal(record | {'checksums': checksums(state), BEST: score})
        self._rank(step, sealed)
        before, self._problem = self._wait(), ''
        try:
            self._saving = step
            if jax.process_index() == 0:
                check_writable(self._directory)  # otherwise Orbax waits for minutes
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(sealed))
            )
        except Exception as error:  # Orbax and tensorstore raise many types for one problem
            self._problem = self._failed(error)
        self.waited_s += time.monotonic() - began
        return self._problem or before

    def busy(self) -> bool:
        """Whether a checkpoint is still being written, so that `save` would wait."""
        return self._saving is not None and self._manager.is_saving_in_progress()

    def _wait(self) -> str:
        """Waits for the checkpoint that is being saved. Returns what went wrong, or an empty text."""
        if self._saving is None:
            return self._problem
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            return self._failed(error)
        self._saved, self._saving = self._saving, None
        return ''

    def _failed(self, error: Exception) -> str:
        """Removes the remains of a checkpoint that could not be saved, and returns a description of the problem."""
        problem = f'step {self._saving} could not be saved in {self._directory} ({_reason(error)})'
        self._saving = None
        self._away = _is_away(self._directory)
        if jax.process_count() > 1:  # the processes are no longer in step at Orbax's barriers
            raise self._error(problem) from error
        self._usable = False
        try:
            if self._directory.exists():
                self._manager = self._open()  # this removes what was partly written
                self._usable = True
        except Exception as again:
            problem += f'; the folder cannot be reopened either ({_reason(again)})'
        return problem

    def _error(self, problem: str) -> UserError:
        outcome = f'it resumes from step {self._saved}' if self._saved else 'it starts again'
        if self._away:
            return RestartError(f'{problem}\nrun the same command when the folder is back: {outcome}')
        return UserError(f'{problem}\nfree some space there, or fix the folder, and run the same command: {outcome}')

    def finish(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
          UserError: the checkpoint could not be saved.
        """
        began = time.monotonic()
        self._problem = self._wait()
        self.waited_s += time.monotonic() - began
        if self._problem:
            raise self._error(self._problem)

    def newest(
        self, like: TrainState, mesh: Mesh, accepted: Mapping[str, Collection[Any]], specs: Specs = REPLICATED
    ) -> Checkpoint | None:
        """Restores the newest intact checkpoint; None if there are no checkpoints.

        Newer checkpoints that are damaged are moved to the folder `damaged` beside the checkpoints.

        Args:
          like: expected shapes and dtypes.
          mesh: all devices.
          accepted: for names in the record, the values that it may have.
          specs: placement of the state on the devices, whatever it was when the state was saved.

        Raises:
          UserError: there are checkpoints, but none is intact.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, record = self._read(step, like, mesh, specs)
                for name, values in accepted.items():
                    if name in record and record[name] not in values:
                        raise DamagedError(f'it belongs to another run: its {name} is {record[name]}')
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            if damaged:
                self._move_away(damaged)
            self._saved = step
            return Checkpoint(step, state, record, damaged)
        if damaged:
            raise self._unreadable(damaged)
        return None

    def restore(
        self, step: int, like: TrainState, mesh: Mesh, specs: Specs = REPLICATED
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores the state of a checkpoint on a mesh, and its record.

        Args:
          step: step of a completed checkpoint.
          like: expected shapes and dtypes.
          mesh: all devices.
          specs: placement of the state on the devices, whatever it was when the state was saved.

        Raises:
          UserError: the checkpoint cannot be read as this state.
        """
        try:
            return self._read(step, like, mesh, specs)
        except DamagedError as error:
            raise self._unreadable({step: str(error)}) from error

    def saved_params(self, step: int) -> optax.Params:
        """Shapes and dtypes of the online encoder's saved parameters, read without a config.

        Raises:
          UserError: the checkpoint cannot be read.
        """
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.metadata(self._directory / f'{step:08d}' / 'state').item_metadata.tree['params']
        except Exception as error:  # Orbax and tensorstore raise many types for one problem
            raise self._unreadable({step: _reason(error)}) from error

    def _read(self, step: int, like: TrainState, mesh: Mesh, specs: Specs) -> tuple[TrainState, dict[str, Any]]:
        abstract = shapes(like, mesh, specs)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore())
            )
        except Exception as error:  # Orbax and tensorstore raise many types for one problem
            raise DamagedError(_reason(error)) from error
        state, record = restored['state'], restored['run']
        if not is_sealed(record):
            raise DamagedError('its record is damaged')
        found, saved = checksums(state), record['checksums']
        changed = [name for name in found if found[name] != saved.get(name)]
        if changed or len(found) != len(saved):
            raise DamagedError(f'{", ".join(changed[:2])}: differs from what was saved')
        return state, record

    def _unreadable(self, damaged: Mapping[int, str]) -> UserError:
        (step, reason), *others = damaged.items()
        also = ''.join(f'; neither can {other:08d}' for other, _ in others)
        return UserError(
            f'{self._directory}/{step:08d}: cannot be read as a checkpoint of this config ({reason}){also}\n'
            'nothing was changed; restore it, or move it away to resume without it, or start in a new --workdir'
        )

    def _move_away(self, damaged: Mapping[int, str]) -> None:
        """Moves checkpoints to `damaged`, out of the way of new checkpoints of the same steps."""
        if jax.process_index() == 0:
            aside = self._directory.parent / 'damaged'
            aside.mkdir(exist_ok=True)
            for step in damaged:
                path, number = aside / f'{step:08d}', 0
                while path.exists():
                    number += 1
                    path = aside / f'{step:08d}.{number}'
                (self._directory / f'{step:08d}').rename(path)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices('dualcl/damaged')
        self._manager.reload()

    def close(self) -> None:
        """Waits until everything is on disk. Raises UserError if that failed."""
        try:
            self.finish()
        finally:
            if self._usable:
                self._manager.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and jax.process_count() > 1:
            return  # the other processes may never reach Orbax's barriers
        try:
            self.close()
        except UserError as problem:
            if error is None:
                raise
            error.add_note(str(problem))  # the error that ended the run is the one to raise


def _is_away(directory: epath.Path) -> bool:
    """Whether a folder that existed cannot be found now, for instance because its storage is not mounted."""
    try:
        return not directory.exists()
    except Exception:  # each remote store raises its own types
        return True


def _reason(error: Exception) -> str:
    """Describes an exception in one line."""
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code:
        return os.strerror(int(code[1]))
    lines = str(error).splitlines()
    return f'{type(error).__name__}: {lines[0][:200]}' if lines else type(error).__name__
