"""Definition of a sweep: arms to compare, each a change of one base config, with the same seeds and budget."""

import contextlib
import dataclasses
import importlib.util
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from ml_collections import ConfigDict

from dualcl_jax.system.config import LABELS, PATHS, PRIVATE, load_config, override
from dualcl_jax.system.errors import UserError
from experiments.ablation.measures import MEASURES, Measure

REPOSITORY = Path(__file__).parents[2]
OF_THE_SWEEP = ('seed', 'train.steps', 'train.epochs')
"""Fields that seeds and budget determine."""
LOCATIONS = (*PATHS, 'sts.path')
"""Fields with locations of data on this machine; they are not stored, so that the data may move."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the methods that a sweep compares.

    Attributes:
      name: letters, digits, '_', '.' and '-'; it names folders.
      fields: 'field=value' of the config, on top of the sweep's base.
      x: place on the axis of the sweep's curve, if it has one.
      series: name of its curve, if there are several.
      levels: level of each factor, if arms combine factors; tables then report the effect of each over these arms.
    """

    name: str
    fields: tuple[str, ...] = ()
    x: float | None = None
    series: str = ''
    levels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Arms to compare at an equal budget; `get_sweep()` of a file in `experiments/sweeps` returns a sweep.

    Attributes:
      title: the question, in one line.
      config: the config file, relative to the repository.
      base: 'field=value' for every arm.
      arms: the methods to compare.
      baseline: name of the arm with which the others are compared.
      seeds: seeds for every arm; a seed means the same initial encoder, order of examples and views in all arms.
      budget: examples that pass through the pair of encoders in a run. A step of both view orders takes two passes
        per example, a one-way step takes one; this determines the number of steps of an arm.
      x_label: label of the axis of `Arm.x`.
      measure: what runs are compared by, one of `measures.MEASURES`: knn or probe for images with labels,
        sts for sentences.
    """

    title: str
    config: str
    base: tuple[str, ...]
    arms: tuple[Arm, ...]
    baseline: str
    seeds: tuple[int, ...]
    budget: int
    x_label: str = ''
    measure: str = 'knn'


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
      arm, seed: name of the arm, and the seed.
      fields: all 'field=value' on top of the config file, in order.
      steps: training steps.
      passes: examples that pass through the pair of encoders.
      measure: what the run is measured by.
      settings: 'field=value' of its evaluation.
    """

    arm: str
    seed: int
    fields: tuple[str, ...]
    steps: int
    passes: int
    measure: Measure
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        return f'{self.arm}-seed{self.seed}'

    @property
    def stored_fields(self) -> list[str]:
        """The fields to store in a record, without paths of this machine."""
        return public_fields(self.fields)


