"""Estimates the cost of the views of a batch at 224 pixels on a TPU, by libtpu's compiler.

    python -m experiments.benchmark.views_tpu

It compiles two views of 64 images ahead of time, from crops that the host has made, for one chip of a topology: once
as for large images, and once as for small ones. No TPU is needed, only libtpu. The cycles are the
compiler's estimates, summed over all kernels; the bytes are XLA's count of what the kernels read and write. The last
line is JSON.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly

PAIRS, SIZE = 64, 224


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown."""
    parser = Parser('python -m experiments.benchmark.views_tpu', __doc__)
    parser.add_argument('--topology', default='v5e:2x2')
    parser.add_argument('--presets', nargs='+', default=['moco_v2', 'moco_v3'])
    return parser.parse_args(arguments)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    os.environ['JAX_PLATFORMS'] = 'cpu'
    import jax
    import numpy as np
    from jax.sharding import SingleDeviceSharding

    from dualcl_jax.method.views import images
    from dualcl_jax.system.versions import versions
    from dualcl_jax.training.ahead_of_time import topology_devices

    device = topology_devices(flags.topology)[0]
    here = SingleDeviceSharding(device)
    keys = jax.ShapeDtypeStruct((PAIRS, 2), np.uint32, sharding=here)
    crops = jax.ShapeDtypeStruct((PAIRS, 2, SIZE, SIZE, 3), np.uint8, sharding=here)
    cases: list[dict[str, Any]] = []
    large = images.LARGE
    for preset in flags.presets:
        for way, least in (('small', SIZE + 1), ('large', large)):
            images.LARGE = least
            make = partial(images.make_views, specs=images.PRESETS[preset], size=SIZE)
            compiled = jax.jit(make).lower(keys, crops).compile()
            cycles = [int(found) for found in re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text() or '')]
            case = {'preset': preset, 'as_images_that_are': way, 'cycles': sum(cycles), 'kernels': len(cycles)}
            case |= {'bytes': round((compiled.cost_analysis() or {})['bytes accessed'])}
            cases.append(case)
            print(case, flush=True)
    command = 'python -m experiments.benchmark.views_tpu'
    about = {'command': command, 'device': device.device_kind, 'pairs': PAIRS, 'size': SIZE}
    print(json.dumps({'cases': cases} | about | {'versions': versions() | {'libtpu': _version()}}))
    return 0


def _version() -> str:
    from importlib.metadata import version

    return version('libtpu')


if __name__ == '__main__':
    sys.exit(main())
