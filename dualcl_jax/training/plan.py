"""The plan of a run: everything that can be checked before anything is compiled or trained."""

import dataclasses

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dualcl_jax.data import Batch, Source, Splits, batch_spec, example_spec, load
from dualcl_jax.data.images.source import KIND as IMAGES
from dualcl_jax.data.images.source import image_shape
from dualcl_jax.data.images.statistics import channel_statistics
from dualcl_jax.data.order import steps_per_epoch
from dualcl_jax.method.build import Method, build_method, resolved_selector
from dualcl_jax.method.negatives.selectors import AUTO, EXACT
from dualcl_jax.method.state import TrainState, create_train_state
from dualcl_jax.method.validation import validate, validate_devices, validate_schedule
from dualcl_jax.method.views import VIEWS
from dualcl_jax.system.config import flatten
from dualcl_jax.system.devices import device_mesh
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.processes.agreement import check_same_data, check_shared
from dualcl_jax.training.init_from import check_encoder
from dualcl_jax.workdir.folder import (
    check_same_run,
    existing_or_new,
    open_workdir,
    stored_config,
)
from dualcl_jax.workdir.saved_run import saved_steps


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
        return create_train_state(self.method)

    def batch(self) -> Batch:
        """Shapes and dtypes of a whole batch, as the loader makes it."""
        example = example_spec(self.splits.train, self.method.views.host_recipe)
        return batch_spec(example, self.config.train.batch_size)


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
    if splits.train.kind == IMAGES:
        _set_statistics(config, splits.train)
    config.negatives.selector = _selector(config, folder, mesh)
    check_same_run(folder, config)
    epoch = steps_per_epoch(len(splits.train), config.train.batch_size)
    total_steps = config.train.steps or config.train.epochs * epoch
    validate_schedule(config, total_steps, epoch)
    views = VIEWS[splits.train.kind](config, splits.train.examples(np.arange(0)))
    method = build_method(config, views, total_steps=total_steps, steps_per_epoch=epoch, num_devices=mesh.devices.size)
    plan = Plan(config, folder, splits, mesh, method, epoch, total_steps, max(saved_steps(folder), default=None))
    if config.init_from and plan.resumed_from is None:
        check_encoder(jax.eval_shape(plan.create).params, config.init_from)
    return plan


def _set_statistics(config: ConfigDict, train: Source) -> None:
    """Measures mean and std of the images where the config has none. Raises UserError where it has too many or few."""
    if not config.data.mean:
        config.data.mean, config.data.std = channel_statistics(train)
    channels = image_shape(train)[2]
    if len(config.data.mean) not in (1, channels):
        raise UserError(
            f'config.data.mean={config.data.mean}: {len(config.data.mean)} numbers, and the images of '
            f'{train.name} have {channels} channels; give {channels}, or () to have them measured'
        )


def _selector(config: ConfigDict, folder: epath.Path, mesh: Mesh) -> str:
    """The selector's name; one chosen for the config stays chosen when its run goes on, on whatever device."""
    before = stored_config(folder)
    chosen = dict(flatten(before)).get('negatives.selector') if before is not None else None
    if config.negatives.selector == AUTO and chosen in EXACT:
        return chosen
    return resolved_selector(config, mesh.devices.flat[0].platform)
