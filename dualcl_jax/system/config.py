"""Configurations: loaded from a Python file, overridden by flags, checked, compared, stored as JSON."""

import difflib
import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from dualcl_jax import configs
from dualcl_jax.system.errors import UserError

OPERATIONAL = ('checkpoint.', 'monitor.', 'log.', 'parallel.', 'sts.', 'queue.sharded', 'skip_nonfinite')
"""Prefixes of the fields that may change when a run resumes. They determine what is written, how fast, on which devices
and which faults are tolerated, but not the result."""

PATHS = ('data.path', 'data.data_dir')
"""Fields with the location of the data. They may change, too: the fingerprint determines whether the data are the
same."""
MOVABLE = (*PATHS, 'data.labels')
"""Fields that may hold paths of the data, which can be given for data that have moved."""
PRIVATE = (*MOVABLE, 'init_from', 'text.tokenizer', 'sts.path')
"""Fields that may hold paths of the machine; they are empty in an export and in the record of a sweep."""
LENGTH = ('train.epochs', 'train.steps')
"""Fields that determine the length of a run. They may change if the run is extended."""
LIMITS = tuple(f'parallel.{phase}_s' for phase in ('start', 'compile', 'input', 'step', 'save', 'evaluate'))
"""Fields that limit the time of a phase, in seconds; after it a hanging run ends its process. 0 for no limit."""
LABELS = ('auto', 'subfolders', 'none')
"""The values of `data.labels` that are not the path of a file."""

ADDED: dict[str, Any] = {
    'negatives.skip': 0,
    'data.labels': 'auto',
    'data.max_skipped': 0.05,
    'data.memory_bytes': 4 * 2**30,
    'data.stored_size': 0,
    'data.test_fraction': 0.1,
    'parallel.workers': -1,
    'loss.two_tau': False,
    'model.freeze_patches': True,
    'model.head_width': 4096,
    'model.predictor': 'none',
    'model.remat': False,
    'negatives.schedule': 'constant',
    'negatives.start_fraction': 1.0,
    'optimizer.reference_batch': 0,
    'optimizer.schedule': 'cosine',
    'train.accumulate_steps': 1,
    'init_from': '',
    'parallel.timeout_s': 50.0,
    'queue.sharded': False,
    'parallel.silence_s': 30.0,
    'parallel.stall_s': 600.0,
    'skip_nonfinite': 0,
    'data.validation_fraction': 0.0,
    'loss.hardness': 0.0,
    'log.pictures': True,
    'data.hold_out': 'random',
    'data.label_column': '',
    'data.path_column': '',
    'model.matmul_precision': 'float32',
    'parallel.deterministic': True,
    'parallel.start_s': 86_400.0,
    'parallel.compile_s': 7200.0,
    'parallel.input_s': 1800.0,
    'parallel.step_s': 1800.0,
    'parallel.save_s': 1800.0,
    'parallel.evaluate_s': 7200.0,
    'optimizer.lars': 'rate_first',
    'model.positions': 'sine_cosine',
    'data.columns': '',
    'text.tokenizer': '',
    'text.length': 32,
    'views.deletion': None,
    'views.repetition': None,
    'optimizer.clip': 0.0,
    'model.vocabulary': 0,
    'model.layers': 6,
    'model.heads': 12,
    'model.mlp_width': 1536,
    'model.max_positions': 512,
    'model.position_offset': 0,
    'model.token_types': 2,
    'model.norm_epsilon': 1e-12,
    'model.pooling': 'mean',
    'model.dropout': 0.1,
    'sts.path': '',
    'log.tracker': '',
    'checkpoint.every_seconds': 0.0,
    'data.channels': 0,
    'data.value_range': (),
    'monitor.unseen': 'wrong',
    'data.rows': 'unchecked',
}
"""Fields added since the first config was stored, in the order of their addition, each with the value that a config
without the field implies, None for a number without a value. A new field belongs at the end, with the value that
preserves the earlier behaviour."""


