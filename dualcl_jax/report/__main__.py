"""Makes the report of runs again, or one page of several: python -m dualcl_jax.report --workdir=A [--workdir=B ...].

Without --output the report of a single run goes into its workdir, as report.html.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dualcl_jax.command_line import Parser
from dualcl_jax.errors import UserError, exits_cleanly

if TYPE_CHECKING:
    from dualcl_jax.report.content import Content

MOST_RUNS = 6


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Flags. Raises UserError where one is unknown, missing or has no such value."""
    parser = Parser('python -m dualcl_jax.report', __doc__)
    parser.add_argument('--workdir', required=True, action='append', help='folder of a run; again for each other run')
    parser.add_argument('--output', metavar='FILE.html', help='the page; needed for several runs')
    flags = parser.parse_args(arguments)
    if flags.output is None:
        if len(flags.workdir) > 1:
            parser.error('--output: name the page of several runs')
        flags.output = f'{flags.workdir[0]}/report.html'
    if len(flags.workdir) > MOST_RUNS:
        parser.error(f'--workdir: at most {MOST_RUNS} runs fit on a page')
    return flags


def describe_workdir(workdir: str) -> 'Content':
    """What the page shows of a run: its newest checkpoint on its own data.

    Raises:
      UserError: there is no run with a checkpoint, or its data are not here.
    """
    from dualcl_jax.data import load
    from dualcl_jax.data.order import steps_per_epoch
    from dualcl_jax.evaluators.embed import Embedder
    from dualcl_jax.finished import open_finished
    from dualcl_jax.method import build_method
    from dualcl_jax.metrics import read_records
    from dualcl_jax.parallel import to_host
    from dualcl_jax.report.content import Subject, describe
    from dualcl_jax.report.samples import take_samples
    from dualcl_jax.workdir import read_summary

    run = open_finished(workdir)
    splits = load(run.config.data, validate=True)
    if splits.train.fingerprint != run.data_fingerprint:
        raise UserError(
            f'data.name={run.config.data.name}: not the images that {workdir} was trained on; restore the data'
        )
    epoch = steps_per_epoch(len(splits.train), run.config.train.batch_size)
    total_steps = run.config.train.steps or run.config.train.epochs * epoch
    samples = take_samples(Embedder(run.method, run.mesh), run.state.variables, splits)
    assert samples is not None
    summary = read_summary(run.folder)
    subject = Subject(
        folder=run.folder,
        config=run.config,
        method=build_method(run.config, total_steps=total_steps, steps_per_epoch=epoch, num_devices=1),
        splits=splits,
        total_steps=total_steps,
        steps_per_epoch=epoch,
        state=to_host(run.state),
        records=[record for record in read_records(run.folder / 'metrics.jsonl') if record['step'] <= run.step],
        versions=summary['versions'] if summary else {},
    )
    return describe(subject, samples)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    from dualcl_jax import runtime
    from dualcl_jax.finished import find_run
    from dualcl_jax.output import check_output, write_output

    for workdir in flags.workdir:
        find_run(workdir)
    check_output(flags.output)
    runtime.start(None, None, None)
    from dualcl_jax.report.page import render

    runs = [describe_workdir(workdir) for workdir in flags.workdir]
    if len({run['name'] for run in runs}) < len(runs):
        runs = [run | {'name': workdir} for run, workdir in zip(runs, flags.workdir, strict=True)]
    page = render(runs)
    write_output(flags.output, page.encode())
    print(f'{flags.output}: report of {", ".join(flags.workdir)}, {len(page) / 1e6:.1f} MB; open it in a browser')
    return 0


if __name__ == '__main__':
    sys.exit(main())
