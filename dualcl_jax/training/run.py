"""Opens a run: checks its config, loads the data, builds the model, and restores a checkpoint if there is one."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from dualcl_jax.data.text.tokens import FILE as TOKENIZER
from dualcl_jax.data.text.tokens import Tokenizer
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.monitor import KnnMonitor, Monitor, StsMonitor
from dualcl_jax.method.run_length import run_length
from dualcl_jax.method.state import TrainState, state_specs
from dualcl_jax.system.config import accepted_sha256, method_sha256
from dualcl_jax.system.devices import MAPPERS, Mapper, place
from dualcl_jax.system.files import write_bytes
from dualcl_jax.system.processes.heartbeat import CREATE, RESTORE
from dualcl_jax.training.plan import Plan, make_plan
from dualcl_jax.training.saves import SaveSchedule
from dualcl_jax.workdir.checkpoint import Checkpoint, Checkpoints
from dualcl_jax.workdir.folder import (
    check_same_images,
    location,
    lock,
    read_fingerprints,
    stored_config,
    write_config,
    write_data_report,
)
from dualcl_jax.workdir.init_from import with_encoder
from dualcl_jax.workdir.metrics import Record


class Past(NamedTuple):
    """What happened to a run before this start, from the checkpoint that it resumes from. A new run has no past.

    Attributes:
      trained_s: seconds that the run took.
      waiting: records that could not be written, see `MetricsLog`.
      skipped_steps: steps whose batches were skipped, see `dualcl_jax.training.health.Skipped`.
      extended_at: steps after which the length of the run changed.
      damaged: steps of newer checkpoints that could not be used, and why.
    """

    trained_s: float = 0.0
    waiting: tuple[Record, ...] = ()
    skipped_steps: tuple[int, ...] = ()
    extended_at: tuple[int, ...] = ()
    damaged: Mapping[int, str] = {}


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same while a run trains.

    Attributes:
      plan: the plan of the run; `plan.resumed_from` is the checkpoint that was restored.
      mapper: how the step runs on the devices.
      shapes: shapes and dtypes of the global state.
      embed: computes features of images with the method's encoder.
      monitors: measure the encoder while it trains.
      checkpoints: the checkpoints of the workdir.
      record: what every checkpoint stores about its run.
      past: what happened to the run before this start.
      began: `time.monotonic()` at this start.
      writes: whether this process writes files and prints; only one process of a run does.
    """

    plan: Plan
    mapper: Mapper
    shapes: TrainState
    embed: Embedder
    monitors: tuple[Monitor, ...]
    checkpoints: Checkpoints
    record: Mapping[str, Any]
    past: Past
    began: float
    writes: bool

    def wall_time_s(self) -> float:
        """Seconds that the run has taken until now, over all its starts."""
        return self.past.trained_s + time.monotonic() - self.began

    def measures_after(self, step: int) -> bool:
        """Whether the encoder is measured after a step."""
        period = self.plan.config.monitor.every_epochs * self.plan.steps_per_epoch
        return bool(self.monitors) and (step == self.plan.total_steps or step % period == 0)

    @property
    def saves_measured(self) -> bool:
        """Whether each state that is measured is saved too, so that the best ones can be kept."""
        return self.plan.config.checkpoint.keep_best > 0

    def save_schedule(self) -> SaveSchedule:
        """The schedule of the checkpoints that are saved even if nothing stops the run; its clock starts now."""
        settings = self.plan.config.checkpoint
        return SaveSchedule(
            total_steps=self.plan.total_steps,
            start_step=self.plan.start_step,
            every_steps=settings.every_steps,
            every_seconds=settings.every_seconds,
            busy=self.checkpoints.busy,
        )


