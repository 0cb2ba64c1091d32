"""Evaluates an encoder: python -m dualcl_jax.evaluate --workdir=DIR --protocols=knn,linear,...

Evaluates the encoders of a run or, with --exported=FILE instead of --workdir, the encoder in a file written by
dualcl_jax.export. Writes the records of each protocol to DIR/evaluation/PROTOCOL.json and prints a table of them. If
the output is not a terminal, or with --json, the last line has all of them as JSON. Any setting of a protocol and other
data can be given, as in --config.knn.k=20,200 --config.data.name=fashion_mnist.
"""

import argparse
import sys
from collections.abc import Sequence

from dualcl_jax.system.callable_module import make_callable
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.user_modules import import_own

PROTOCOLS = ('knn', 'linear', 'finetune', 'semi', 'few_shot', 'retrieval', 'clustering', 'robustness', 'structure')
TEXT_PROTOCOLS = ('sts', 'retrieval', 'transfer')
"""The names of `dualcl_jax.evaluators.protocols`, which imports JAX."""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags, and the overrides of config fields as 'field=value'.

    Raises:
      UserError: a flag is unknown or missing.
    """
    parser = Parser(
        'python -m dualcl_jax.evaluate',
        __doc__,
        epilog=f'protocols: {", ".join(PROTOCOLS)}\n'
        f'for text: {", ".join(TEXT_PROTOCOLS)}, and those above except finetune, semi and robustness\n'
        'dualcl_jax/evaluators/settings.py documents every setting of the protocols.',
    )
    parser.add_import()
    parser.add_argument('--workdir', help='folder of a run, local or remote')
    parser.add_argument('--exported', metavar='FILE', help='a file written by python -m dualcl_jax.export')
    parser.add_argument(
        '--protocols', required=True, help='comma-separated names, or all; one that cannot run is an error'
    )
    parser.add_argument('--step', help='a checkpoint: latest (default), best (by kNN, or else STS-B dev) or a number')
    parser.add_argument('--encoders', help='query (default), momentum or all; structure always uses all')
    parser.add_argument('--layers', default='all', help='backbone, projection or all')
    parser.add_argument(
        '--output', help='folder of the results; default: evaluation/ in the workdir, or FILE.evaluation/'
    )
    parser.add_argument('--json', action='store_true', help='also print all records as JSON')
    flags, fields = parser.parse_with_fields(arguments)
    if (flags.workdir is None) == (flags.exported is None):
        parser.error('give either --workdir or --exported')
    if flags.exported is not None and flags.step is not None:
        parser.error(f'--step={flags.step}: an exported encoder has only one step; leave the flag out')
    return flags, fields


@exits_cleanly
def main() -> int:
    flags, overrides = parse(sys.argv[1:])
    from dualcl_jax.system.processes.heartbeat import ending_together
    from dualcl_jax.system.processes.start import start

    start()
    with ending_together():
        import_own(flags.own)
        from dualcl_jax.api.evaluate import run_protocols
        from dualcl_jax.system.console import print_json

        found = run_protocols(
            flags.workdir,
            flags.exported,
            protocols=flags.protocols,
            step=flags.step or 'latest',
            encoders=flags.encoders,
            layers=flags.layers,
            output=flags.output,
            fields=overrides,
        )
        print_json(found, always=flags.json)
        return 0


make_callable(__name__, 'dualcl_jax.api.evaluate:evaluate')

if __name__ == '__main__':
    sys.exit(main())
