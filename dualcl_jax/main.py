"""Trains: python -m dualcl_jax.main --config=configs/cifar10.py --workdir=DIR [--config.loss.symmetric=False ...]."""

import argparse
import sys
from collections.abc import Sequence

from dualcl_jax import configs
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import EXIT_RESTART, exits_cleanly
from dualcl_jax.system.processes.stop_signal import exits_on_signals
from dualcl_jax.system.user_modules import import_named


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags, and the overrides of config fields as 'field=value'.

    Raises:
      UserError: a flag is unknown or missing.
    """
    parser = Parser(
        'python -m dualcl_jax.main',
        'Trains an encoder. The same command on the same workdir resumes the run.',
        epilog=f'configs: {", ".join(configs.names())}\n'
        'Any config field can be set, as in --config.loss.symmetric=False; '
        f'{configs.path_of("default")} lists them all.',
    )
    parser.add_argument(
        '--config',
        required=True,
        help='a config file, or the name of a built-in config, such as cifar10 or imagenet:moco_v3',
    )
    parser.add_argument('--workdir', help='folder of the run, local or remote; required except with --show_views')
    parser.add_argument('--show_views', metavar='FILE.png', help='draw pairs of views of some images and exit')
    parser.add_argument('--dry_run', action='store_true', help='check everything and print the plan without training')
    parser.add_argument(
        '--extend', action='store_true', help='train the run in the workdir longer, to the length of the config'
    )
    parser.add_argument(
        '--init_from',
        metavar='PATH',
        help='start from the encoder in a workdir, in a file of weights or, for text, in a Hugging Face folder',
    )
    parser.add_argument(
        '--skip_nonfinite',
        type=int,
        metavar='N',
        help='skip up to N batches whose loss, gradient or next state is not finite',
    )
    parser.add_argument(
        '--profile', type=int, default=0, metavar='STEPS', help='write a profiler trace of STEPS steps to profile/'
    )
    parser.add_argument('--coordinator_address', help='HOST:PORT of process 0, for several processes')
    parser.add_argument('--num_processes', type=int, help='number of processes that run this command')
    parser.add_argument('--process_id', type=int, help='index of this process, from 0')
    flags, overrides = parser.parse_with_fields(arguments)
    if flags.profile < 0:
        parser.error(f'--profile={flags.profile}: must be at least 0')
    if flags.workdir is None and flags.show_views is None:
        parser.error('the following arguments are required: --workdir')
    return flags, overrides


@exits_cleanly
def main() -> int:
    with exits_on_signals():
        return _main(*parse(sys.argv[1:]))


def _main(flags: argparse.Namespace, overrides: list[str]) -> int:
    from dualcl_jax.system.config import flatten, load_config, override
    from dualcl_jax.system.processes.heartbeat import ending_together
    from dualcl_jax.system.processes.start import start

    config = load_config(flags.config)
    override(config, overrides)
    if flags.init_from is not None:
        config.init_from = flags.init_from
    if flags.skip_nonfinite is not None:
        config.skip_nonfinite = flags.skip_nonfinite
    fields = dict(flatten(config))
    facts = {name: repr(value) for name, value in fields.items()} | {'--workdir': str(flags.workdir)}
    timeout_s = fields.get('parallel.timeout_s', 50.0)
    deterministic = fields.get('parallel.deterministic', True)
    start(flags.coordinator_address, flags.num_processes, flags.process_id, facts, timeout_s, deterministic)
    with ending_together():
        import_named(fields)
        if flags.show_views is not None:
            from dualcl_jax.reports.view_sheet import show_views

            show_views(config, flags.show_views)
            return 0
        if flags.dry_run:
            from dualcl_jax.training.dry_run import dry_run

            dry_run(config, flags.workdir, extend=flags.extend)
            return 0
        from dualcl_jax.training.loop import train

        return 0 if train(config, flags.workdir, traced_steps=flags.profile, extend=flags.extend) else EXIT_RESTART


if __name__ == '__main__':
    sys.exit(main())
