"""The plan of a run: everything that can be checked before anything is compiled or trained."""

import dataclasses
import functools
import math

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from dualcl_jax.data import Batch, Source, Splits, batch_spec, data_config, example_spec, load
from dualcl_jax.data.images import photo_patches
from dualcl_jax.data.images.left_out import unread
from dualcl_jax.data.images.source import image_shape
from dualcl_jax.data.images.statistics import channel_statistics, values_in_use
from dualcl_jax.evaluators.benchmarks.sts import Pairs, read_dev
from dualcl_jax.evaluators.monitor import can_monitor
from dualcl_jax.method.build import Method, build_method
from dualcl_jax.method.choices import FIRST_LOOK, TYPICAL_IMAGES, Machine, describe, fill, open_fields
from dualcl_jax.method.resolve import Statistics, resolve, resolve_data
from dualcl_jax.method.run_length import run_length
from dualcl_jax.method.state import TrainState, create_train_state
from dualcl_jax.method.validation import validate, validate_devices, validate_kind, validate_schedule, validate_sizes
from dualcl_jax.method.views import VIEWS
from dualcl_jax.models.norm import LOCAL
from dualcl_jax.system.devices import device_mesh
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.kinds import IMAGES, TEXT
from dualcl_jax.system.machine import multiplies_bfloat16
from dualcl_jax.system.processes.agreement import check_same_data, check_shared
from dualcl_jax.workdir.folder import (
    check_read,
    check_same_images,
    check_same_run,
    check_storable,
    existing_or_new,
    open_workdir,
    read_fingerprints,
    stored_config,
)
from dualcl_jax.workdir.init_from import adopt_geometry, check_encoder
from dualcl_jax.workdir.saved_run import devices_of, saved_steps
from dualcl_jax.workdir.trackers import check_tracker


@dataclasses.dataclass(frozen=True)
class Plan:
    """The checked plan of a run, before anything is written, compiled or trained.

    Attributes:
      config: the validated and resolved config.
      folder: the workdir.
      splits: the data.
      mesh: all devices.
      method: what the config chooses, as functions and numbers.
      steps_per_epoch, total_steps: the lengths of an epoch and of the run.
      resumed_from: step of the checkpoint that the run resumes from; None for a new run.
      similar: the pairs of STS-B dev on which an encoder of text is measured; None if the config names none.
      origin: describes the encoder that a new run starts from; empty if its parameters are random.
      chosen: describes the choices for the fields that the config leaves open; empty if it leaves none open.
    """

    config: FrozenConfigDict
    folder: epath.Path
    splits: Splits
    mesh: Mesh
    method: Method
    steps_per_epoch: int
    total_steps: int
    resumed_from: int | None
    similar: Pairs | None = None
    origin: str = ''
    chosen: str = ''

    @property
    def start_step(self) -> int:
        """The number of steps taken before this start."""
        return self.resumed_from or 0

    @functools.cached_property
    def measures_accuracy(self) -> bool:
        """Whether the run measures its kNN accuracy."""
        settings = self.config.monitor
        return settings.every_epochs > 0 and can_monitor(self.splits, settings.unseen)

    @property
    def first_look(self) -> int:
        """The step after which accuracy is first informative; 0 for a run that measures none, or of given length."""
        return math.ceil(FIRST_LOOK * self.total_steps) if self.chosen and self.measures_accuracy else 0

    def create(self) -> TrainState:
        """The state of a new run."""
        return create_train_state(self.method)

    def batch(self) -> Batch:
        """Shapes and dtypes of a whole batch, as the loader makes it."""
        example = example_spec(self.splits.train, self.method.views.host_recipe)
        return batch_spec(example, self.config.train.batch_size)


def make_plan(config: ConfigDict, workdir: str, *, writes: bool, extend: bool = False) -> Plan:
    """Loads the data, resolves the config and checks everything that can be checked before compiling.

    Args:
      config: validated; it is not changed.
      workdir: local or remote folder.
      writes: whether the run will write into the workdir, which is then created. Every process of the run must call
        this.
      extend: whether the run in the workdir may become longer.

    Raises:
      UserError: a mistake in the config, the data or the folder.
      RestartError: files that the run was trained on cannot be read now.
    """
    mesh = device_mesh()
    validate_devices(config, mesh.devices.size)
    check_tracker(config.log.tracker)
    similar = read_dev(config.sts.path) if config.sts.path else None
    if writes:
        folder = open_workdir(workdir)
        check_shared(folder, config.parallel.timeout_s)
    else:
        check_storable(workdir)
        folder = existing_or_new(workdir)
    stored = stored_config(folder)
    if stored is None and config.data.name == photo_patches.NAME:
        photo_patches.check_not_divided(config.data.validation_fraction)
    config = adopt_geometry(config, stored)
    validate_sizes(config)
    opened, machine = open_fields(config), _machine(mesh)
    splits = _load_data(config, folder, machine, stored, writes=writes)
    resumed_from = max(saved_steps(folder), default=None)
    if resumed_from is not None:
        check_read(folder, config, splits.train)
    resolved = _resolved(config, splits.train, machine, stored)
    check_same_run(folder, stored, resolved, extend=extend)
    validate_devices(resolved, mesh.devices.size)  # choices of the stored run may be for another number of devices
    _check_local_norm(resolved, folder, resumed_from, mesh.devices.size)
    epoch, total_steps = run_length(resolved, len(splits.train))
    if extend:
        _check_longer(folder, stored, len(splits.train), total_steps)
    validate_schedule(resolved, total_steps, epoch)
    views = VIEWS[splits.train.kind](resolved, splits.train.examples(np.arange(0)))
    method = build_method(
        resolved, views, total_steps=total_steps, steps_per_epoch=epoch, num_devices=mesh.devices.size
    )
    chosen = describe(resolved, opened, len(splits.train), machine)
    plan = Plan(resolved, folder, splits, mesh, method, epoch, total_steps, resumed_from, similar, chosen=chosen)
    if plan.resumed_from is not None and (trained_on := read_fingerprints(folder)[0]) is not None:
        check_same_images(folder, resolved, trained_on, splits.train.fingerprint)
    if not resolved.init_from or plan.resumed_from is not None:
        return plan
    origin = check_encoder(method, jax.eval_shape(plan.create), resolved.init_from)
    return dataclasses.replace(plan, origin=origin)


