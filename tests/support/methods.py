"""Methods of images without a data set."""

from typing import Any

import numpy as np

from dualcl_jax.method.build import Method, build_method
from dualcl_jax.method.resolve import resolve
from dualcl_jax.method.views import VIEWS


def image_method(config: Any, *, channels: int = 3, **lengths: int) -> Method:
    """The method of a config, resolved for CPUs, for images; `lengths` are those of `build_method`."""
    config = resolve(config, platform='cpu', num_devices=lengths.get('num_devices', 1))
    views = VIEWS['images'](config, np.empty((0, 1, 1, channels), np.uint8))
    return build_method(config, views, **lengths)
