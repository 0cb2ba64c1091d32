"""Checkpoints by Orbax: global states without a device axis, saved while training continues.

Each checkpoint stores checksums of its state (`dualcl_jax.workdir.checksum`), which are computed on the devices before
it is saved and again after it is restored. A damaged checkpoint is skipped, reported and kept; one that cannot be read
for another reason stops the run (`dualcl_jax.workdir.read_checkpoint`). The record of a checkpoint also stores the
score of its encoder: Orbax would keep scores in an item of its own, which checkpoints of earlier versions lack.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import jax
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dualcl_jax.method.state import TrainState
from dualcl_jax.system.devices import REPLICATED, Specs
from dualcl_jax.system.errors import RestartError, UserError, is_temporary, reason_of
from dualcl_jax.system.files import absolute, check_writable
from dualcl_jax.system.processes.agreement import from_all, from_process_0
from dualcl_jax.workdir.checksum import checksums, seal
from dualcl_jax.workdir.read_checkpoint import (
    DAMAGED,
    DamagedError,
    failure,
    is_gone,
    outcome,
    read_checkpoint,
    read_record,
)

SCORE, MEASURED = 'knn_top1', 'measured_at'
"""The fields of a record with the score, the first of `dualcl_jax.workdir.metrics.SCORES` that the run has, and with
the step after which it was measured."""
LISTING_S, LISTING_PERIOD_S = 5.0, 0.5
"""How long processes that see different checkpoints wait until they see the same, and how often they look."""


class Checkpoint(NamedTuple):
    """An intact checkpoint that was restored, and the damaged ones that were skipped before it, by step with reason."""

    step: int
    state: TrainState
    record: dict[str, Any]
    damaged: Mapping[int, str]


class Best:
    """Orbax's policy that preserves the checkpoints with the highest score, and the later of equal ones.

    Of checkpoints with the same measurement, only the first counts, which is the nearest to what was measured.

    Args:
      n: how many checkpoints to preserve.

    Attributes:
      scores: the score by step; None for a checkpoint whose record cannot be read, which is preserved.
      measured: the step after which the score was measured, by step.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self.scores: dict[int, float | None] = {}
        self.measured: dict[int, int] = {}

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        known = {step: self.scores[step] for step in steps if step in self.scores}
        nearest: dict[int, tuple[float, int]] = {}  # by the step of a measurement, its score and the first checkpoint
        for step, score in sorted(known.items()):
            if score is not None:
                nearest.setdefault(self.measured[step], (score, step))
        ranked = sorted(nearest.values())
        best = {step for _, step in ranked[-self._n :]}
        return [step in best or known.get(step, 0.0) is None for step in steps]


