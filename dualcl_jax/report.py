"""Writes the report of a run, or one of up to six runs: python -m dualcl_jax.report --workdir=A [--workdir=B ...].

Without --output, the report of a single run is written to report.html in its workdir. --config.data.path=PATH,
--config.data.data_dir=PATH and --config.data.labels=FILE say where its data are, if they have moved.
"""

import argparse
import sys
from collections.abc import Sequence

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.config import MOVABLE
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.user_modules import import_own

MOST_RUNS = 6


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags, and the overrides of fields with paths as 'field=value'.

    Raises:
      UserError: a flag is unknown or missing, or has an invalid value.
    """
    parser = Parser('python -m dualcl_jax.report', __doc__)
    parser.add_import()
    parser.add_argument(
        '--workdir', required=True, action='append', help=f'folder of a run; repeat the flag for up to {MOST_RUNS} runs'
    )
    parser.add_argument('--output', metavar='FILE.html', help='the file to write; required for several runs')
    flags, overrides = parser.parse_with_fields(arguments)
    for field in (assignment.partition('=')[0] for assignment in overrides):
        if field not in MOVABLE:
            parser.error(f'--config.{field}: only {", ".join(MOVABLE)} can be given, for data that have moved')
    if flags.output is None:
        if len(flags.workdir) > 1:
            parser.error('--output: required for several runs')
        flags.output = f'{flags.workdir[0]}/report.html'
    if len(flags.workdir) > MOST_RUNS:
        parser.error(f'--workdir: at most {MOST_RUNS} runs fit in a report')
    if overrides and len(flags.workdir) > 1:
        parser.error('--config.data: can be given only with a single --workdir')
    return flags, overrides


@exits_cleanly
def main() -> int:
    flags, overrides = parse(sys.argv[1:])
    from dualcl_jax.system.files import check_output, write_output
    from dualcl_jax.system.processes.start import start
    from dualcl_jax.workdir.saved_run import find_run

    for workdir in flags.workdir:
        find_run(workdir)
    check_output(flags.output)
    start(several=False)
    import_own(flags.own)
    from dualcl_jax.reports.content import describe
    from dualcl_jax.reports.page import render
    from dualcl_jax.reports.subject import read_subject

    runs = [describe(*read_subject(workdir, overrides)) for workdir in flags.workdir]
    if len({run['name'] for run in runs}) < len(runs):
        runs = [run | {'name': workdir} for run, workdir in zip(runs, flags.workdir, strict=True)]
    page = render(runs)
    write_output(flags.output, page.encode())
    print(f'{flags.output}: report of {", ".join(flags.workdir)}, {len(page) / 1e6:.1f} MB; open it in a browser')
    return 0


if __name__ == '__main__':
    sys.exit(main())
