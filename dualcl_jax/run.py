"""A run before its loop: everything checked, loaded, built and, where there is a checkpoint, restored."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dualcl_jax.checkpoint import Checkpoints
from dualcl_jax.config import flatten, method_sha256
from dualcl_jax.data import Batch, Splits, load
from dualcl_jax.data.encoded import EncodedSource
from dualcl_jax.data.order import steps_per_epoch
from dualcl_jax.errors import UserError
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.monitor import KnnMonitor, can_monitor
from dualcl_jax.finished import saved_steps
from dualcl_jax.hosts import check_same_data, check_shared
from dualcl_jax.init_from import check_encoder, with_encoder
from dualcl_jax.method import Method, build_method, crop_recipe, resolved_selector
from dualcl_jax.metrics import Record
from dualcl_jax.negatives import AUTO, EXACT
from dualcl_jax.parallel import MAPPERS, Mapper, device_mesh, place
from dualcl_jax.state import TrainState, create_train_state, state_specs
from dualcl_jax.validation import validate, validate_devices, validate_schedule
from dualcl_jax.workdir import (
    channel_statistics,
    check_same_run,
    existing_or_new,
    lock,
    open_workdir,
    stored_config,
    write_config,
    write_data_report,
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do, checked, before anything is written, compiled or trained.

    Attributes:
      config: validated and resolved.
      folder: the workdir.
      splits: the data.
      mesh: all devices.
      method: what the config chooses, as functions and numbers.
      steps_per_epoch, total_steps: lengths.
      resumed_from: step of the checkpoint that the run goes on from; None for a new run.
    """

    config: ConfigDict
    folder: epath.Path
    splits: Splits
    mesh: Mesh
    method: Method
    steps_per_epoch: int
    total_steps: int
    resumed_from: int | None

    @property
    def start_step(self) -> int:
        """How many steps were taken before."""
        return self.resumed_from or 0

    def create(self) -> TrainState:
        """The state of a new run."""
        return create_train_state(self.method, self.splits.train.image_shape[2])

    def batch(self) -> Batch:
        """Shapes and dtypes of a whole batch, as the loader makes it."""
        source, size = self.splits.train, self.config.train.batch_size
        images = (
            crop_recipe(self.method.views, self.method.image_size).shape
            if isinstance(source, EncodedSource)
            else source.image_shape
        )
        column = jax.ShapeDtypeStruct((size,), jnp.int32)
        return Batch(jax.ShapeDtypeStruct((size, *images), jnp.uint8), column, column, column)


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
      skipped_steps: whose batches were passed over until then, see `nonfinite.py`.
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


def make_plan(config: ConfigDict, workdir: str, *, writes: bool) -> Plan:
    """Checks everything that can be checked before compiling. Where `writes`, the workdir is made.

    Raises:
      UserError: something in the config, the data or the folder that the user can mend.
    """
    validate(config)
    mesh = device_mesh()
    validate_devices(config, mesh.devices.size)
    folder = open_workdir(workdir) if writes else existing_or_new(workdir)
    if writes:
        check_shared(folder, config.parallel.timeout_s)
    splits = load(config.data, validate=True)
    if writes:
        check_same_data(config.data.name, ' '.join(split.fingerprint for split in splits if split is not None))
    if not config.data.mean:
        config.data.mean, config.data.std = channel_statistics(splits.train)
    channels = splits.train.image_shape[2]
    if len(config.data.mean) not in (1, channels):
        raise UserError(
            f'config.data.mean={config.data.mean}: {len(config.data.mean)} numbers, and the images of '
            f'{splits.train.name} have {channels} channels; give {channels}, or () to have them measured'
        )
    config.negatives.selector = _selector(config, folder, mesh)
    check_same_run(folder, config)
    epoch = steps_per_epoch(len(splits.train), config.train.batch_size)
    total_steps = config.train.steps or config.train.epochs * epoch
    validate_schedule(config, total_steps, epoch)
    method = build_method(config, total_steps=total_steps, steps_per_epoch=epoch, num_devices=mesh.devices.size)
    plan = Plan(config, folder, splits, mesh, method, epoch, total_steps, max(saved_steps(folder), default=None))
    if config.init_from and plan.resumed_from is None:
        check_encoder(jax.eval_shape(plan.create).params, config.init_from)
    return plan


def _selector(config: ConfigDict, folder: epath.Path, mesh: Mesh) -> str:
    """The selector's name; one chosen for the config stays chosen when its run goes on, on whatever device."""
    before = stored_config(folder)
    chosen = dict(flatten(before)).get('negatives.selector') if before is not None else None
    if config.negatives.selector == AUTO and chosen in EXACT:
        return chosen
    return resolved_selector(config, mesh.devices.flat[0].platform)


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
