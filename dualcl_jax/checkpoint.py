"""Checkpoints by Orbax: global states without a device axis, saved while training goes on."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dualcl_jax.errors import UserError
from dualcl_jax.parallel import REPLICATED, Specs, shapes, to_host, whole
from dualcl_jax.state import TrainState

BEST = 'knn_top1'


class Checkpoints:
    """The checkpoints of a workdir. Every process calls every method.

    Args:
      directory: local or remote, made if missing.
      keep: how many of the newest stay.
      keep_best: how many of the best by kNN stay besides.
      read_only: nothing in the directory changes, neither what a run left there unfinished.
    """

    def __init__(self, directory: epath.Path, *, keep: int = 1, keep_best: int = 0, read_only: bool = False) -> None:
        policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(keep)]
        if keep_best:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics[BEST], n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        self._directory = directory
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                step_format_fixed_length=8,
                save_interval_steps=0 if read_only else 1,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def latest_step(self) -> int | None:
        """The newest finished checkpoint's step; None without any."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, run: dict[str, Any], knn_top1: float | None) -> None:
        """Starts saving a global state and a JSON record; returns once the state is off the devices."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)),
            metrics=None if knn_top1 is None else {BEST: knn_top1},
        )

    def restore(
        self, step: int, like: TrainState, mesh: Mesh, specs: Specs = REPLICATED
    ) -> tuple[TrainState, dict[str, Any]]:
        """A saved state on a mesh, and its record.

        Args:
          step: a finished checkpoint.
          like: shapes and dtypes to expect.
          mesh: all devices.
          specs: how the state is to lie on them, however it lay when it was saved.

        Raises:
          UserError: the checkpoint cannot be read as this state.
        """
        abstract = shapes(like, mesh, specs)
        with self._readable(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore())
            )
        return restored['state'], restored['run']

    def saved_params(self, step: int) -> optax.Params:
        """Shapes and dtypes of the online encoder's saved parameters, which need no config to be known.

        Raises:
          UserError: the checkpoint cannot be read.
        """
        with self._readable(step), ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.metadata(self._directory / f'{step:08d}' / 'state').item_metadata.tree['params']

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Turns whatever comes of a damaged checkpoint into a UserError."""
        try:
            yield
        except Exception as error:  # Orbax and tensorstore raise many types for one fact
            raise UserError(
                f'{self._directory}/{step:08d}: cannot be read as a checkpoint of this config '
                f'({type(error).__name__}: {str(error).splitlines()[0][:200]})\n'
                'move it away to go on from the checkpoint before it, or start in a new --workdir'
            ) from error

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def state_sha256(state: TrainState) -> str:
    """SHA-256 over path, dtype, shape and bytes of every array of a state, in the order of the paths."""
    digest = hashlib.sha256()
    on_host = to_host(whole(state))
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(on_host)]
    for path, leaf in sorted(leaves, key=lambda item: item[0]):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{path}:{array.dtype}:{array.shape};'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
