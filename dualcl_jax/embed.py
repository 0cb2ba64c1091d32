"""Writes the features of images or sentences: python -m dualcl_jax.embed --workdir=DIR --data=PATH --output=F.parquet

The encoder is that of a run or, with --encoder=FILE, one in a file written by dualcl_jax.export. The output has a row
for each image or sentence, with its file name or text, label and features, as .parquet, .npz or .csv. Images without a
file of their own are named by split and row, such as train/0. An interrupted command resumes. If the output is not a
terminal, or with --json, the last line is JSON.
"""

import argparse
import sys
from collections.abc import Sequence

from dualcl_jax.system.callable_module import make_callable
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.user_modules import import_own


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags, and the overrides of fields of the data as 'field=value'.

    Raises:
      UserError: a flag is unknown or missing.
    """
    from dualcl_jax.api.embed import NEAR_DUPLICATE, OUTLIER

    parser = Parser('python -m dualcl_jax.embed', __doc__)
    parser.add_import()
    parser.add_argument('--workdir', help='folder of a run, local or remote')
    parser.add_argument('--encoder', '--exported', metavar='FILE', help='a file written by dualcl export')
    parser.add_argument('--data', help='images (a folder or .npz) or sentences (a file); default: those of the run')
    parser.add_argument('--output', required=True, metavar='FILE', help='the file to write: .parquet, .npz or .csv')
    parser.add_argument('--layer', help='backbone (default) or projection')
    parser.add_argument(
        '--step', default='latest', help='a checkpoint: latest (default), best (by kNN, or else STS-B dev) or a number'
    )
    parser.add_argument('--momentum', action='store_true', help='use the momentum encoder, not the query encoder')
    parser.add_argument('--labels', default='auto', help='auto (default), subfolders, none, or a CSV file')
    parser.add_argument(
        '--near_duplicates',
        type=float,
        nargs='?',
        const=NEAR_DUPLICATE,
        metavar='SIMILARITY',
        help=f'find pairs that are at least this similar, at most 1; {NEAR_DUPLICATE:g} if no value is given',
    )
    parser.add_argument(
        '--outliers',
        type=float,
        nargs='?',
        const=OUTLIER,
        metavar='SCORE',
        help=f'find examples that are this unusual, in deviations from the median; {OUTLIER:g} if no value is given',
    )
    parser.add_argument('--json', action='store_true', help='also print the counts as JSON')
    flags, fields = parser.parse_with_fields(arguments)
    for field in fields:
        if not field.startswith('data.'):
            parser.error(f'--config.{field}: only fields of config.data can be given')
    return flags, fields


@exits_cleanly
def main() -> int:
    flags, fields = parse(sys.argv[1:])
    from dualcl_jax.api.embed import Request, check, embed_to
    from dualcl_jax.system.console import print_json
    from dualcl_jax.system.processes.start import start

    given = {name: value for name, value in vars(flags).items() if name in Request._fields}
    request = Request(**given, fields=fields)
    check(request)
    start(several=False)
    import_own(flags.own)
    print_json(embed_to(request, flags.output, return_features=False)[1], always=flags.json)
    return 0


make_callable(__name__, 'dualcl_jax.api.embed:embed')

if __name__ == '__main__':
    sys.exit(main())
