"""Open fields of a config are chosen from the number of images and the devices, once, unless they are set."""

import pytest
from ml_collections import ConfigDict

from configs import cifar10, folder
from dualcl_jax.data.order import steps_per_epoch
from dualcl_jax.method.choices import OPEN, Machine, choose, describe, fill, open_fields
from dualcl_jax.method.optim import peak_learning_rate
from dualcl_jax.method.resolve import resolve
from dualcl_jax.method.validation import validate, validate_devices
from dualcl_jax.system.config import differing_fields, flatten, from_json, method_sha256, override, to_json
from dualcl_jax.system.errors import UserError

CPU = Machine('cpu', 1)


def config_with(*fields: str) -> ConfigDict:
    config = folder.get_config()
    override(config, fields)
    return config


@pytest.mark.parametrize('num_images', [1, 20, 300, 1000, 3000, 10_000, 1_300_000])
@pytest.mark.parametrize('machine', [CPU, Machine('cpu', 3), Machine('gpu', 1), Machine('tpu', 16)])
def test_every_choice_is_valid(num_images: int, machine: Machine) -> None:
    config = fill(config_with(), num_images, machine)
    assert not open_fields(config)
    validate(config)
    validate_devices(config, machine.num_devices)
    if num_images >= machine.num_devices:
        assert steps_per_epoch(num_images, config.train.batch_size) >= 1
    assert config.queue.size <= max(num_images, 64)


def test_choices_of_cpus() -> None:
    small, medium, large = (choose(config_with(), count, CPU) for count in (20, 3000, 1_000_000))
    assert set(medium) == set(OPEN)
    assert (small['train.batch_size'], medium['train.batch_size']) == (20, 32)
    assert (small['queue.size'], medium['queue.size'], large['queue.size']) == (64, 1024, 1024)
    assert small['train.epochs'] > medium['train.epochs'] > large['train.epochs']
    assert choose(config_with(), 3000, CPU._replace(bfloat16=True))['model.dtype'] == 'bfloat16'
    assert medium['model.dtype'] == 'float32'


def test_what_is_set_is_kept_and_the_rate_follows_the_batch() -> None:
    config = config_with('train.batch_size=64', 'data.image_size=48', 'train.epochs=4')
    chosen = fill(config, 3000, CPU)
    usual = fill(config_with(), 3000, CPU)
    assert (chosen.train.batch_size, chosen.data.image_size, chosen.train.epochs) == (64, 48, 4)
    assert chosen.optimizer.learning_rate == pytest.approx(2 * usual.optimizer.learning_rate)
    assert chosen.monitor.every_epochs == 1
    assert open_fields(config), 'the config given has changed'


def test_the_rate_is_that_of_the_reference_batch_where_it_is_set() -> None:
    usual = fill(config_with(), 3000, CPU)
    for fields in (('optimizer.reference_batch=256',), ('optimizer.reference_batch=256', 'train.batch_size=64')):
        config = fill(config_with(*fields), 3000, CPU)
        peak = peak_learning_rate(config.optimizer.learning_rate, config.train.batch_size, 256)
        per_image = usual.optimizer.learning_rate / usual.train.batch_size
        assert peak == pytest.approx(per_image * config.train.batch_size)


@pytest.mark.parametrize('name', ['adamw', 'lars'])
def test_the_rate_of_other_optimizers_must_be_set(name: str) -> None:
    config = config_with(f'optimizer.name={name}')
    with pytest.raises(UserError, match=r'config\.optimizer\.learning_rate: .* set it for ' + name):
        resolve(config, platform='cpu', num_devices=1)
    given = resolve(
        config_with(f'optimizer.name={name}', 'optimizer.learning_rate=1e-3'), platform='cpu', num_devices=1
    )
    assert given.optimizer.learning_rate == 1e-3
    stored = from_json(to_json(given))  # perhaps of a version that chose it
    validate(config)
    assert resolve(config, platform='cpu', num_devices=1, stored=stored) == given


