"""Sweeps: runs of several methods with several seeds at an equal budget, and tables and plots of their results.

    python -m experiments.ablation run experiments/sweeps/share.py --output=DIR --jobs=2 --config.data.data_dir=DATA
    python -m experiments.ablation draw DIR

The same `run` command resumes an interrupted sweep. Exit status: 0 all runs are done; 2 some failed, or the command is
wrong; 75 stopped by a signal, repeat the command to continue. `experiments/README.md` has the details.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.console import duration
from dualcl_jax.system.errors import EXIT_RESTART, UserError, exits_cleanly
from experiments.ablation.measures import MEASURES
from experiments.ablation.records import (
    Record,
    make_plan,
    read_all,
    read_plan,
    read_record,
    same_runs,
    store,
    write_plan,
)
from experiments.ablation.runs import run_jobs
from experiments.ablation.sweep import Job, Sweep, load_sweep, plan


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the flags, and the overrides of every arm as 'field=value'.

    Raises:
      UserError: a flag is unknown or missing, or has an invalid value.
    """
    parser = Parser('python -m experiments.ablation', __doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    run = commands.add_parser('run', help='run all runs without a record, then draw')
    run.add_argument('sweep', help='a file in experiments/sweeps')
    run.add_argument(
        '--output', type=Path, required=True, metavar='DIR', help='folder for runs, records, tables and plots'
    )
    run.add_argument('--jobs', type=int, default=1, metavar='N', help='number of concurrent runs')
    run.add_argument('--item', default='0/1', metavar='I/N', help='every N-th run, starting with run I, from 0 to N-1')
    run.add_argument('--arms', help='run only these arms, such as moco,full')
    run.add_argument(
        '--records',
        type=Path,
        action='append',
        default=[],
        metavar='DIR',
        help='folder of another sweep whose records of equal runs to reuse; may be repeated',
    )
    run.add_argument('--budget', type=int, help='passes of examples through the pair of encoders per run')
    run.add_argument('--seeds', help="such as 0,1,2; default: the sweep's own")
    run.add_argument('--dry_run', action='store_true', help='print the plan and its time without running it')
    draw = commands.add_parser('draw', help='draw tables and plots from stored records')
    draw.add_argument('output', type=Path, metavar='DIR', help='the --output folder of a sweep')
    flags, fields = parser.parse_with_fields(arguments)
    if flags.command == 'draw' and fields:
        parser.error(f'--config.{fields[0]}: the runs are already done; leave the flag out')
    return flags, fields


def item(text: str) -> slice:
    """Parses 'I/N' as the runs I, I + N, I + 2N and so on. Raises UserError if it is malformed."""
    number, _, count = text.partition('/')
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f'--item={text}: give I/N with I from 0 to N-1, such as 0/4')
    return slice(int(number), None, int(count))


def changed(sweep: Sweep, flags: argparse.Namespace) -> Sweep:
    """Replaces the seeds and the budget of a sweep by those of the flags."""
    if flags.seeds is not None:
        given = flags.seeds.split(',')
        if not all(seed.strip().isdecimal() for seed in given) or len(set(map(int, given))) < len(given):
            raise UserError(f'--seeds={flags.seeds}: give whole numbers from 0, each once, such as 0,1,2')
        sweep = dataclasses.replace(sweep, seeds=tuple(map(int, given)))
    return dataclasses.replace(sweep, budget=sweep.budget if flags.budget is None else flags.budget)


def chosen(sweep: Sweep, jobs: list[Job], arms: str | None) -> list[Job]:
    """The jobs of the arms 'ARM,ARM', or all jobs for None. Raises UserError if the sweep has no such arm."""
    if arms is None:
        return jobs
    wanted, known = arms.split(','), [arm.name for arm in sweep.arms]
    for name in wanted:
        if name not in known:
            raise UserError(f'--arms={arms}: {name!r} is not one of the arms: {", ".join(known)}')
    return [job for job in jobs if job.arm in wanted]


