"""Configs: overriding fields, storing and comparing configs, and the valid values of every field."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import default
from dualcl_jax.method.optim import OPTIMIZERS
from dualcl_jax.method.validation import FREE, RULES, unknown_fields, validate, validate_devices, validate_schedule
from dualcl_jax.method.views.images import PRESETS, ViewSpec, resolve_views
from dualcl_jax.method.views.text import TextSpec, resolve_text_views
from dualcl_jax.system.config import (
    LIMITS,
    OPERATIONAL,
    differing_fields,
    flatten,
    from_json,
    load_config,
    override,
    to_json,
)
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.processes.heartbeat import PHASES
from tests.support.runs import REPOSITORY

CONFIGS = sorted((REPOSITORY / 'configs').glob('*.py'))


@pytest.mark.parametrize(
    ('assignment', 'value'),
    [
        ('seed=3', 3),
        ('loss.temperature=1', 1.0),
        ('optimizer.weight_decay=1e-4', 1e-4),
        ('loss.symmetric=False', False),
        ('loss.symmetric=false', False),
        ('loss.shuffle_keys=1', True),
        ('data.path=a=b.npz', 'a=b.npz'),
        ('data.path=', ''),
        ('data.mean=0.5,0.25,1', (0.5, 0.25, 1.0)),
        ('data.mean=(0.5,)', (0.5,)),
        ('data.mean=()', ()),
        ('views.crop_scale=[0.2, 1]', (0.2, 1.0)),
        ('views.hue=0', 0.0),
    ],
)
def test_override(assignment: str, value: object) -> None:
    config = default.get_config()
    override(config, [assignment])
    found = dict(flatten(config))[assignment.partition('=')[0]]
    assert found == value
    assert type(found) is type(value)
    override(config, ['seed=8', 'seed=9'])
    assert config.seed == 9  # the last one applies


@pytest.mark.parametrize(
    ('assignment', 'said'),
    [
        ('seed', 'needs a value'),
        ('seed=1.5', 'an integer'),
        ('seed=', 'an integer'),
        ('loss.temperature=', 'a number'),
        ('loss.symmetric=2', 'true or false'),
        ('data.mean=a,b', 'numbers'),
        ('loss=1', 'no such field'),
        ('loss.=1', 'no such field'),
        ('loss.symetric=1', 'did you mean loss.symmetric?'),
        ('', 'needs a value'),
    ],
)
def test_override_refuses(assignment: str, said: str) -> None:
    config = default.get_config()
    with pytest.raises(UserError, match=said.replace('?', r'\?')) as error:
        override(config, [assignment])
    assert f'--config.{assignment.partition("=")[0]}' in str(error.value)
    assert config == default.get_config()


def test_absent_fields_without_a_value_can_be_set() -> None:
    config = from_json('{"views": {"flip": null}}')
    override(config, ['views.deletion=0.5'])
    assert config.views.deletion == 0.5
    with pytest.raises(UserError, match=r'views.flip=1: the config sets this field to None'):
        override(config, ['views.flip=1'])


@pytest.mark.parametrize('path', ['x' * 300, 'x' * 300 + '.py:recipe'])
def test_a_config_with_a_name_too_long(path: str) -> None:
    with pytest.raises(UserError, match='no such file'):
        load_config(path)


def test_flatten() -> None:
    config = ConfigDict({'a': 1, 'b': {'c': (1, 2), 'd': {'e': None}}})
    assert dict(flatten(config)) == {'a': 1, 'b.c': (1, 2), 'b.d.e': None}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config(path: Path) -> None:
    """Every config loads, is valid, survives config.json without loss, and has its command in the docstring."""
    config = load_config(str(path))
    validate(config)
    validate_devices(config, 1)
    validate_schedule(config, total_steps=1000, steps_per_epoch=5)
    assert dict(flatten(config)).keys() == dict(flatten(default.get_config())).keys()
    again = from_json(to_json(config))
    assert dict(flatten(again)) == dict(flatten(config))
    assert to_json(again) == to_json(config)
    command = f'python -m dualcl_jax.main --config=configs/{path.name}'
    assert command in path.read_text()


def test_entries_that_are_added_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule knows the entries that its table has when a config is checked."""
    config = default.get_config()
    override(config, ['views.preset=mine', 'optimizer.name=mine'])
    monkeypatch.setitem(PRESETS, 'mine', (ViewSpec(flip=0.0), ViewSpec()))
    with pytest.raises(UserError, match=r"optimizer.name='mine': choose one of .*adamw"):
        validate(config)
    monkeypatch.setitem(OPTIMIZERS, 'mine', OPTIMIZERS['sgd'])
    validate(config)


