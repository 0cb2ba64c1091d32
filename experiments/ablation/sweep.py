"""What a sweep is: arms that are compared, each a change of one base config, run with the same seeds and budget."""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from dualcl_jax.system.config import load_config, override
from dualcl_jax.system.errors import UserError

REPOSITORY = Path(__file__).parents[2]
OF_THE_SWEEP = ('seed', 'train.steps', 'train.epochs')
"""Fields that follow from seeds and budget."""
PLACES = ('data.data_dir', 'data.path')
"""Fields that say where data lie on this machine: no part of what is stored."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method among those that are compared.

    Attributes:
      name: letters, digits, '_', '.' and '-'; it names folders.
      fields: 'field=value' of the config, on top of the sweep's base.
      x: place on the axis of the sweep's curve, if it has one.
      series: which curve, where there are several.
      levels: of each factor, where arms combine them: tables then tell what each is worth over the arms that have some.
    """

    name: str
    fields: tuple[str, ...] = ()
    x: float | None = None
    series: str = ''
    levels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Arms that are compared at an equal budget; `get_sweep()` of a file in `experiments/sweeps` returns one.

    Attributes:
      title: what is asked, in a line.
      config: the config file, relative to the repository.
      base: 'field=value' of every arm.
      arms: what is compared.
      baseline: name of the arm that the others are compared with.
      seeds: of every arm; a seed means the same initial encoder, order of images and views in all of them.
      budget: images that pass through the pair of encoders in a run. A step of both view orders takes two passes an
        image, one-way one: the number of steps of an arm follows.
      x_label: of the axis of `Arm.x`.
    """

    title: str
    config: str
    base: tuple[str, ...]
    arms: tuple[Arm, ...]
    baseline: str
    seeds: tuple[int, ...]
    budget: int
    x_label: str = ''


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
      arm, seed: which.
      fields: all 'field=value' over the config file, in order.
      steps: of training.
      passes: images that pass through the pair of encoders.
      knn: k and τ of the accuracy that is reported.
    """

    arm: str
    seed: int
    fields: tuple[str, ...]
    steps: int
    passes: int
    knn: tuple[int, float]

    @property
    def name(self) -> str:
        return f'{self.arm}-seed{self.seed}'

    @property
    def stored_fields(self) -> list[str]:
        """What a record says of the fields: all but places of this machine."""
        return [field for field in self.fields if field.partition('=')[0] not in PLACES]


def load_sweep(path: str) -> Sweep:
    """Runs `get_sweep()` of a file, which is Python and trusted.

    Raises:
      UserError: no such file, it fails, or what it returns is no sweep.
    """
    spec = importlib.util.spec_from_file_location('dualcl_jax_sweep', path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f'{path}: no such sweep; choose one of experiments/sweeps/*.py')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        sweep = module.get_sweep()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise UserError(f'{path}: {type(error).__name__}: {error}') from error
    if not isinstance(sweep, Sweep):
        raise UserError(f'{path}: get_sweep() must return an experiments.ablation.sweep.Sweep')
    names = [arm.name for arm in sweep.arms]
    for name in names:
        if not re.fullmatch(r'[\w.-]+', name) or names.count(name) > 1:
            raise UserError(f'{path}: arm {name!r}: names are of letters, digits, _, . and -, each once')
    if sweep.baseline not in names:
        raise UserError(f'{path}: baseline {sweep.baseline!r} is none of the arms: {", ".join(names)}')
    levels = [arm.levels for arm in sweep.arms if arm.levels]
    if len(set(levels)) < len(levels) or len({len(each) for each in levels}) > 1:
        raise UserError(f'{path}: levels: give each arm that has some a level of every factor, no two arms the same')
    return sweep


def configured(path: str, fields: Sequence[str]) -> ConfigDict:
    """A config file, named from the repository, with 'field=value' set. Raises UserError for a field that cannot be."""
    config = load_config(str(REPOSITORY / path))
    override(config, fields)
    return config


def plan(sweep: Sweep, overrides: Sequence[str]) -> list[Job]:
    """All runs, seed by seed, so that an interrupted sweep has whole pairs.

    Args:
      sweep: its seeds and budget count.
      overrides: 'field=value' of every arm, over those of the arm.

    Raises:
      UserError: a config that cannot be, or a budget too small for a step.
    """
    jobs = []
    for seed in sweep.seeds:
        for arm in sweep.arms:
            fields = (*sweep.base, *arm.fields, *overrides)
            own = [field for field in fields if field.partition('=')[0] in OF_THE_SWEEP]
            if own:
                raise UserError(f'arm {arm.name}: {own[0]}: seeds and length are those of the sweep; leave it out')
            config = configured(sweep.config, fields)
            steps, passes = length(config, sweep.budget)
            if not config.monitor.every_epochs:
                raise UserError(f'arm {arm.name}: monitor.every_epochs=0: what is compared is kNN accuracy; measure it')
            fields = (*fields, f'seed={seed}', f'train.steps={steps}')
            override(config, fields[-2:])
            _validate(config, arm.name)
            jobs.append(Job(arm.name, seed, fields, steps, passes, (config.monitor.k, config.monitor.temperature)))
    return jobs


def length(config: ConfigDict, budget: int) -> tuple[int, int]:
    """Steps of an arm, and the passes through the pair of encoders that they take.

    Rounded down to whole steps of both view orders, so that at one batch size all arms take equally many passes.
    """
    batch = config.train.batch_size
    pairs = budget // (2 * batch)
    if pairs < 1:
        raise UserError(f'--budget={budget}: less than a step of both view orders, {2 * batch} passes')
    return (pairs if config.loss.symmetric else 2 * pairs), 2 * batch * pairs


def _validate(config: ConfigDict, arm: str) -> None:
    from dualcl_jax.method.validation import validate  # seconds: it imports JAX

    try:
        validate(config)
    except UserError as error:
        raise UserError(f'arm {arm}: {error}') from error
