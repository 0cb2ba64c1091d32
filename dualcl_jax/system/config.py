"""Configurations: loaded from a Python file, overridden by flags, checked, compared, stored as JSON."""

import difflib
import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import ConfigDict

from dualcl_jax.system.errors import UserError

OPERATIONAL = ('checkpoint.', 'monitor.', 'log.', 'parallel.', 'queue.sharded', 'skip_nonfinite')
"""Beginnings of the fields that may change when a run resumes: they decide what is written, how fast, on which devices
and which faults are tolerated, not the result."""


ADDED: dict[str, Any] = {
    'data.hold_out': 'random',
    'data.label_column': '',
    'data.path_column': '',
    'model.matmul_precision': 'float32',
    'parallel.deterministic': True,
}
"""Fields that configs of version 0.1.0 lack, and the value that such a config means."""


def load_config(path: str) -> ConfigDict:
    """Runs `get_config()` of a configuration file, or `get_config(recipe)` for a path 'FILE.py:RECIPE'.

    The file is Python and trusted.

    Raises:
      UserError: no such file, or the file fails.
    """
    file, colon, recipe = (path, '', '') if Path(path).is_file() else path.rpartition(':')
    if not colon:
        file = path
    if not Path(file).is_file():
        raise UserError(f'--config={path}: no such file')
    spec = importlib.util.spec_from_file_location('dualcl_jax_run_config', file)
    if spec is None or spec.loader is None:
        raise UserError(f'--config={path}: not a Python file')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(recipe) if colon else module.get_config()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise UserError(f'--config={path}: {type(error).__name__}: {error}') from error
    if not isinstance(config, ConfigDict):
        raise UserError(f'--config={path}: get_config() must return an ml_collections.ConfigDict')
    return config


def override(config: ConfigDict, assignments: Iterable[str]) -> None:
    """Applies 'loss.symmetric=False' and the like, in order, by the type of the field's default.

    Raises:
      UserError: a field that does not exist, or a value of another type.
    """
    for assignment in assignments:
        field, equals, text = assignment.partition('=')
        if not equals:
            raise UserError(f'--config.{field}: needs a value, --config.{field}=VALUE')
        fields = dict(flatten(config))
        if field not in fields:
            close = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
            raise UserError(f'--config.{field}: no such field' + (f'; did you mean {close[0]}?' if close else ''))
        section, _, name = field.rpartition('.')
        owner = config[section] if section else config
        owner[name] = _parse(field, text, owner.get_type(name))


def _parse(field: str, text: str, kind: type) -> Any:
    """The value of a flag, of the field's type."""
    try:
        if kind is bool:
            return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
        if kind is tuple:
            values = text.strip('()[] ').split(',')
            return tuple(float(value) for value in values if value.strip())
        return kind(text)
    except (KeyError, ValueError):
        names = {bool: 'true or false', int: 'an integer', float: 'a number', tuple: 'numbers, such as 0.2,1.0'}
        raise UserError(f'--config.{field}={text}: must be {names.get(kind, kind.__name__)}') from None


def flatten(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Pairs of dotted field and value."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from flatten(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def to_json(config: ConfigDict) -> str:
    """The config as stored in a workdir."""
    return json.dumps(config.to_dict(), indent=2, default=list) + '\n'


def from_json(text: str | bytes) -> ConfigDict:
    """The inverse of `to_json`; lists become tuples, and fields of `ADDED` that are absent get their value there.

    Raises ValueError where the text holds no config.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(entry) for name, entry in value.items()}
        return tuple(value) if isinstance(value, list) else value

    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError('no fields in it')
    config = ml_collections.ConfigDict(tuples(values))
    present = dict(flatten(config))
    for field, value in ADDED.items():
        section, _, name = field.rpartition('.')
        if field not in present and section in config:
            config[section][name] = value
    return config


def method_sha256(config: ConfigDict) -> str:
    """SHA-256 hex digest of the method's fields: what makes a checkpoint one of this run, on whatever data.

    A field of `ADDED` counts only with another value than the one there.
    """
    fields = {
        field: value
        for field, value in flatten(config)
        if not field.startswith(('data.', *OPERATIONAL)) and (field not in ADDED or value != ADDED[field])
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=list).encode()).hexdigest()


def differing_fields(stored: ConfigDict, config: ConfigDict) -> list[str]:
    """Method and data fields in which two configs differ, as 'field (stored, now)'; operational fields do not count."""
    before, now = dict(flatten(stored)), dict(flatten(config))
    return [
        f'{field} ({before.get(field)!r}, now {now.get(field)!r})'
        for field in sorted(before.keys() | now.keys())
        if not field.startswith(OPERATIONAL) and before.get(field) != now.get(field)
    ]


Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and the end of the error message where it is not."""


def one_of(*choices: str) -> Rule:
    """A value is one of these names."""
    return lambda value: value in choices, 'choose one of ' + ', '.join(choices)


def at_least(least: float) -> Rule:
    """A number is no smaller."""
    return lambda value: value >= least, f'must be at least {least}'


def between(least: float, largest: float) -> Rule:
    """A number is in [least, largest]."""
    return lambda value: least <= value <= largest, f'must be between {least} and {largest}'


def check_fields(config: ConfigDict, rules: Mapping[str, Rule]) -> None:
    """Checks every field that has a rule, alone.

    Raises:
      UserError: naming the field, its value and what it may be.
    """
    fields = dict(flatten(config))
    missing = [field for field in rules if field not in fields]
    if missing:
        raise UserError(f'config.{missing[0]}: missing; start from configs/default.py')
    for field, (holds, remedy) in rules.items():
        value = fields[field]
        if value is None:  # an unset placeholder
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
        if not finite or not holds(value):
            raise UserError(f'config.{field}={value!r}: {remedy}')