def test_every_field_is_checked() -> None:
    """Every field has a rule, allows any value of its type, or is checked where it is resolved."""
    elsewhere = {'init_from', 'data.name', 'data.data_dir', 'data.path', 'model.norm'}
    elsewhere |= {'data.path_column', 'data.label_column', 'data.columns', 'text.tokenizer', 'sts.path', 'log.tracker'}
    for field, value in flatten(default.get_config()):
        assert field in RULES or isinstance(value, bool) or field in elsewhere or field.startswith('views.'), field
    assert unknown_fields(default.get_config()) == []
    assert set(FREE) <= dict(flatten(default.get_config())).keys() - RULES.keys()


def test_every_phase_has_a_limit() -> None:
    assert set(LIMITS) == {f'parallel.{field}' for field in PHASES.values()}


@pytest.mark.parametrize(('preset', 'spec'), [('moco_v2', ViewSpec), ('contriever', TextSpec)])
def test_every_view_field_can_be_set(preset: str, spec: type) -> None:
    config = default.get_config()
    config.views.preset = preset
    fields = {field.name for field in dataclasses.fields(spec)}
    names, others = set(config.views) & fields, set(config.views) - fields - {'preset'}
    assert names == fields - {'grayscale_first'}
    for name in names:
        value = '0.25,0.5' if config.views.get_type(name) is tuple else '0.25'
        override(config, [f'views.{name}={value}'])
    views = resolve_views(config.views) if spec is ViewSpec else resolve_text_views(config.views).specs
    for view in views:
        for name in names:
            assert getattr(view, name) in (0.25, (0.25, 0.5)), name
    override(config, [f'views.{min(others)}=0.5'])
    with pytest.raises(UserError, match=f'views.{min(others)}: is not for'):
        validate(config)


@given(st.integers(0, 2**31 - 1), st.floats(1e-6, 1e6), st.booleans(), st.lists(st.floats(0.01, 1), max_size=3))
def test_json_keeps_values(seed: int, temperature: float, symmetric: bool, mean: list[float]) -> None:
    config = default.get_config()
    override(
        config,
        [
            f'seed={seed}',
            f'loss.temperature={temperature!r}',
            f'loss.symmetric={symmetric}',
            f'data.mean={",".join(map(repr, mean))}',
        ],
    )
    assert (config.seed, config.loss.temperature, config.loss.symmetric) == (seed, temperature, symmetric)
    assert config.data.mean == tuple(mean)
    assert differing_fields(from_json(to_json(config)), config) == {}


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '3'])
def test_from_json_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r'Expect|no fields'):
        from_json(text)


def test_differing_fields() -> None:
    before, now = default.get_config(), default.get_config()
    assert differing_fields(before, now) == {}
    override(now, ['loss.temperature=0.2', 'seed=1', 'views.hue=0.3'])
    assert differing_fields(before, now) == {
        'loss.temperature': '0.1, now 0.2',
        'seed': '0, now 1',
        'views.hue': 'None, now 0.3',
    }
    with before.unlocked():
        del before.queue.init  # a run of an older version
    assert differing_fields(before, now)['queue.init'] == "None, now 'empty'"


def test_operational_fields_do_not_differ() -> None:
    before, now = default.get_config(), default.get_config()
    override(now, ['log.every_steps=1', 'checkpoint.keep=7', 'monitor.k=3', 'parallel.mapper=shard_map'])
    override(now, ['queue.sharded=True'])
    assert differing_fields(before, now) == {}
    assert all(any(field.startswith(begin) for field in dict(flatten(now))) for begin in OPERATIONAL)