def time_left(jobs: Sequence[Job], records: Sequence[Record], at_once: int) -> float | None:
    """Estimated seconds for the jobs, from the time per pass of finished runs; None without finished runs.

    If there are finished runs of the same arm, only these count.
    """
    if not records:
        return None
    total = 0.0
    for job in jobs:
        alike = [record for record in records if record['arm'] == job.arm] or records
        total += job.passes * statistics.median(record['wall_time_s'] / record['passes'] for record in alike)
    return total / at_once


def describe(sweep: Sweep, jobs: Sequence[Job], done: int, seconds: float | None) -> None:
    """Prints the plan."""
    table = Table('arm', 'seeds', 'steps', 'passes', 'fields', title=sweep.title)
    for arm in sweep.arms:
        own = [job for job in jobs if job.arm == arm.name]
        if own:
            seeds = ','.join(str(job.seed) for job in own)
            table.add_row(arm.name, seeds, f'{own[0].steps:,}', f'{own[0].passes:,}', ' '.join(arm.fields))
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f'{sweep.config} with {" ".join(sweep.base)}')
    left = 'unknown until a run is done' if seconds is None else f'about {duration(seconds)}'
    console.print(f'{len(jobs)} runs, {done} of them done; time left: {left}')


def run(flags: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs all jobs without a record; returns the exit status."""
    if flags.jobs < 1:
        raise UserError(f'--jobs={flags.jobs}: must be at least 1')
    sweep = changed(load_sweep(flags.sweep), flags)
    jobs = chosen(sweep, plan(sweep, overrides), flags.arms)[item(flags.item)]
    planned = make_plan(sweep, flags.sweep, overrides)
    found = {job.name: record for job in jobs if (record := read_record(flags.output, job)) is not None}
    new = [job for job in jobs if job.name not in found]
    taken = {name: record for other in flags.records for name, record in same_runs(new, other, sweep).items()}
    found |= taken
    records = read_all(flags.output, planned)  # those of other arms and seeds, too, before the plan is replaced
    if flags.dry_run:
        left = [job for job in jobs if job.name not in found]
        describe(sweep, jobs, len(found), time_left(left, records, flags.jobs))
        return 0
    empty = [field for job in jobs if job.name not in found for field in job.settings if field.endswith('=')]
    if empty:
        raise UserError(f'--config.{empty[0]}: the runs are measured with this field; give its value')
    write_plan(flags.output, planned)
    for job in new:
        if job.name in taken:
            store(flags.output, job, taken[job.name])
    value = MEASURES[sweep.measure].validation.key
    done = {name: record[value] for name, record in found.items()}
    outcome = run_jobs(flags.output, sweep, jobs, done, flags.jobs)
    if outcome.done:
        draw(flags.output)
    for failed, words in outcome.failed.items():
        print(f'{failed} failed: {words}')
    if outcome.stopped:
        print(f'stopped: {len(outcome.done)} of {len(jobs)} runs are done; run the same command to continue')
        return EXIT_RESTART
    if outcome.failed:
        failed, words = next(iter(outcome.failed.items()))
        raise UserError(
            f'{len(outcome.failed)} of {len(jobs)} runs failed, the first {failed}: {words.removeprefix("error: ")}\n'
            f'see {flags.output}/logs, fix the cause, and run the same command again'
        )
    return 0


def draw(output: Path) -> None:
    """Writes tables and plots from the stored records."""
    from experiments.ablation.plots import draw_plots
    from experiments.ablation.tables import compare, write_tables

    sweep = read_plan(output)
    records = read_all(output, sweep)
    if not records:
        raise UserError(f'{output}/records: no run is finished yet')
    comparison = compare(sweep, records)
    if not comparison.rows:
        raise UserError(f'{output}/records: no run has a kNN accuracy; use data with labels for training and testing')
    written = [*write_tables(output, comparison), *draw_plots(output, comparison)]
    print(f'{output}: {", ".join(written)}')


@exits_cleanly
def main() -> int:
    flags, overrides = parse(sys.argv[1:])
    if flags.command == 'run':
        return run(flags, overrides)
    draw(flags.output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
