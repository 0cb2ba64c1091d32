"""The parts of the method for training loops of one's own: the queue, the loss against it, selectors and views.

All of them are pure functions over arrays and pytrees, for any network and any optimizer. They read no config and no
files, and run under `jax.jit` and `jax.grad`. The momentum encoder is `optax.incremental_update` of the parameters.
docs/python.md has a training step.
"""

from dualcl_jax.losses import (
    Contrast,
    Selection,
    Selector,
    chance_level,
    dual_view_loss,
    info_nce,
    normalize,
    select_all,
    select_top_k,
)
from dualcl_jax.method.negatives.queue import UNKNOWN, Queue, empty_queue, enqueue, noise_queue
from dualcl_jax.method.negatives.queue_loss import Anchors, QueueContrast, contrast_with_queue
from dualcl_jax.method.negatives.selectors import (
    SelectorSpec,
    select_approx_max_k,
    select_random,
    select_ring,
    select_threshold,
)
from dualcl_jax.method.views.images import PRESETS, ViewSpec, make_views

__all__ = [
    'PRESETS',
    'UNKNOWN',
    'Anchors',
    'Contrast',
    'Queue',
    'QueueContrast',
    'Selection',
    'Selector',
    'SelectorSpec',
    'ViewSpec',
    'chance_level',
    'contrast_with_queue',
    'dual_view_loss',
    'empty_queue',
    'enqueue',
    'info_nce',
    'make_views',
    'noise_queue',
    'normalize',
    'select_all',
    'select_approx_max_k',
    'select_random',
    'select_ring',
    'select_threshold',
    'select_top_k',
]