def _machine(mesh: Mesh) -> Machine:
    """The machine of the run. Several processes, whose processors may differ, are assumed not to multiply bfloat16."""
    bfloat16 = jax.process_count() == 1 and multiplies_bfloat16()
    return Machine(mesh.devices.flat[0].platform, mesh.devices.size, bfloat16)


def _load_data(
    config: ConfigDict, folder: epath.Path, machine: Machine, stored: ConfigDict | None, *, writes: bool
) -> Splits:
    """Loads the data, and checks that the config is for examples of their kind.

    With `writes`, every process of the run must call it: it also checks that all of them found the same data.

    Raises:
      UserError: a mistake in the config or the data.
    """
    settled = fill(config, TYPICAL_IMAGES, machine, stored)  # only its data fields are final
    data = data_config(settled, folder if stored is not None else None)
    data.update(resolve_data(config, stored))
    data.shared = str(folder) if writes else ''
    splits = load(data, validate=True)
    kind, name = splits.train.kind, splits.train.name
    if config.sts.path and kind != TEXT:
        raise UserError(
            f'config.sts.path={config.sts.path}: is only for encoders of text, but {name} holds {kind}; leave it empty'
        )
    validate_kind(config, kind, name)
    opened = open_fields(config)
    if opened and kind != IMAGES:
        raise UserError(f'config.{opened[0]}: is chosen automatically for images only; set a value')
    if writes:
        fingerprints = ' '.join(split.fingerprint for split in splits if split is not None)
        check_same_data(config.data.name, fingerprints, unread(splits.train.report))
    return splits


def _resolved(config: ConfigDict, train: Source, machine: Machine, stored: ConfigDict | None) -> FrozenConfigDict:
    """Resolves a config for the training split and the machine. Raises UserError if a value chosen does not fit."""
    value_range = values_in_use(config.data, train)
    resolved = resolve(
        config,
        platform=machine.platform,
        num_devices=machine.num_devices,
        num_processes=jax.process_count(),
        num_images=len(train),
        bfloat16=machine.bfloat16,
        statistics=_statistics(config, train, value_range),
        value_range=value_range,
        vocabulary=_vocabulary(train),
        stored=stored,
    )
    if open_fields(config):
        validate(resolved)
    return resolved


def _check_local_norm(config: FrozenConfigDict, folder: epath.Path, step: int | None, num_devices: int) -> None:
    """Checks that a run whose stored `model.norm` is 'local' resumes on as many devices as it was trained on.

    Only runs of version 0.1.0 store 'local'.

    Raises:
      UserError: its checkpoint was saved on another number of devices.
    """
    if config.model.norm != LOCAL or step is None:
        return
    before = devices_of(folder, step)
    if before not in (None, num_devices):
        raise UserError(
            f"model.norm='local': {folder} was trained on {before} devices, each a group of the batch statistics; "
            f'resume it on {before} devices, not {num_devices}'
        )


def _check_longer(folder: epath.Path, stored: ConfigDict | None, num_examples: int, total_steps: int) -> None:
    """Raises UserError if there is no run to extend, or if it is longer than `total_steps`."""
    if stored is None:
        raise UserError(f'--extend: {folder} holds no run; leave the flag out to start one')
    before = run_length(stored, num_examples).total_steps
    if total_steps < before:
        raise UserError(
            f'--extend: the run in {folder} has {before:,} steps, but this config only {total_steps:,}; '
            'raise train.epochs or train.steps'
        )


def _vocabulary(train: Source) -> int:
    """The number of tokens of the tokenizer for text; 0 for examples of another kind."""
    return int((train.report or {})['tokens']['vocabulary']) if train.kind == TEXT else 0


def _statistics(config: ConfigDict, train: Source, value_range: tuple[float, ...]) -> Statistics | None:
    """Mean and standard deviation per channel: those of the config, or those of the images if it has none.

    None if the examples are not images.

    Raises:
      UserError: the config has some, but not one for each channel.
    """
    if train.kind != IMAGES:
        return None
    mean, std = config.data.mean, config.data.std
    if not mean:
        return channel_statistics(train, value_range)
    channels = image_shape(train)[2]
    if len(mean) not in (1, channels):
        raise UserError(
            f'config.data.mean={mean}: {len(mean)} numbers, but the images of {train.name} have {channels} channels; '
            f'give {channels}, or () to have them measured'
        )
    return mean, std
