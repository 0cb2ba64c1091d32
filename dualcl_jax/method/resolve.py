"""Resolves a config: makes every choice that it leaves open once. Nothing changes the choice afterwards."""

from collections.abc import Collection

from ml_collections import ConfigDict, FrozenConfigDict

from dualcl_jax.data import source as data
from dualcl_jax.data.text.rows import CHECKED, CHECKS
from dualcl_jax.method.choices import TYPICAL_IMAGES, Machine, fill, is_gray
from dualcl_jax.method.negatives.selectors import AUTO, EXACT
from dualcl_jax.method.optim import LARS, RATE_LAST
from dualcl_jax.models.norm import LOCAL
from dualcl_jax.system.config import flatten
from dualcl_jax.system.devices import default_mapper

LEFT_OUT, WRONG = UNSEEN = ('left_out', 'wrong')
"""Values of monitor.unseen beside 'auto', which means 'left_out' in a new run; a stored run keeps its value."""

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
    """Makes all open choices of a config, and returns a frozen copy with them.

    In the copy, the open fields of `dualcl_jax.method.choices.OPEN` have values. `negatives.selector`,
    `optimizer.lars`, `data.hold_out`, `data.rows`, `monitor.unseen` and `parallel.mapper` have a name, and `model.norm`
    has a number of groups.
    `data.mean`, `data.std` and, unless images have 8 bits, `data.value_range` have values, and so has
    `model.vocabulary` for text. Resolving the result again changes nothing.

    Args:
      config: a validated config (`dualcl_jax.method.validation`); it is not changed.
      platform: the platform of the run's devices, such as 'cpu'; determines the values of open fields.
      num_devices: the number of devices of the run; determines the values of open fields, and the number of groups for
        `model.norm='local'`.
      num_processes: the number of processes of the run; determines the mapper for 'auto', whatever the run had before.
      num_images: the number of training images; determines the values of open fields.
      bfloat16: whether a CPU multiplies bfloat16 in hardware; determines the values of open fields.
      statistics: those of the training images, for a config whose `data.mean` is empty; None leaves it empty. They also
        show whether the images are gray, which determines an open `views.preset`.
      value_range: that of the training images, for a config whose `data.value_range` is empty.
      vocabulary: the number of tokens of the tokenizer, for a config whose `model.vocabulary` is 0.
      stored: the resolved config of the run in the workdir. A selector chosen there for 'auto', the groups chosen for
        'local' and the values of open fields are kept, whatever the devices are now.
    """
    gray = statistics is not None and not config.data.mean and is_gray(statistics)
    config = fill(config, num_images, Machine(platform, num_devices, bfloat16), stored, gray=gray)
    fields = config.to_dict()
    fields['negatives']['selector'] = _kept('negatives.selector', config, stored, EXACT, EXACT[0])  # else the fastest
    fields['model']['norm'] = _norm(config, num_devices, stored)
    fields['optimizer']['lars'] = _kept('optimizer.lars', config, stored, LARS, RATE_LAST)
    fields['monitor']['unseen'] = _kept('monitor.unseen', config, stored, UNSEEN, LEFT_OUT)
    fields['data'] |= resolve_data(config, stored)
    mapper = config.parallel.mapper
    fields['parallel']['mapper'] = default_mapper(num_processes) if mapper == AUTO else mapper
    fields['model']['vocabulary'] = config.model.vocabulary or vocabulary
    if statistics is not None and not config.data.mean:
        fields['data']['mean'], fields['data']['std'] = statistics
    fields['data']['value_range'] = config.data.value_range or value_range
    return FrozenConfigDict(fields)


def resolve_data(config: ConfigDict, stored: ConfigDict | None) -> dict[str, str]:
    """The config's `data.hold_out` and `data.rows`, for 'auto' those of the stored run or, without one, of new runs."""
    return {
        'hold_out': _kept('data.hold_out', config, stored, data.HOLD_OUTS[1:], data.GROUPED),
        'rows': _kept('data.rows', config, stored, CHECKS[1:], CHECKED),
    }


def _kept(field: str, config: ConfigDict, stored: ConfigDict | None, names: Collection[str], new: str) -> str:
    """The config's value of a field; for 'auto', that of the stored run among `names`, or `new` if there is none."""
    given: str = dict(flatten(config))[field]
    if given != AUTO:
        return given
    before = None if stored is None else dict(flatten(stored)).get(field)
    return before if isinstance(before, str) and before in names else new


def _norm(config: ConfigDict, num_devices: int, stored: ConfigDict | None) -> str:
    """The groups of the config's batch statistics; for 'local', as many as the run had devices when it started.

    Version 0.1.0 stored 'local' itself. Such a run keeps it, and `dualcl_jax.training.plan` rejects another number of
    devices.
    """
    if config.model.norm != LOCAL:
        return config.model.norm
    before = None if stored is None else dict(flatten(stored)).get('model.norm')
    if isinstance(before, str) and (before == LOCAL or before.startswith('split:')):
        return before
    return f'split:{num_devices}'
