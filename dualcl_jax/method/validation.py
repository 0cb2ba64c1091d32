"""Checks the values of a config before anything is compiled."""

from ml_collections import ConfigDict

from dualcl_jax.data.source import HOLD_OUTS
from dualcl_jax.data.text.rows import CHECKS
from dualcl_jax.method.groups import check_groups
from dualcl_jax.method.negatives.selectors import AUTO, EXACT, SELECTORS, find_selector
from dualcl_jax.method.optim import LARS, LEARNING_RATE_SCHEDULES, MOMENTUM_SCHEDULES, OPTIMIZERS
from dualcl_jax.method.resolve import UNSEEN
from dualcl_jax.method.views.images import PRESETS, resolve_views
from dualcl_jax.method.views.text import TEXT_PRESETS, resolve_text_views
from dualcl_jax.models.convnext import LEAST
from dualcl_jax.models.encoder import DTYPES, MODELS, PRECISIONS, TEXT_MODELS, find_model, takes_remat
from dualcl_jax.models.heads import PREDICTORS, PROJECTIONS
from dualcl_jax.models.norm import norm_layout
from dualcl_jax.models.resnet import STEMS
from dualcl_jax.models.text import POOLINGS
from dualcl_jax.models.vit import PATCHES, POSITIONS
from dualcl_jax.system.config import BELOW_1, LIMITS, Rule, at_least, between, check_fields, flatten, key_of, one_of
from dualcl_jax.system.devices import MAPPERS
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.kinds import TEXT

_ANY: Rule = (lambda value: True, '')
_POSITIVE: Rule = (lambda value: value > 0, 'must be above 0')
_SHARE: Rule = (lambda value: 0 < value <= 1, 'must be above 0 and at most 1')
_PER_CHANNEL: Rule = (
    lambda values: all(0 <= value <= 1 for value in values),
    'must be empty (measured) or one number in [0, 1] per channel',
)
_RANGE: Rule = (
    lambda values: not values or (len(values) == 2 and values[0] < values[1]),
    'must be empty (measured) or two numbers, the lowest and the highest value, both finite',
)
MOST_CHANNELS = 1024
MOST = 2**31 - 1
"""The largest number of steps, slots and dimensions: they are counted in int32."""

RULES: dict[str, Rule] = {
    'seed': between(0, MOST),
    'skip_nonfinite': at_least(0),
    'data.image_size': at_least(4),
    'data.limit': at_least(0),
    'data.num_examples': at_least(0),
    'data.test_fraction': BELOW_1,
    'data.validation_fraction': BELOW_1,
    'data.hold_out': one_of(*HOLD_OUTS),
    'data.rows': one_of(*CHECKS),
    'data.labels': (bool, 'choose auto, subfolders, none, or the path of a CSV file'),
    'data.stored_size': at_least(0),
    'data.memory_bytes': at_least(0),
    'data.max_skipped': between(0, 1),
    'data.channels': between(0, MOST_CHANNELS),
    'data.value_range': _RANGE,
    'data.mean': _PER_CHANNEL,
    'data.std': _PER_CHANNEL,
    'text.length': at_least(3),
    'views.preset': key_of(PRESETS, TEXT_PRESETS),
    'model.name': key_of(MODELS, own='MODULE:CLASS'),
    'model.stem': one_of(*STEMS),
    'model.width': at_least(1),
    'model.positions': one_of(*POSITIONS),
    'model.projection': key_of(PROJECTIONS),
    'model.predictor': key_of(PREDICTORS),
    'model.head_width': at_least(1),
    'model.dim': between(2, MOST),
    'model.dtype': one_of(*DTYPES),
    'model.matmul_precision': one_of(*PRECISIONS),
    'model.vocabulary': at_least(0),
    'model.layers': between(1, 80),  # more would need dropout masks with numbers beyond 8 bits
    'model.heads': at_least(1),
    'model.mlp_width': at_least(1),
    'model.max_positions': at_least(1),
    'model.position_offset': at_least(0),
    'model.token_types': at_least(0),
    'model.norm_epsilon': _POSITIVE,
    'model.pooling': one_of(*POOLINGS),
    'model.dropout': BELOW_1,
    'loss.temperature': _POSITIVE,
    'loss.hardness': at_least(0),
    'loss.key_weight': between(0, 1),
    'loss.key_term': one_of('batch', 'queue'),
    'negatives.selector': key_of(SELECTORS, also=(AUTO,), own='MODULE:FUNCTION'),
    'negatives.k': at_least(0),
    'negatives.skip': at_least(0),
    'negatives.fraction': _SHARE,
    'negatives.schedule': one_of('constant', 'linear', 'cosine'),
    'negatives.start_fraction': _SHARE,
    'queue.size': between(0, MOST),
    'queue.init': one_of('empty', 'noise'),
    'ema.momentum': between(0, 1),
    'ema.schedule': key_of(MOMENTUM_SCHEDULES),
    'optimizer.name': key_of(OPTIMIZERS),
    'optimizer.lars': one_of(AUTO, *LARS),
    'optimizer.learning_rate': at_least(0),
    'optimizer.reference_batch': at_least(0),
    'optimizer.schedule': key_of(LEARNING_RATE_SCHEDULES),
    'optimizer.momentum': BELOW_1,
    'optimizer.weight_decay': at_least(0),
    'optimizer.warmup_epochs': at_least(0),
    'optimizer.clip': at_least(0),
    'train.batch_size': at_least(1),
    'train.epochs': at_least(0),
    'train.steps': between(0, MOST),
    'train.accumulate_steps': at_least(1),
    'log.every_steps': at_least(1),
    'checkpoint.every_steps': at_least(0),
    'checkpoint.every_seconds': at_least(0),
    'checkpoint.keep': at_least(1),
    'checkpoint.keep_best': at_least(0),
    'monitor.every_epochs': at_least(0),
    'monitor.k': at_least(1),
    'monitor.temperature': _POSITIVE,
    'monitor.bank': at_least(0),
    'monitor.unseen': one_of(AUTO, *UNSEEN),
    'parallel.mapper': one_of(AUTO, *MAPPERS),
    'parallel.workers': at_least(-1),
    'parallel.timeout_s': _POSITIVE,
    'parallel.silence_s': at_least(2),
    'parallel.stall_s': _POSITIVE,
    **dict.fromkeys(LIMITS, at_least(0)),
}


