"""A run before its loop: everything checked, loaded, built and, where there is a checkpoint, restored."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.monitor import KnnMonitor, can_monitor
from dualcl_jax.method.state import TrainState, state_specs
from dualcl_jax.system.config import method_sha256
from dualcl_jax.system.devices import MAPPERS, Mapper, place
from dualcl_jax.system.errors import UserError
from dualcl_jax.training.init_from import with_encoder
from dualcl_jax.training.plan import Plan, make_plan
from dualcl_jax.workdir.checkpoint import Checkpoints
from dualcl_jax.workdir.folder import (
    lock,
    write_config,
    write_data_report,
)
from dualcl_jax.workdir.metrics import Record


@dataclasses.dataclass(frozen=True)
class Run(Plan):
    """What stays the same while a run trains.

    Attributes:
      mapper: how the step runs on the devices.
      embed: features of images by the method's encoder.
      monitor: kNN accuracy; None where it is off or there are no labels.
      checkpoints: of the workdir.
      damaged: steps of checkpoints that could not be used, and why.
      record: what every checkpoint says of its run.
      trained_s: seconds the run took before the checkpoint it goes on from.
      waiting: records of that time that could not be written, see `MetricsLog`.
      skipped_steps: whose batches were passed over until then, see `dualcl_jax.training.health.Skipped`.
      writes: whether this process writes files and prints: one process of a run does.
    """

    mapper: Mapper
    embed: Embedder
    monitor: KnnMonitor | None
    checkpoints: Checkpoints
    damaged: Mapping[int, str]
    record: Mapping[str, Any]
    trained_s: float
    waiting: tuple[Record, ...]
    skipped_steps: tuple[int, ...]
    writes: bool


def open_run(config: ConfigDict, workdir: str) -> tuple[Run, TrainState]:
    """Checks everything that can be checked before compiling, and gives the run and its global state.

    A new state is a pure function of the config; one with a checkpoint in the workdir is restored from the newest.

    Raises:
      UserError: something in the config, the data or the folder that the user can mend.
    """
    plan = make_plan(config, workdir, writes=True)
    folder, splits, mesh, method = plan.folder, plan.splits, plan.mesh, plan.method
    writes = jax.process_index() == 0
    if writes:
        lock(folder)
    checkpoints = Checkpoints(
        (folder / 'checkpoints').resolve(), keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best
    )
    config_sha256, specs = method_sha256(config), state_specs(method)
    checkpoint = checkpoints.newest(jax.eval_shape(plan.create), mesh, {'config_sha256': config_sha256}, specs)
    found: dict[str, Any] = {}
    if checkpoint is None:
        state = place(jax.jit(plan.create)(), mesh, specs)
        if config.init_from:
            state = with_encoder(state, config.init_from, mesh)
    else:
        state, found = checkpoint.state, checkpoint.record
        if found['data_fingerprint'] != splits.train.fingerprint:
            raise UserError(
                f'data.name={config.data.name}: not the images that {folder} was trained on\n'
                'restore the data, or start in a new --workdir'
            )

    embed, monitor = Embedder(method, mesh), None
    if config.monitor.every_epochs and can_monitor(splits):
        settings = config.monitor
        monitor = KnnMonitor(embed, splits, k=settings.k, temperature=settings.temperature, bank=settings.bank)
    if writes:
        write_config(folder, config)
        write_data_report(folder, splits)
    run = Run(
        config=config,
        folder=folder,
        splits=splits,
        mesh=mesh,
        method=method,
        mapper=MAPPERS[config.parallel.mapper](mesh, specs),
        embed=embed,
        monitor=monitor,
        checkpoints=checkpoints,
        steps_per_epoch=plan.steps_per_epoch,
        total_steps=plan.total_steps,
        resumed_from=checkpoint.step if checkpoint else None,
        damaged=checkpoint.damaged if checkpoint else {},
        record={'data_fingerprint': splits.train.fingerprint, 'config_sha256': config_sha256},
        trained_s=found.get('wall_time_s', 0.0),
        waiting=tuple(found.get('waiting', ())),
        skipped_steps=tuple(found.get('skipped_steps', ())),
        writes=writes,
    )
    return run, state