def load_config(path: str) -> ConfigDict:
    """Runs `get_config()` of a configuration file, or `get_config(recipe)` for a path 'FILE.py:RECIPE'.

    The file is Python and trusted.

    Args:
      path: path of a file, or name of a config in the package (`dualcl_jax.configs.names`), such as 'imagenet:moco_v3'.

    Raises:
      UserError: the file does not exist, or it fails.
    """
    file, recipe = _find_config(path)
    spec = importlib.util.spec_from_file_location('dualcl_jax_run_config', file)
    if spec is None or spec.loader is None:
        raise UserError(f'--config={path}: not a Python file')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if recipe is None else module.get_config(recipe)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        hint = ''
        if isinstance(error, ModuleNotFoundError) and error.name == 'configs':
            hint = '; import from dualcl_jax.configs instead'
        raise UserError(f'--config={path}: {type(error).__name__}: {error}{hint}') from error
    if not isinstance(config, ConfigDict):
        raise UserError(f'--config={path}: get_config() must return an ml_collections.ConfigDict')
    add_absent_fields(config)
    return config


def _find_config(path: str) -> tuple[Path, str | None]:
    """The file that '--config' names, and the recipe after the colon, if any. Raises UserError if there is no file."""
    path = os.path.expanduser(path)
    if os.path.isfile(path):  # pathlib raises an error for a name that is too long
        return Path(path), None
    file, colon, after = path.rpartition(':')
    file, recipe = (file, after) if colon else (path, None)
    if os.path.isfile(file):
        return Path(file), recipe
    if file in configs.names():
        return configs.path_of(file), recipe
    close = difflib.get_close_matches(Path(file).stem, configs.names(), n=1, cutoff=0.7)
    hint = f'did you mean {close[0]}?' if close else f'name a file, or one of {", ".join(configs.names())}'
    raise UserError(f'--config={path}: no such file; {hint}')


