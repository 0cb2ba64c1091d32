"""Compiles the step of a config for devices that need not be present, and reports whether it fits and what it costs.

    python -m dualcl_jax.compile --config=configs/cifar10.py --topology=v5e:4x4 [--config.train.batch_size=4096 ...]

Without --topology, it compiles for the devices of this machine. A topology needs libtpu (pip install 'dualcl-jax[tpu]')
and no TPU. If the output is not a terminal, or with --json, the last line is JSON.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.user_modules import import_named


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags, and the overrides of config fields. Raises UserError if a flag is unknown or missing."""
    parser = Parser('python -m dualcl_jax.compile', __doc__)
    parser.add_argument(
        '--config',
        required=True,
        help='a config file, or the name of a built-in config, such as cifar10 or imagenet:moco_v3',
    )
    parser.add_argument('--topology', help='a TPU topology, such as v5e:4x4; default: the devices of this machine')
    parser.add_argument('--json', action='store_true', help='also print the report as JSON')
    return parser.parse_with_fields(arguments)


@exits_cleanly
def main() -> int:
    flags, overrides = parse(sys.argv[1:])
    from dualcl_jax.system.config import flatten, load_config, override
    from dualcl_jax.system.processes.start import start

    config = load_config(flags.config)
    override(config, overrides)
    if flags.topology:
        os.environ['JAX_PLATFORMS'] = 'cpu'  # otherwise a TPU of this machine would be locked needlessly
    start(several=False)
    import_named(dict(flatten(config)))
    import jax

    from dualcl_jax.system.console import print_json
    from dualcl_jax.training.ahead_of_time import compile_step, show, topology_devices

    devices = topology_devices(flags.topology) if flags.topology else jax.devices()
    report: dict[str, Any] = compile_step(config, devices)
    show(report)
    print_json(report, always=flags.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
