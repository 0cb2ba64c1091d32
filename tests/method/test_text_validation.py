"""The sizes of a transformer of sentences, and whether a model takes the examples of a data set."""

import pytest

from configs import default
from dualcl_jax.method.validation import validate_kind, validate_sizes
from dualcl_jax.system.errors import UserError


def make(**fields):
    config = default.get_config()
    config.model.update(name='transformer', width=384)
    config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
    return config


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'model__heads': 7}, r'config.model.heads=7: must divide model.width=384'),
        ({'text__length': 513}, r'config.text.length=513: must be at most 512, the positions of the model'),
        ({'model__position_offset': 500}, r'config.text.length=32: must be at most 12, the positions of the model'),
    ],
)
def test_sizes_that_do_not_fit_are_named(fields, said):
    validate_sizes(make())
    with pytest.raises(UserError, match=said):
        validate_sizes(make(**fields))
    validate_sizes(make(**fields, model__name='bag'))


def test_a_model_takes_its_own_kind_of_examples():
    validate_kind(make(), 'text', 'lines.txt')
    validate_kind(make(model__name='resnet18'), 'images', 'cifar10')
    with pytest.raises(
        UserError, match=r"config.model.name='transformer': cifar10 holds images; this model takes text; choose"
    ):
        validate_kind(make(), 'images', 'cifar10')
    with pytest.raises(UserError, match=r"'resnet18': lines.txt holds text; choose one of bag, transformer"):
        validate_kind(make(model__name='resnet18'), 'text', 'lines.txt')