FREE = (
    'init_from', 'data.name', 'data.data_dir', 'data.path', 'data.path_column', 'data.label_column', 'data.columns',
    'text.tokenizer', 'sts.path', 'model.norm', 'model.freeze_patches', 'model.remat',
    'loss.symmetric', 'loss.two_tau', 'loss.shuffle_keys', 'negatives.mask_same_image', 'queue.sharded',
    'optimizer.decay_norm_and_bias', 'log.pictures', 'log.tracker', 'parallel.deterministic',
)  # fmt: skip
"""Fields without a rule: any value of their type is valid, or they are checked where they are resolved."""


def unknown_fields(config: ConfigDict) -> list[str]:
    """The fields of a config that do not exist in this version."""
    return [
        field
        for field, _ in flatten(config)
        if field not in RULES and field not in FREE and not field.startswith('views.')
    ]


def validate(config: ConfigDict) -> None:
    """Checks every field alone, then the combinations that need neither data nor devices.

    A combination with an open field (`dualcl_jax.method.choices`) is not checked: the run checks it again when it has
    chosen a value.

    Raises:
      UserError: a value is invalid. The message names the field, its value and the valid values.
    """
    check_fields(config, RULES | dict.fromkeys(FREE, _ANY))
    _validate_views(config.views)
    if config.train.epochs == 0 and not config.train.steps:
        raise UserError('config.train.epochs=0: train for some epochs, or set train.steps')
    if len(config.data.mean) != len(config.data.std):
        raise UserError('config.data.mean and config.data.std: give both, of one length, or neither')
    if any(value == 0 for value in config.data.std):
        raise UserError(f'config.data.std={tuple(config.data.std)}: must be above 0')
    _validate_negatives(config)
    find_model(config.model.name)
    if config.data.image_size is not None:
        _validate_image_size(config.data.image_size, config.model.name)
    if config.model.remat and not takes_remat(config.model.name):
        raise UserError(
            f'config.model.remat=True: {config.model.name} has no field remat, to recompute its blocks; use False'
        )
    if config.loss.key_weight == 1 and config.loss.key_term == 'batch':
        _validate_key_term_alone(config)


def _validate_key_term_alone(config: ConfigDict) -> None:
    """Checks a loss that consists of the key term against the batch."""
    if config.train.batch_size == 1:
        raise UserError('config.train.batch_size=1: the key term needs other queries; use a larger batch')
    if config.loss.hardness > 0:
        raise UserError(
            f'config.loss.hardness={config.loss.hardness}: no negatives are weighted with loss.key_weight=1 and '
            "loss.key_term='batch'; use 0, or a smaller loss.key_weight"
        )


def _validate_views(views: ConfigDict) -> None:
    """Checks the fields of the views. An open preset is one of images, which have the same fields and ranges."""
    if views.preset is None:
        views = ConfigDict(views.to_dict() | {'preset': next(iter(PRESETS))})
    (resolve_text_views if views.preset in TEXT_PRESETS else resolve_views)(views)


def _validate_image_size(size: int, model: str) -> None:
    """Checks that a model takes images of this size."""
    if model == 'convnext_t' and size < LEAST:
        raise UserError(f'config.data.image_size={size}: convnext_t needs at least {LEAST} pixels')
    side = PATCHES.get(model, 1)
    if size % side:
        raise UserError(
            f'config.data.image_size={size}: must be a multiple of {side}, the patches of model.name={model}'
        )


def validate_sizes(config: ConfigDict) -> None:
    """Checks that the sizes of a transformer of sentences fit each other and the sentences.

    Raises:
      UserError: a size does not fit. The message names the field.
    """
    model = config.model
    if model.name != 'transformer':
        return
    if model.width is not None and model.width % model.heads:
        raise UserError(f'config.model.heads={model.heads}: must divide model.width={model.width}')
    longest = model.max_positions - model.position_offset
    if config.text.length > longest:
        raise UserError(
            f'config.text.length={config.text.length}: must be at most {longest}, the positions of the model'
        )


