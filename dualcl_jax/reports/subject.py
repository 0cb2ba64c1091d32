"""The subject of a report: a run after one of its steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dualcl_jax.data import Splits, data_config, load
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.method.build import Method, build_method
from dualcl_jax.method.run_length import run_length
from dualcl_jax.method.state import TrainState
from dualcl_jax.reports.samples import Samples, take_samples
from dualcl_jax.system.config import override
from dualcl_jax.system.devices import to_host
from dualcl_jax.workdir.folder import check_same_images, read_summary
from dualcl_jax.workdir.metrics import read_records
from dualcl_jax.workdir.saved_run import open_saved_run


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run to report on: one that has just ended, or one opened from its folder.

    Attributes:
      folder: the workdir.
      config: the resolved config.
      method: the method of the config, with the run's schedules.
      splits: the data.
      total_steps: the length of the run.
      steps_per_epoch: the length of an epoch.
      state: the state of a checkpoint as NumPy arrays.
      records: the records of `metrics.jsonl` up to the step of the state.
      versions: the versions of hardware and software that it ran on; empty if unknown.
    """

    folder: epath.Path
    config: ConfigDict
    method: Method
    splits: Splits
    total_steps: int
    steps_per_epoch: int
    state: TrainState
    records: Sequence[Mapping[str, Any]]
    versions: Mapping[str, str]

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return int(self.state.step)


def read_subject(workdir: str, paths: Sequence[str] = ()) -> tuple[Subject, Samples]:
    """Reads a run from its newest checkpoint, and computes its encoder's features of its own data.

    Args:
      workdir: local or remote folder of the run.
      paths: overrides of `data.path`, `data.data_dir` and `data.labels`, if the data have moved.

    Raises:
      UserError: there is no run with a checkpoint, or its data are missing or have changed.
    """
    run = open_saved_run(workdir)
    override(run.config, paths)
    splits = load(data_config(run.config, run.folder), validate=True)
    check_same_images(run.folder, run.config, run.data_fingerprint, splits.train.fingerprint)
    epoch, total_steps = run_length(run.config, len(splits.train))
    samples = take_samples(Embedder(run.method, run.mesh), run.state.variables, splits)
    summary = read_summary(run.folder)
    subject = Subject(
        folder=run.folder,
        config=run.config,
        method=build_method(
            run.config, run.method.views, total_steps=total_steps, steps_per_epoch=epoch, num_devices=1
        ),
        splits=splits,
        total_steps=total_steps,
        steps_per_epoch=epoch,
        state=to_host(run.state),
        records=[record for record in read_records(run.folder / 'metrics.jsonl') if record['step'] <= run.step],
        versions=summary['versions'] if summary else {},
    )
    return subject, samples
