"""Resolving a config fills in its open fields, returns a frozen config and does not change the given one."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from dualcl_jax.method.build import build_method
from dualcl_jax.method.negatives.selectors import select_threshold
from dualcl_jax.method.resolve import resolve
from dualcl_jax.method.run_length import run_length
from dualcl_jax.method.views import VIEWS
from dualcl_jax.system.config import ADDED, differing_fields, flatten, from_json, method_sha256, override, to_json
from dualcl_jax.system.errors import UserError

STATISTICS = (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)
GIVEN = ('data.mean=0.1,0.2,0.3', 'data.std=0.4,0.5,0.6')


def config_with(*fields: str) -> ConfigDict:
    config = default.get_config()
    override(config, fields)
    return config


@pytest.mark.parametrize('fields', [(), GIVEN, ('negatives.selector=ring',)])
def test_the_config_given_is_not_changed(fields: tuple[str, ...]) -> None:
    config = config_with(*fields)
    resolved = resolve(config, platform='cpu', num_devices=1, statistics=STATISTICS)
    assert config == config_with(*fields)
    changed = {field for field, value in flatten(resolved) if value != dict(flatten(config))[field]}
    filled_in = {'negatives.selector', 'optimizer.lars', 'model.norm', 'data.hold_out', 'data.rows', 'parallel.mapper'}
    assert changed <= filled_in | {'monitor.unseen', 'data.mean', 'data.std'}
    override(config, ['views.hue=0.25', 'seed=9'])
    assert resolved == resolve(
        config_with(*fields), platform='cpu', num_devices=1, statistics=STATISTICS
    )  # shares no part with the config


def test_the_result_is_frozen() -> None:
    resolved = resolve(config_with(), platform='cpu', num_devices=1)
    for change in (
        lambda: setattr(resolved, 'seed', 1),
        lambda: setattr(resolved.data, 'mean', (0.5,)),
        lambda: resolved.unlock(),
    ):
        with pytest.raises(AttributeError, match='immutable'):
            change()


@pytest.mark.parametrize('fields', [(), ('negatives.schedule=linear',), ('negatives.k=7',), GIVEN])
def test_resolving_twice_changes_nothing(fields: tuple[str, ...]) -> None:
    resolved = resolve(config_with(*fields), platform='cpu', num_devices=1, statistics=STATISTICS)
    again = resolve(resolved, platform='gpu', num_devices=1, statistics=((0.1,), (0.1,)), stored=config_with())
    assert again == resolved
    assert to_json(again) == to_json(resolved)


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
@pytest.mark.parametrize(
    ('fields', 'name'),
    [
        (('negatives.k=1024', 'queue.size=4096'), 'threshold'),
        (('negatives.k=1', 'queue.size=4096'), 'threshold'),
        (('negatives.schedule=cosine',), 'threshold'),
        (('queue.size=0', 'negatives.k=2', 'train.batch_size=256'), 'threshold'),
        (('negatives.selector=ring',), 'ring'),
        (('negatives.selector=all',), 'all'),
    ],
)
def test_selector(platform: str, fields: tuple[str, ...], name: str) -> None:
    assert resolve(config_with(*fields), platform=platform, num_devices=1).negatives.selector == name


@pytest.mark.parametrize(
    ('requested', 'stored', 'processes', 'name'),
    [
        ('auto', 'pmap', 1, 'pmap'),
        ('auto', 'pmap', 2, 'shard_map'),
        ('auto', 'shard_map', 1, 'pmap'),  # the states are equal, so a run may change it
        ('pmap', 'shard_map', 2, 'pmap'),
        ('shard_map', 'pmap', 1, 'shard_map'),
    ],
)
def test_mapper(requested: str, stored: str, processes: int, name: str) -> None:
    config, before = (config_with(f'parallel.mapper={mapper}') for mapper in (requested, stored))
    resolved = resolve(config, platform='cpu', num_devices=2, num_processes=processes, stored=before)
    assert resolved.parallel.mapper == name
    assert method_sha256(resolved) == method_sha256(resolve(before, platform='cpu', num_devices=2))


@pytest.mark.parametrize(
    ('stored', 'requested', 'name'),
    [
        ('top_k', 'auto', 'top_k'),  # a selector chosen before is kept on any platform
        ('threshold', 'auto', 'threshold'),
        ('all', 'auto', 'threshold'),  # never chosen for 'auto', so it is another method
        ('top_k', 'threshold', 'threshold'),
    ],
)
def test_a_stored_selector_is_kept(stored: str, requested: str, name: str) -> None:
    before = config_with(f'negatives.selector={stored}')
    config = config_with(f'negatives.selector={requested}')
    assert resolve(config, platform='tpu', num_devices=1, stored=before).negatives.selector == name
    with before.unlocked():
        del before.negatives.selector  # a run of an older version
    assert resolve(config, platform='tpu', num_devices=1, stored=before).negatives.selector == 'threshold'


@pytest.mark.parametrize(
    ('stored', 'asked', 'chosen'),
    [
        (None, 'auto', 'grouped'),
        ('random', 'auto', 'random'),  # a run of a version without the field, see `ADDED`
        ('stratified', 'auto', 'stratified'),  # of a version that divided copies
        ('grouped', 'auto', 'grouped'),
        ('random', 'stratified', 'stratified'),
    ],
)
def test_a_stored_run_keeps_its_hold_out(stored: str | None, asked: str, chosen: str) -> None:
    before = None if stored is None else config_with(f'data.hold_out={stored}')
    config = config_with(f'data.hold_out={asked}')
    assert resolve(config, platform='cpu', num_devices=1, stored=before).data.hold_out == chosen


@pytest.mark.parametrize(('stored', 'chosen'), [(None, 'checked'), ('unchecked', 'unchecked'), ('checked', 'checked')])
def test_a_stored_run_keeps_its_rows_of_text(stored: str | None, chosen: str) -> None:
    before = None if stored is None else config_with(f'data.rows={stored}')
    assert resolve(config_with(), platform='cpu', num_devices=1, stored=before).data.rows == chosen
    assert ADDED['data.rows'] == 'unchecked'


@pytest.mark.parametrize(
    ('stored', 'asked', 'chosen'),
    [
        (None, 'auto', 'left_out'),
        ('wrong', 'auto', 'wrong'),
        ('left_out', 'auto', 'left_out'),
        ('wrong', 'left_out', None),
    ],
)
def test_a_stored_run_keeps_what_counts_as_wrong(stored: str | None, asked: str, chosen: str | None) -> None:
    before = None if stored is None else config_with(f'monitor.unseen={stored}')
    resolved = resolve(config_with(f'monitor.unseen={asked}'), platform='cpu', num_devices=1, stored=before)
    assert resolved.monitor.unseen == (chosen or asked)
    assert ADDED['monitor.unseen'] == 'wrong'


@pytest.mark.parametrize(
    ('stored', 'requested', 'norm'),
    [
        (None, 'local', 'split:4'),
        (None, 'sync', 'sync'),
        (None, 'split:2', 'split:2'),
        ('split:8', 'local', 'split:8'),  # started on eight devices
        ('split:1', 'split:4', 'split:4'),
        ('sync', 'local', 'split:4'),
        ('local', 'local', 'local'),  # stored by version 0.1.0: the number of devices is in its checkpoints
    ],
)
def test_norm(stored: str | None, requested: str, norm: str) -> None:
    before = None if stored is None else config_with(f'model.norm={stored}')
    resolved = resolve(config_with(f'model.norm={requested}'), platform='cpu', num_devices=4, stored=before)
    assert resolved.model.norm == norm


def test_lars() -> None:
    """New runs of the recipe of MoCo v3 follow its code; runs without the field keep what they did."""
    config = config_with('optimizer.lars=auto')
    assert resolve(config, platform='cpu', num_devices=1).optimizer.lars == 'rate_last'
    for stored in ('rate_first', 'rate_last'):
        before = config_with(f'optimizer.lars={stored}')
        assert resolve(config, platform='cpu', num_devices=1, stored=before).optimizer.lars == stored
    assert resolve(config_with(), platform='cpu', num_devices=1).optimizer.lars == 'rate_first'


def test_statistics_fill_a_config_without_them() -> None:
    measured = resolve(config_with(), platform='cpu', num_devices=1, statistics=STATISTICS).data
    assert (measured.mean, measured.std) == STATISTICS
    given = resolve(config_with(*GIVEN), platform='cpu', num_devices=1, statistics=STATISTICS).data
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert resolve(config_with(), platform='cpu', num_devices=1).data.mean == ()


def test_what_a_workdir_stores() -> None:
    """It stores the same text, with the same hash in every checkpoint, as if the fields had been set by hand."""
    resolved = resolve(config_with(), platform='tpu', num_devices=1, statistics=STATISTICS)
    config = config_with('negatives.selector=threshold', 'data.hold_out=grouped', 'parallel.mapper=pmap')
    override(config, ['monitor.unseen=left_out', 'data.rows=checked'])
    config.data.mean, config.data.std = STATISTICS
    assert to_json(resolved) == to_json(config)
    assert method_sha256(resolved) == method_sha256(config)
    assert differing_fields(from_json(to_json(resolved)), resolved) == {}


def test_a_method_is_built_from_a_resolved_config() -> None:
    config = config_with('model.name=tiny')
    lengths = {'total_steps': 1, 'steps_per_epoch': 1, 'num_devices': 1}
    views = VIEWS['images'](config_with(*GIVEN), np.empty((0, 1, 1, 3), np.uint8))
    with pytest.raises(UserError, match=r"negatives\.selector='auto'"):
        build_method(config, views, **lengths)
    resolved = resolve(config, platform='cpu', num_devices=1, statistics=STATISTICS)
    assert build_method(resolved, views, **lengths).select is select_threshold


def test_run_length() -> None:
    assert run_length(config_with('train.batch_size=32', 'train.epochs=3'), 100) == (3, 9)
    assert run_length(config_with('train.batch_size=32', 'train.epochs=3', 'train.steps=5'), 100) == (3, 5)
    with pytest.raises(UserError, match=r'more than the 31 training examples'):
        run_length(config_with('train.batch_size=32'), 31)
