"""Combinations of fields are refused in one line that names them, or accepted."""

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import default
from dualcl_jax.method.groups import group_size, normalized_alone
from dualcl_jax.method.validation import validate, validate_devices, validate_schedule
from dualcl_jax.models.encoder import MODELS
from dualcl_jax.models.heads import NORMALIZED, PREDICTORS, PROJECTIONS, Head
from dualcl_jax.models.norm import BatchNorm
from dualcl_jax.models.resnet import RESNETS
from dualcl_jax.system.config import override
from dualcl_jax.system.errors import UserError


def make(fields: str) -> ConfigDict:
    config = default.get_config()
    override(config, ['train.batch_size=16', 'model.norm=sync', 'queue.size=64', *fields.split()])
    return config


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        (
            'queue.size=0 negatives.selector=ring negatives.skip=15',
            'negatives.skip=15: must be less than 15, the other',
        ),
        ('negatives.selector=ring negatives.skip=64', 'must be less than config.queue.size=64'),
        ('queue.size=0 negatives.k=17', 'must be at most config.train.batch_size=16'),
        ('loss.key_weight=1 loss.hardness=0.5', 'loss.hardness=0.5: no negatives are weighted with loss.key_weight=1'),
        ('optimizer.learning_rate=nan', 'learning_rate=nan: must be finite, at least 0'),
        ('parallel.step_s=inf', 'step_s=inf: must be finite, at least 0'),
        ('data.value_range=0,inf', 'must be empty .* both finite'),
        ('train.steps=3000000000', 'must be between 0 and 2147483647'),
        ('queue.size=3000000000', 'must be between 0 and 2147483647'),
        ('model.name=tiny model.remat=True', 'remat=True: tiny has no field remat'),
    ],
)
def test_fields_that_do_not_fit(fields: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        validate(make(fields))
    assert '\n' not in str(refused.value)


def test_fields_that_fit() -> None:
    validate(make('queue.size=0 negatives.selector=ring negatives.skip=14'))
    validate(make('negatives.selector=ring negatives.skip=63'))
    validate(make('loss.key_weight=0.5 loss.hardness=0.5'))
    validate(make('loss.key_weight=1 loss.key_term=queue loss.hardness=0.5'))


@pytest.mark.parametrize(
    ('fields', 'devices', 'said'),
    [
        ('train.accumulate_steps=16 model.norm=split:2', 1, '2 groups .* its 1 image of a part .*accumulate_steps=16'),
        ('model.norm=split:32', 1, r'32 groups on a device do not divide its 16 images .*; use split:16'),
        ('model.norm=split:12', 2, r'6 groups on a device do not divide its 8 images .*; use split:4'),
        (
            'train.accumulate_steps=4 model.norm=split:4 model.projection=mlp3_bn', 1,
            r'model.projection=mlp3_bn needs 2 images in a group, and has fewer \(train.batch_size=16, '
            r'train.accumulate_steps=4\); use fewer groups, or fewer train.accumulate_steps, or a larger batch',
        ),
        ('train.batch_size=8 model.norm=split:8 model.predictor=mlp2', 1, 'mlp2 needs 2 .* fewer groups'),
        ('train.batch_size=1 model.predictor=mlp2_bn', 1, r'\(train.batch_size=1\); use a larger batch'),
        ('model.norm=local model.projection=mlp2_bn', 16, 'needs 2 images in a group'),
        ('model.norm=split:16 data.image_size=8', 1, 'resnet18, whose last stage is 1×1 at data.image_size=8, needs 2'),
    ],
)  # fmt: skip
def test_groups_that_do_not_fit(fields: str, devices: int, said: str) -> None:
    config = make(fields)
    validate(config)
    with pytest.raises(UserError, match=said) as refused:
        validate_devices(config, devices)
    assert '\n' not in str(refused.value)


def test_groups_that_fit() -> None:
    for fields, devices, size in [
        ('model.norm=split:8 model.projection=mlp3_bn', 1, 2),
        ('model.norm=sync model.projection=mlp3_bn', 16, 16),
        ('model.norm=split:2 model.projection=mlp3_bn train.accumulate_steps=2', 8, 4),
        ('model.norm=split:16', 1, 1),  # a ResNet normalises over 4×4 positions
        ('model.norm=split:16 data.image_size=8 model.name=tiny', 1, 1),
    ]:
        config = make(fields)
        validate_devices(config, devices)
        assert group_size(config, devices) == size


def test_heads_with_batch_normalisation_are_known() -> None:
    norm = BatchNorm
    for name, compute in {**PROJECTIONS, **PREDICTORS}.items():
        if compute is not None:
            head = Head(compute, dim=4, hidden=4, norm=norm)
            shapes = jax.eval_shape(lambda head=head: head.init(jax.random.key(0), jnp.ones((2, 4)), train=True))
            assert ('batch_stats' in shapes) == (name in NORMALIZED), name


@pytest.mark.parametrize(('stem', 'largest'), [('cifar', 8), ('imagenet', 32)])
def test_a_resnet_has_one_position_at_the_end(stem: str, largest: int) -> None:
    assert {name for name in MODELS if name.startswith('resnet')} == set(RESNETS)
    network = MODELS['resnet18'](norm=BatchNorm, stem=stem, width=1)
    for size, positions in ((largest, 1), (largest + 1, 2)):

        def blocks(size=size):
            images = jnp.ones((1, size, size, 3))
            return network.init_with_output(
                jax.random.key(0), images, train=True, capture_intermediates=True, mutable=True
            )[1]['intermediates']

        assert jax.eval_shape(blocks)['layer4_1']['__call__'][0].shape[1] == positions
        config = make(f'model.stem={stem} data.image_size={size}')
        assert bool(normalized_alone(config)) == (positions == 1)


def test_runs_that_are_too_long() -> None:
    config = make('train.epochs=1000000000')
    with pytest.raises(UserError, match=r'train.epochs=1000000000: 6,000,000,000 steps are too many'):
        validate_schedule(config, 6_000_000_000, 6)
    validate_schedule(config, 2**31 - 1, 6)
