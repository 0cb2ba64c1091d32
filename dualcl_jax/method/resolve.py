"""Resolving a config: every choice that it leaves open is made once, and nothing changes it afterwards."""

from ml_collections import ConfigDict, FrozenConfigDict

from dualcl_jax.data import source as data
from dualcl_jax.method.negatives.selectors import AUTO, EXACT, fastest_exact, resolve_k
from dualcl_jax.system.config import flatten

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, in [0, 1]."""


def resolve(
    config: ConfigDict, *, platform: str, statistics: Statistics | None = None, stored: ConfigDict | None = None
) -> FrozenConfigDict:
    """A frozen copy of a config in which `negatives.selector`, `data.hold_out`, `data.mean` and `data.std` have values.

    Resolving the result again changes nothing.

    Args:
      config: validated (`dualcl_jax.method.validation`); it is not changed.
      platform: of the devices of the run, such as 'cpu': decides which selector 'auto' stands for.
      statistics: of the training images, for a config whose `data.mean` is empty; None leaves it empty.
      stored: the resolved config of the run in the workdir. A selector chosen there for 'auto' is kept, whatever the
        platform is now.
    """
    fields = config.to_dict()
    fields['negatives']['selector'] = _selector(config, platform, stored)
    fields['data']['hold_out'] = resolve_hold_out(config, stored)
    if statistics is not None and not config.data.mean:
        fields['data']['mean'], fields['data']['std'] = statistics
    return FrozenConfigDict(fields)


def resolve_hold_out(config: ConfigDict, stored: ConfigDict | None) -> str:
    """The config's `data.hold_out`; for 'auto' that of the stored run, or 'stratified' where there is none."""
    if config.data.hold_out != data.AUTO:
        return config.data.hold_out
    before = None if stored is None else dict(flatten(stored)).get('data.hold_out')
    return before if before in data.HOLD_OUTS[1:] else data.STRATIFIED


def _selector(config: ConfigDict, platform: str, stored: ConfigDict | None) -> str:
    """The name of the config's selector; for 'auto' one that selects exactly the k hardest."""
    negatives, candidates = config.negatives, config.queue.size or config.train.batch_size
    if negatives.selector != AUTO:
        return negatives.selector
    before = None if stored is None else dict(flatten(stored)).get('negatives.selector')
    if before in EXACT:
        return before
    if negatives.schedule != 'constant':
        return 'threshold'  # the only exact one whose count may change from step to step
    return fastest_exact(platform, resolve_k(negatives.k, negatives.fraction, candidates), candidates)