def test_gray_images_have_views_of_their_own() -> None:
    gray, coloured = ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2)), ((0.4, 0.5, 0.4), (0.2, 0.2, 0.2))
    one_channel = ((0.4,), (0.2,))
    for statistics, preset in ((gray, 'small_gray'), (one_channel, 'small_gray'), (coloured, 'small'), (None, 'small')):
        found = resolve(config_with(), platform='cpu', num_devices=1, statistics=statistics)
        assert found.views.preset == preset
    given = config_with('data.mean=0.5,0.5,0.5', 'data.std=0.5,0.5,0.5')  # says nothing about the images
    assert resolve(given, platform='cpu', num_devices=1, statistics=gray).views.preset == 'small'
    given = config_with('views.preset=moco_v2')
    assert resolve(given, platform='cpu', num_devices=1, statistics=gray).views.preset == 'moco_v2'


def test_other_configs_leave_nothing_open() -> None:
    config = cifar10.get_config()
    assert not open_fields(config)
    assert fill(config, 3000, CPU) is config


def test_a_stored_run_keeps_its_choices() -> None:
    """Also one of a version that chose nothing: its values take the place of the open fields."""
    first = resolve(config_with(), platform='cpu', num_devices=1, num_images=3000)
    stored = from_json(to_json(first))
    again = resolve(config_with(), platform='gpu', num_devices=4, num_images=99, bfloat16=True, stored=stored)
    assert again == first
    assert method_sha256(again) == method_sha256(stored)
    stored.train.batch_size, stored.model.stem = 128, 'imagenet'
    again = resolve(config_with('loss.temperature=0.5'), platform='cpu', num_devices=1, num_images=3000, stored=stored)
    assert (again.train.batch_size, again.model.stem) == (128, 'imagenet')
    assert list(differing_fields(stored, again)) == ['loss.temperature']


@pytest.mark.parametrize('field', ['queue.size=-1', 'train.batch_size=-5', 'model.width=0', 'views.hue=0.9'])
def test_mistakes_are_found_before_the_data_are_read(field: str) -> None:
    with pytest.raises(UserError, match=field.partition('=')[0].replace('.', r'\.')):
        validate(config_with(field))


@pytest.mark.parametrize(
    ('fields', 'of_cpus'),
    [
        (('negatives.k=2000',), 'negatives.k=2000: must be at most config.queue.size=1024'),
        (('negatives.selector=ring', 'negatives.skip=1500'), 'must be less than config.queue.size=1024'),
        (('train.accumulate_steps=64',), r'must divide the 32 images of a device \(batch_size=32\)'),
        (('model.norm=split:64',), r'64 groups on a device do not divide its 32 images \(train.batch_size=32\)'),
        (('model.name=vit_s16',), 'data.image_size=24: must be a multiple of 16'),
        (('model.name=convnext_t',), 'data.image_size=24: convnext_t needs at least 32'),
    ],
)
def test_combinations_with_an_open_field_are_checked_once_it_is_chosen(fields: tuple[str, ...], of_cpus: str) -> None:
    """What a GPU chooses may fit, also if a CPU checks the config, and resumes what the GPU has begun."""

    def check(config: ConfigDict) -> None:
        validate(config)
        validate_devices(config, 1)

    config = config_with(*fields)
    check(config)
    of_gpu = resolve(config, platform='gpu', num_devices=1)
    check(of_gpu)
    check(resolve(config, platform='cpu', num_devices=1, stored=from_json(to_json(of_gpu))))
    with pytest.raises(UserError, match=of_cpus):
        check(resolve(config, platform='cpu', num_devices=1))


def test_the_period_of_the_monitor_follows_the_length_of_the_run() -> None:
    config = fill(config_with('train.steps=2000'), 3000, CPU)  # 21 epochs
    assert (config.monitor.every_epochs, config.train.epochs) == (2, 100)
    assert fill(config_with('train.steps=1'), 3000, CPU).monitor.every_epochs == 1
    said = describe(config, open_fields(config_with()), 3000, CPU)
    assert 'monitor.every_epochs=2' in said
    assert 'train.epochs' not in said
    assert 'train.epochs=100' in describe(fill(config_with(), 3000, CPU), open_fields(config_with()), 3000, CPU)
    assert describe(config, ['train.epochs'], 3000, CPU) == ''


def test_flags_set_open_fields_by_their_type() -> None:
    for field, kind in OPEN.items():
        assert type(dict(flatten(config_with(f'{field}=7')))[field]) is kind
        if kind is not str:
            with pytest.raises(UserError, match=field):
                override(config_with(), [f'{field}=some'])