def open_run(
    config: ConfigDict, workdir: str, *, extend: bool = False, enter: Callable[[str], object] = lambda phase: None
) -> tuple[Run, TrainState]:
    """Checks everything that can be checked before compiling, and returns the run and its global state.

    A new state is a pure function of the config. If the workdir has checkpoints, the state is that of the newest.
    Every process must call this.

    Args:
      config: validated (`dualcl_jax.method.validation`); it is not changed.
      workdir: local or remote folder.
      extend: whether the run in the workdir may become longer.
      enter: called with each phase that follows the plan: `RESTORE`, and `CREATE` for a new state.

    Raises:
      UserError: a mistake in the config, the data or the folder.
    """
    began = time.monotonic()
    plan = make_plan(config, workdir, writes=True, extend=extend)
    enter(RESTORE)
    writes = jax.process_index() == 0
    if writes:
        lock(plan.folder)
    checkpoints = _checkpoints(plan)
    record = {
        'data_fingerprint': plan.splits.train.fingerprint,
        'config_sha256': method_sha256(plan.config),
        'total_steps': plan.total_steps,
    }
    specs = state_specs(plan.method)
    stored = stored_config(plan.folder) or plan.config
    accepted = {'config_sha256': accepted_sha256(plan.config, stored)}
    shapes = jax.eval_shape(plan.create)
    checkpoint = checkpoints.newest(shapes, plan.mesh, accepted, specs)
    if checkpoint is None:
        enter(CREATE)
        plan, past, state = dataclasses.replace(plan, resumed_from=None), Past(), _new_state(plan)
    else:
        plan, past, state = dataclasses.replace(plan, resumed_from=checkpoint.step), _past(checkpoint), checkpoint.state
        fingerprint = plan.splits.train.fingerprint
        check_same_images(plan.folder, plan.config, checkpoint.record['data_fingerprint'], fingerprint)
        length = run_length(stored, len(plan.splits.train)).total_steps
        if checkpoint.record.get('total_steps', length) != plan.total_steps:
            past = past._replace(extended_at=(*past.extended_at, checkpoint.step))
    embed = Embedder(plan.method, plan.mesh)
    run = Run(
        plan=plan,
        mapper=MAPPERS[plan.config.parallel.mapper](plan.mesh, specs),
        shapes=shapes,
        embed=embed,
        monitors=_monitors(plan, embed),
        checkpoints=checkpoints,
        record=record,
        past=past,
        began=began,
        writes=writes,
    )
    if writes:
        _compare_test_images(plan)
        for name, content in plan.splits.train.kept_files.items():
            write_bytes(plan.folder / name, content)
        write_config(plan.folder, plan.config)
        write_data_report(plan.folder, plan.splits)
    return run, state


def _checkpoints(plan: Plan) -> Checkpoints:
    """The checkpoints of the workdir."""
    settings = plan.config.checkpoint
    return Checkpoints(plan.folder / 'checkpoints', keep=settings.keep, keep_best=settings.keep_best)


def _new_state(plan: Plan) -> TrainState:
    """The state before the first step: drawn from the seed, with the encoder of `init_from` if one is named."""
    state = place(jax.jit(plan.create)(), plan.mesh, state_specs(plan.method))
    path = plan.config.init_from
    return with_encoder(plan.method, state, path, plan.mesh) if path else state


def _past(checkpoint: Checkpoint) -> Past:
    """What a checkpoint stores about its run; earlier versions stored less."""
    found = checkpoint.record
    return Past(
        trained_s=found.get('wall_time_s', 0.0),
        waiting=tuple(found.get('waiting', ())),
        skipped_steps=tuple(found.get('skipped_steps', ())),
        extended_at=tuple(found.get('extended_at', ())),
        damaged=checkpoint.damaged,
    )


def _compare_test_images(plan: Plan) -> None:
    """Prints a note if the test images are not those on which the run was measured before."""
    before, test = read_fingerprints(plan.folder)[1], plan.splits.test
    if plan.resumed_from is not None and before is not None and test is not None and test.fingerprint != before:
        print(f'note: {location(plan.config)}: the test images have changed, so earlier accuracies are not comparable')


def _monitors(plan: Plan, embed: Embedder) -> tuple[Monitor, ...]:
    """The monitors of the encoder: kNN accuracy if there are labels, and STS-B dev if the config names it."""
    settings, found = plan.config.monitor, list[Monitor]()
    if not settings.every_epochs:
        return ()
    if plan.measures_accuracy:
        options = {name: settings[name] for name in ('k', 'temperature', 'bank', 'unseen')}
        found.append(KnnMonitor(embed, plan.splits, **options))
    if plan.similar is not None:
        definition = plan.splits.train.kept_files[TOKENIZER].decode()
        tokenizer = Tokenizer(definition, plan.config.text.length)
        found.append(StsMonitor(embed, tokenizer, plan.similar, plan.splits.train))
    return tuple(found)