def _validate_negatives(config: ConfigDict) -> None:
    """Checks that there are negatives, and that the selector and the key term can use them."""
    size, batch, k = config.queue.size, config.train.batch_size, config.negatives.k
    most = size if size != 0 else batch  # None if it is open
    if most is not None and k > most:
        named = f'config.queue.size={size}' if size else f'config.train.batch_size={batch} without a queue'
        raise UserError(f'config.negatives.k={k}: must be at most {named}')
    if size == 0 and batch == 1:
        raise UserError('config.queue.size=0: one image has no negatives; use a larger train.batch_size, or a queue')
    skip = config.negatives.skip
    if most is not None and skip >= (size or batch - 1):
        named = f'config.queue.size={size}' if size else f'{batch - 1}, the other keys of train.batch_size={batch}'
        raise UserError(f'config.negatives.skip={skip}: must be less than {named}, or no negatives remain')
    selector = find_selector(EXACT[0] if config.negatives.selector == AUTO else config.negatives.selector)
    if config.negatives.schedule != 'constant' and not selector.counted:
        raise UserError(
            f'config.negatives.schedule={config.negatives.schedule!r}: needs a '
            'negatives.selector that takes a count: '
            + ', '.join(name for name, spec in SELECTORS.items() if spec.counted)
            + ', or a SelectorSpec of your own with counted=True'
        )
    if config.queue.sharded and size == 0:
        raise UserError('config.queue.sharded=True: there is no queue (queue.size=0); use False')
    if config.queue.sharded and selector.sharded is None:
        can = ', '.join(name for name, spec in SELECTORS.items() if spec.sharded is not None)
        raise UserError(
            f'config.negatives.selector={config.negatives.selector!r}: cannot select from a sharded queue; choose one '
            f'of {can}, a SelectorSpec of your own with sharded=FUNCTION, or queue.sharded=False'
        )
    if config.loss.key_weight and config.loss.key_term == 'queue' and size == 0:
        raise UserError("config.loss.key_term='queue': there is no queue (queue.size=0); use batch")
    if config.loss.key_weight and config.loss.key_term == 'batch' and config.train.accumulate_steps > 1:
        raise UserError(
            f'config.train.accumulate_steps={config.train.accumulate_steps}: the key term compares all queries of a '
            'batch, which are never in memory at once; use 1, or loss.key_weight=0'
        )


def validate_kind(config: ConfigDict, kind: str, name: str) -> None:
    """Checks that the encoder takes the examples of a data set.

    Args:
      config: the config whose model is checked.
      kind: the kind of the examples.
      name: the name of the data set, for the message.

    Raises:
      UserError: a model of text is to be trained on something else, or another model on text.
    """
    if (config.model.name in TEXT_MODELS) == (kind == TEXT):
        return
    if kind == TEXT:
        remedy = f'choose one of {", ".join(TEXT_MODELS)}'
    else:
        remedy = (
            f'this model takes text; choose one of {", ".join(model for model in MODELS if model not in TEXT_MODELS)}'
        )
    raise UserError(f'config.model.name={config.model.name!r}: {name} holds {kind}; {remedy}')


def validate_devices(config: ConfigDict, num_devices: int) -> None:
    """Checks the values that depend on the number of devices, as far as they are set.

    Raises:
      UserError: the batch, the BN groups, or a sharded queue cannot be divided.
    """
    norm_layout(config.model.norm, num_devices)
    size = config.queue.size
    if config.queue.sharded and size is not None and size % num_devices:
        raise UserError(
            f'config.queue.size={size}: a sharded queue must be a multiple of the {num_devices} devices, such as '
            f'{max(size // num_devices, 1) * num_devices}'
        )
    batch = config.train.batch_size
    if batch is None:
        return
    if batch % num_devices:
        near = max(batch // num_devices, 1) * num_devices
        raise UserError(
            f'config.train.batch_size={batch}: must be a multiple of the {num_devices} devices, such as {near}'
        )
    parts, share = config.train.accumulate_steps, batch // num_devices
    if share % parts:
        raise UserError(
            f'config.train.accumulate_steps={parts}: must divide the {share} images of a device (batch_size={batch})'
        )
    check_groups(config, num_devices)


def validate_schedule(config: ConfigDict, total_steps: int, steps_per_epoch: int) -> None:
    """Checks the values that depend on the length of the run.

    Raises:
      UserError: the run has too many steps, or the warm-up is as long as the run.
    """
    if total_steps > MOST:
        field = 'steps' if config.train.steps else 'epochs'
        raise UserError(
            f'config.train.{field}={config.train[field]}: {total_steps:,} steps are too many; at most {MOST:,} can be '
            'counted'
        )
    if round(config.optimizer.warmup_epochs * steps_per_epoch) >= total_steps:
        raise UserError(
            f'config.optimizer.warmup_epochs={config.optimizer.warmup_epochs}: must be shorter than the run '
            f'({total_steps / steps_per_epoch:.3g} epochs)'
        )