def public_fields(fields: Sequence[str]) -> list[str]:
    """The fields without paths of this machine: `LOCATIONS` are left out, of other paths the last part is kept."""
    found = []
    for field in fields:
        name, _, value = field.partition('=')
        if name in PRIVATE and value not in LABELS:
            field = f'{name}={PurePath(value).name}'
        if name not in LOCATIONS:
            found.append(field)
    return found


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return _is_sequence(value) and all(map(_is_text, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_place(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _are_seeds(value: Any) -> bool:
    if not _is_sequence(value) or not all(map(_is_whole, value)):
        return False
    return len(value) > 0 and min(value) >= 0 and len(set(value)) == len(value)


Rule = tuple[Callable[[Any], bool], str]
TEXT: Rule = (_is_text, 'must be a string')
FIELDS: Rule = (_are_texts, "must be a tuple of 'field=value', such as ('loss.symmetric=False',) with its comma")
SWEEP_RULES: dict[str, Rule] = {
    'title': TEXT,
    'config': TEXT,
    'base': FIELDS,
    'arms': (_is_sequence, "must be a tuple of arms, such as (Arm('a'), Arm('b'))"),
    'baseline': TEXT,
    'seeds': (_are_seeds, 'must be a tuple of whole numbers from 0, each once, such as (0, 1, 2)'),
    'budget': (_is_whole, 'must be a whole number, such as 80_000'),
    'x_label': TEXT,
    'measure': TEXT,
}
ARM_RULES: dict[str, Rule] = {
    'name': TEXT,
    'fields': FIELDS,
    'x': (_is_place, 'must be a finite number or None'),
    'series': TEXT,
    'levels': (_are_texts, "must be a tuple of strings, such as ('dual_view',) with its comma"),
}
"""For each attribute of an arm, whether a value is valid, and what a valid one is; `SWEEP_RULES` likewise."""


def _check(where: str, value: Sweep | Arm, rules: dict[str, Rule]) -> None:
    """Raises UserError, which begins with `where`, if an attribute breaks its rule."""
    for name, (is_valid, valid) in rules.items():
        found = getattr(value, name)
        if not is_valid(found):
            raise UserError(f'{where}: {name}={reprlib.repr(found)}: {valid}')


def load_sweep(path: str) -> Sweep:
    """Runs `get_sweep()` of a file, which is Python and trusted.

    Raises:
      UserError: the file does not exist or fails, or what it returns is not a valid sweep.
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
    _check(path, sweep, SWEEP_RULES)
    for arm in sweep.arms:
        if not isinstance(arm, Arm):
            raise UserError(f"{path}: arms: {reprlib.repr(arm)} is not an arm; write it as Arm('a')")
        _check(f'{path}: arm {arm.name!r}', arm, ARM_RULES)
    if sweep.measure not in MEASURES:
        raise UserError(f'{path}: measure {sweep.measure!r} is not one of: {", ".join(MEASURES)}')
    names = [arm.name for arm in sweep.arms]
    for name in names:
        if not re.fullmatch(r'[\w.-]+', name) or names.count(name) > 1:
            raise UserError(f'{path}: arm {name!r}: names must be unique and of letters, digits, _, . and -')
    if sweep.baseline not in names:
        raise UserError(f'{path}: baseline {sweep.baseline!r} is not one of the arms: {", ".join(names)}')
    levels = [tuple(arm.levels) for arm in sweep.arms if arm.levels]
    if len(set(levels)) < len(levels) or len({len(each) for each in levels}) > 1:
        raise UserError(
            f'{path}: levels: an arm with levels needs one of every factor, and no two arms may have the same'
        )
    return sweep


def configured(path: str, fields: Sequence[str]) -> ConfigDict:
    """Loads a config file of the repository and sets 'field=value'. Raises UserError for an invalid field."""
    config = load_config(str(REPOSITORY / path))
    override(config, fields)
    return config


def plan(sweep: Sweep, overrides: Sequence[str]) -> list[Job]:
    """All runs of a sweep, seed by seed, so that an interrupted sweep has complete pairs.

    Args:
      sweep: the sweep, with its seeds and budget.
      overrides: 'field=value' for every arm, on top of those of the arm.

    Raises:
      UserError: a config is invalid, or the budget is too small for a step.
    """
    jobs, measure = [], MEASURES[sweep.measure]
    for seed in sweep.seeds:
        for arm in sweep.arms:
            fields = (*sweep.base, *arm.fields, *overrides)
            own = [field for field in fields if field.partition('=')[0] in OF_THE_SWEEP]
            if own:
                raise UserError(f'arm {arm.name}: {own[0]}: the sweep sets seeds and length; leave it out')
            config = configured(sweep.config, ())
            with _named('base'):
                override(config, sweep.base)
            with _named(f'arm {arm.name}'):
                override(config, arm.fields)
            override(config, overrides)
            if config.train.batch_size is None:
                raise UserError(
                    f'arm {arm.name}: train.batch_size: the sweep needs a value to compute the length of runs'
                )
            steps, passes = length(config, sweep.budget)
            if config.monitor.every_epochs == 0:
                raise UserError(
                    f'arm {arm.name}: monitor.every_epochs=0: the sweep compares {measure.title} and must measure it'
                )
            fields = (*fields, f'seed={seed}', f'train.steps={steps}')
            override(config, fields[-2:])
            _validate(config, arm.name)
            jobs.append(Job(arm.name, seed, fields, steps, passes, measure, measure.settings(config)))
    return jobs


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Names the part of the sweep in an error of its fields, which are no flags."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{what}: {str(error).replace("--config.", "")}') from error


def length(config: ConfigDict, budget: int) -> tuple[int, int]:
    """Steps of an arm, and the passes through the pair of encoders that they take.

    Both are rounded down to whole steps of both view orders, so that at one batch size all arms take equally many
    passes.
    """
    batch = config.train.batch_size
    pairs = budget // (2 * batch)
    if pairs < 1:
        raise UserError(f'--budget={budget}: less than a step of both view orders, {2 * batch} passes')
    return (pairs if config.loss.symmetric else 2 * pairs), 2 * batch * pairs


def _validate(config: ConfigDict, arm: str) -> None:
    from dualcl_jax.method.validation import validate  # takes seconds: it imports JAX

    try:
        validate(config)
    except UserError as error:
        raise UserError(f'arm {arm}: {error}') from error