class Checkpoints:
    """The checkpoints of a workdir. Every process must call every method.

    Use it as a context manager or call `close`: both wait until everything is on disk.

    Args:
      directory: local or remote folder, created if missing.
      keep: how many of the newest checkpoints to keep.
      keep_best: how many of the checkpoints with the highest scores to keep in addition, see `Best`.
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
            return read_record(self._path(step))
        except (OSError, ValueError, RecursionError, DamagedError):
            return None

    def _path(self, step: int) -> epath.Path:
        return self._directory / f'{step:08d}'

    def _rank(self, step: int, record: Mapping[str, Any] | None) -> None:
        """Ranks a checkpoint by its score, if one was measured since training began."""
        if self._best is None:
            return
        self._best.scores.pop(step, None)
        if record is None or (record.get(SCORE) is not None and record.get(MEASURED) != 0):
            self._best.scores[step] = record[SCORE] if record else None
            self._best.measured[step] = (record or {}).get(MEASURED, step)  # absent in records of earlier versions

    def save(
        self, step: int, state: TrainState, record: dict[str, Any], score: float | None, measured: int | None = None
    ) -> str:
        """Starts saving a global state and a JSON record; returns once the state is copied off the devices.

        Args:
          step: the steps that were taken.
          state: the global state.
          record: what to store about the run.
          score: the newest score of the encoder; None without any.
          measured: the step after which it was measured; None means `step`.

        Returns:
          What went wrong with this checkpoint or the previous one, if training can continue; empty if all is well.

        Raises:
          UserError: the copies of the state differ between devices; or saving failed in a run of several processes.
          RestartError: it failed in a run of several processes, and may succeed later.
        """
        began = time.monotonic()
        measured = step if measured is None else measured
        sealed = seal(record | {'checksums': checksums(state), SCORE: score, MEASURED: measured})
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
        problem = f'step {self._saving} could not be saved in {self._directory} ({reason_of(error, typed=True)})'
        self._saving = None
        self._away = is_gone(self._directory) or is_temporary(error)
        if jax.process_count() > 1:  # the processes are no longer in step at Orbax's barriers
            raise self._error(problem) from error
        self._usable = False
        try:
            if self._directory.exists():
                self._manager = self._open()  # this removes what was partly written
                self._usable = True
        except Exception as again:
            problem += f'; the folder cannot be reopened either ({reason_of(again, typed=True)})'
        return problem

    def _error(self, problem: str) -> UserError:
        outcome = f'it resumes from step {self._saved}' if self._saved else 'it starts again'
        if self._away:
            return RestartError(f'{problem}\nrun the same command when the folder can be written again: {outcome}')
        return UserError(f'{problem}\nfree some space there, or fix the folder, and run the same command: {outcome}')

    def finish(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
          UserError: the checkpoint could not be saved.
          RestartError: it could not be saved, but may be later.
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
          UserError: there are checkpoints, but none is intact, or one may not be read.
          RestartError: the newest one cannot be read now, or not by every process.
        """
        damaged: dict[int, str] = {}
        last: DamagedError | None = None
        for step in reversed(self._listed()):
            try:
                state, record = read_checkpoint(self._path(step), like, mesh, specs)
                for name, values in accepted.items():
                    if name in record and record[name] not in values:
                        raise DamagedError(f'it belongs to another run: its {name} is {record[name]}')
            except DamagedError as error:
                damaged[step], last = str(error), error
                continue
            if damaged:
                self._move_away(damaged)
            self._saved = step
            return Checkpoint(step, state, record, damaged)
        if damaged:
            raise self._unreadable(damaged) from last
        return None

    def _listed(self) -> list[int]:
        """The steps of the checkpoints, in order; all processes of the run list the same.

        Raises:
          RestartError: they do not, even after a while: network file systems show changes late.
        """
        end = time.monotonic() + LISTING_S
        while True:
            steps = ' '.join(map(str, sorted(self._manager.all_steps())))
            first, *others = from_all('checkpoints listed', f'{int(time.monotonic() < end)} {steps}')
            waits, _, listed = first.partition(' ')  # as long as process 0 does
            apart = [index for index, text in enumerate(others, start=1) if text.partition(' ')[2] != listed]
            if not apart:
                return [int(step) for step in listed.split()]
            if not int(waits):
                raise RestartError(
                    f'{self._directory}: process {apart[0]} sees other checkpoints than process 0; '
                    'run the same command again when every host sees the same files'
                )
            time.sleep(LISTING_PERIOD_S)
            self._manager.reload()

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
          RestartError: it cannot be read now.
        """
        self._problem = self._wait()
        try:
            return read_checkpoint(self._path(step), like, mesh, specs)
        except DamagedError as error:
            raise self._unreadable({step: str(error)}) from error

    def saved_params(self, step: int) -> optax.Params:
        """Shapes and dtypes of the online encoder's saved parameters, read without a config.

        Raises:
          UserError: the checkpoint cannot be read.
          RestartError: it cannot be read now.
        """
        path = self._path(step)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.metadata(path / 'state').item_metadata.tree['params']
        except Exception as error:  # Orbax and tensorstore raise many types for one problem
            kind, why = outcome(path, error), reason_of(error, typed=True)
            raise (self._unreadable({step: why}) if kind == DAMAGED else failure(path, kind, why)) from error

    def _unreadable(self, damaged: Mapping[int, str]) -> UserError:
        (step, why), *others = damaged.items()
        also = ''.join(f'; neither can {other:08d}' for other, _ in others)
        return UserError(
            f'{self._directory}/{step:08d}: cannot be read as a checkpoint of this config ({why}){also}\n'
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
                self._path(step).rename(path)
        from_process_0('checkpoints moved', '')  # the others wait until they are moved
        self._manager.reload()
        self._listed()  # a process that still saw them would not save their steps again

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
