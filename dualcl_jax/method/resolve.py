"""Resolving a config: every choice that it leaves open is made once, and nothing changes it afterwards."""

from ml_collections import ConfigDict, FrozenConfigDict

from dualcl_jax.data import source as data
from dualcl_jax.method.choices import TYPICAL_IMAGES, Machine, fill, is_gray
from dualcl_jax.method.negatives.selectors import AUTO, EXACT
from dualcl_jax.method.optim import LARS, RATE_LAST
from dualcl_jax.models.norm import LOCAL
from dualcl_jax.system.config import flatten
from dualcl_jax.system.devices import default_mapper

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, in [0, 1]."""


def resolve(
    config: ConfigDict,
    *,
    platform: str,
    num_devices: int,
    num_processes: int = 1,
    num_images: int = TYPICAL_IMAGES,
    bfloat16: bool = False,
    statistics: Statistics | None = None,
    value_range: tuple[float, ...] = (),
    vocabulary: int = 0,
    stored: ConfigDict | None = None,
) -> FrozenConfigDict:
    """A frozen copy of a config without open choices.

    The fields of `dualcl_jax.method.choices.OPEN` that are open are chosen, `negatives.selector`, `optimizer.lars` and
    `data.hold_out` have a name, `model.norm` has a number of groups, `data.mean`, `data.std` and, unless images have 8
    bits, `data.value_range` have values, and so has `model.vocabulary` for text; `parallel.mapper` has a name.
    Resolving the result again changes nothing.

    Args:
      config: validated (`dualcl_jax.method.validation`); it is not changed.
      platform: of the devices of the run, such as 'cpu': decides what open fields stand for.
      num_devices: of the run: decides the same, and how many groups `model.norm='local'` stands for.
      num_processes: of the run: decides which mapper 'auto' stands for, whatever the run had before.
      num_images: for training, and
      bfloat16: whether a CPU multiplies it in hardware: both decide what open fields stand for.
      statistics: of the training images, for a config whose `data.mean` is empty; None leaves it empty. They also say
        whether the images are gray, which decides an open `views.preset`.
      value_range: of the training images, for a config whose `data.value_range` is empty.
      vocabulary: the number of tokens of the tokenizer, for a config whose `model.vocabulary` is 0.
      stored: the resolved config of the run in the workdir. A selector chosen there for 'auto', the groups chosen for
        'local' and the values of open fields are kept, whatever the devices are now.
    """
    gray = statistics is not None and not config.data.mean and is_gray(statistics)
    config = fill(config, num_images, Machine(platform, num_devices, bfloat16), stored, gray=gray)
    fields = config.to_dict()
    fields['negatives']['selector'] = _selector(config, stored)
    fields['model']['norm'] = _norm(config, num_devices, stored)
    fields['optimizer']['lars'] = _lars(config, stored)
    fields['data']['hold_out'] = resolve_hold_out(config, stored)
    mapper = config.parallel.mapper
    fields['parallel']['mapper'] = default_mapper(num_processes) if mapper == AUTO else mapper
    fields['model']['vocabulary'] = config.model.vocabulary or vocabulary
    if statistics is not None and not config.data.mean:
        fields['data']['mean'], fields['data']['std'] = statistics
    fields['data']['value_range'] = config.data.value_range or value_range
    return FrozenConfigDict(fields)


def resolve_hold_out(config: ConfigDict, stored: ConfigDict | None) -> str:
    """The config's `data.hold_out`; for 'auto' that of the stored run, or 'stratified' where there is none."""
    if config.data.hold_out != data.AUTO:
        return config.data.hold_out
    before = None if stored is None else dict(flatten(stored)).get('data.hold_out')
    return before if before in data.HOLD_OUTS[1:] else data.STRATIFIED


def _lars(config: ConfigDict, stored: ConfigDict | None) -> str:
    """The config's `optimizer.lars`; for 'auto' that of the stored run, or 'rate_last' where there is none."""
    if config.optimizer.lars != AUTO:
        return config.optimizer.lars
    before = None if stored is None else dict(flatten(stored)).get('optimizer.lars')
    return before if before in LARS else RATE_LAST


def _selector(config: ConfigDict, stored: ConfigDict | None) -> str:
    """The name of the config's selector; for 'auto' that of the stored run, if it is exact, or else the fastest."""
    if config.negatives.selector != AUTO:
        return config.negatives.selector
    before = None if stored is None else dict(flatten(stored)).get('negatives.selector')
    return before if before in EXACT else EXACT[0]


def _norm(config: ConfigDict, num_devices: int, stored: ConfigDict | None) -> str:
    """The groups of the config's batch statistics; for 'local' as many as the run had devices when it started.

    Version 0.1.0 stored 'local' itself. Such a run keeps it, and `dualcl_jax.training.plan` rejects another number of
    devices.
    """
    if config.model.norm != LOCAL:
        return config.model.norm
    before = None if stored is None else dict(flatten(stored)).get('model.norm')
    if isinstance(before, str) and (before == LOCAL or before.startswith('split:')):
        return before
    return f'split:{num_devices}'