def override(config: ConfigDict, assignments: Iterable[str]) -> None:
    """Applies assignments such as 'loss.symmetric=False' in order; a value gets the type of the field's default.

    Raises:
      UserError: a field does not exist, or a value has another type.
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
        kind = owner.get_type(name)
        if kind is type(None):
            raise UserError(
                f'--config.{field}={text}: the config sets this field to None, which leaves its type open; '
                'set a config_dict.placeholder(TYPE) there'
            )
        owner[name] = _parse(field, text, kind)


def _parse(field: str, text: str, kind: type) -> Any:
    """Parses the value of a flag as the field's type."""
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
    """Yields pairs of a dotted field name and its value."""
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
    """The inverse of `to_json`: lists become tuples, and absent fields of `ADDED` get the value in that table.

    Raises:
      ValueError: the text is not a config.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError('no fields in it')
    config = ConfigDict(_tuples(values))
    add_absent_fields(config)
    return config


def _tuples(value: Any) -> Any:
    """Replaces the lists in a tree of dicts by tuples."""
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value


def add_absent_fields(config: ConfigDict) -> None:
    """Adds the fields of `ADDED` that a config of an earlier version lacks, with their values in that table."""
    present = dict(flatten(config))
    with config.unlocked():
        for field, value in ADDED.items():
            section, _, name = field.rpartition('.')
            if section and section not in config:
                config[section] = ConfigDict()
            owner = config.get(section) if section else config
            if field not in present and isinstance(owner, ConfigDict):
                owner[name] = config_dict.placeholder(float) if value is None else value


def method_sha256(config: ConfigDict) -> str:
    """SHA-256 hex digest of the method's fields; it identifies the checkpoints of a run.

    Neither the data nor the length of the run counts. A field of `ADDED` counts only if it differs from that table.
    """
    return _digest(config, ADDED, lambda field: _is_method(field) and field not in LENGTH)


def accepted_sha256(*configs: ConfigDict) -> frozenset[str]:
    """The digests of configs: those of `method_sha256`, and those that earlier versions stored in their checkpoints.

    An earlier version computed its digest over all fields that it had, whatever their values, including those of
    `LENGTH`. Before 0.1.0 they included operational fields.
    """
    fields = list(ADDED)
    versions = [fields[count:] for count in range(len(fields) + 1)]
    digests = {
        _digest(config, later, counts)
        for config in configs
        for later in versions
        for counts in (_is_method, lambda field: not field.startswith(('data.', 'skip_nonfinite')))
    }
    return frozenset(digests | {method_sha256(config) for config in configs})


def _is_method(field: str) -> bool:
    """Whether a field belongs to the method: it is neither operational nor about the data."""
    return not field.startswith(('data.', *OPERATIONAL))


def _digest(config: ConfigDict, later: Collection[str], counts: Callable[[str], bool]) -> str:
    """SHA-256 hex digest of the fields that count, without those of `later` that have their value in `ADDED`."""
    fields = {
        field: value
        for field, value in flatten(config)
        if counts(field) and (field not in later or value != ADDED[field])
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=list).encode()).hexdigest()


def differing_fields(stored: ConfigDict, config: ConfigDict) -> dict[str, str]:
    """Method and data fields in which two configs differ, each with its values as 'stored, now value'.

    Operational fields and paths do not count.
    """
    before, now = _without_paths(stored), _without_paths(config)
    return {
        field: f'{before.get(field)!r}, now {now.get(field)!r}'
        for field in sorted(before.keys() | now.keys())
        if not field.startswith(OPERATIONAL) and before.get(field) != now.get(field)
    }


def _without_paths(config: ConfigDict) -> dict[str, Any]:
    """The fields of a config without `PATHS`, and without the path of a file of labels."""
    fields = {field: value for field, value in flatten(config) if field not in PATHS}
    labels = fields.get('data.labels')
    return fields | {'data.labels': 'a file'} if labels is not None and labels not in LABELS else fields


Rule = tuple[Callable[[Any], bool], str | Callable[[], str]]
"""A test of whether a value is allowed, and the end of the error message if it is not, or a function that writes it."""


def one_of(*choices: str) -> Rule:
    """The rule that a value is one of these names."""
    return lambda value: value in choices, 'choose one of ' + ', '.join(choices)


def key_of(*tables: Mapping[str, Any], also: Collection[str] = (), own: str = '') -> Rule:
    """The rule that a value is a key that one of the tables has when the value is checked, or a name in `also`.

    With `own`, the form of such names, the value may also be the name of an object in a module of the user's own.
    """

    def names() -> tuple[str, ...]:
        return *also, *(name for table in tables for name in table)

    def remedy() -> str:
        return 'choose one of ' + ', '.join(names()) + (f', or {own} of your own' if own else '')

    return lambda value: value in names() or (bool(own) and ':' in value), remedy


def at_least(least: float) -> Rule:
    """The rule that a number is at least `least`."""
    return lambda value: value >= least, f'must be at least {least}'


def between(least: float, largest: float) -> Rule:
    """The rule that a number is in [least, largest]."""
    return lambda value: least <= value <= largest, f'must be between {least} and {largest}'


BELOW_1: Rule = (lambda value: 0 <= value < 1, 'must be at least 0 and below 1')


def check_fields(config: ConfigDict, rules: Mapping[str, Rule]) -> None:
    """Checks every field that has a rule, each on its own.

    Raises:
      UserError: a value is not allowed; the message names the field, its value and what it may be.
    """
    fields = dict(flatten(config))
    missing = [field for field in rules if field not in fields]
    if missing:
        raise UserError(f'config.{missing[0]}: missing; start from configs/default.py')
    for field, (holds, remedy) in rules.items():
        value = fields[field]
        if value is None:  # an unset placeholder
            continue
        remedy = remedy if isinstance(remedy, str) else remedy()
        numbers = value if isinstance(value, tuple) else (value,)
        finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
        if not finite and isinstance(value, float):  # the remedies for tuples say it
            remedy = remedy.replace('must be', 'must be finite,', 1)
        if not finite or not holds(value):
            raise UserError(f'config.{field}={value!r}: {remedy}')
