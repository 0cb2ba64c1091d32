"""The training loop."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from dualcl_jax.data import Loader
from dualcl_jax.method.state import TrainState
from dualcl_jax.method.validation import validate
from dualcl_jax.reports.pictures import draw_pictures
from dualcl_jax.reports.samples import take_samples
from dualcl_jax.reports.subject import Subject
from dualcl_jax.step import train_step
from dualcl_jax.system.console import Console
from dualcl_jax.system.devices import gathered, process_rows, to_host
from dualcl_jax.system.errors import FULL, reason_of
from dualcl_jax.system.files import write_json
from dualcl_jax.system.machine import share_of_cores
from dualcl_jax.system.processes.agreement import from_all, from_process_0
from dualcl_jax.system.processes.heartbeat import Heartbeat
from dualcl_jax.system.processes.stop_signal import StopSignal
from dualcl_jax.system.terminal import lenient_output
from dualcl_jax.training import summary
from dualcl_jax.training.health import Skipped
from dualcl_jax.training.in_flight import InFlight
from dualcl_jax.training.profiler import Trace
from dualcl_jax.training.run import Run, open_run
from dualcl_jax.workdir.checksum import state_sha256
from dualcl_jax.workdir.folder import missing_is_away, read_summary
from dualcl_jax.workdir.metrics import SCORES, MetricsLog
from dualcl_jax.workdir.trackers import Tracker

IN_FLIGHT = 2
"""How many steps may be in flight on the devices before the host waits for the oldest."""


def train(
    config: ConfigDict, workdir: str, *, traced_steps: int = 0, extend: bool = False, ends_process: bool = True
) -> bool:
    """Trains a new run, or resumes the one in `workdir`, and writes all of its files.

    Args:
      config: see `configs/default.py`; it is not changed.
      workdir: local or remote folder.
      traced_steps: how many steps the profiler traces into `profile/`.
      extend: whether the run in the workdir may become longer.
      ends_process: see `StopSignal`.

    Returns:
      True if the run is complete, False if a signal stopped it after a checkpoint.

    Raises:
      UserError: before anything is compiled, for a mistake in the config, the data or the folder. Later, if a loss is
        not finite or a state cannot be saved.
      RestartError: another process of the run is lost, a phase takes too long, or the folder is away.
    """
    validate(config)
    with (
        lenient_output(),
        closing(Console(silent=jax.process_index() != 0)) as console,
        StopSignal(several_processes=jax.process_count() > 1, ends_process=ends_process) as stop,
        Heartbeat(config) as heartbeat,
    ):
        run, state = open_run(config, workdir, extend=extend, enter=heartbeat.enter)
        plan, finished = run.plan, read_summary(run.plan.folder)
        # A summary of another step is that of the run before --extend.
        if finished and plan.start_step == plan.total_steps == finished['step']:
            console.note(summary.closing(finished, plan.folder))
            run.checkpoints.close()
            return True
        console.facts(summary.header(plan, state.params, run.past.damaged))
        console.start(plan.total_steps, plan.start_step)
        state = run.mapper.put_state(state)  # drops the global state, so that the devices hold one state and not two
        with missing_is_away(plan.folder):
            return _train(run, state, console, stop, heartbeat, traced_steps)


def _train(
    run: Run, state: TrainState, console: Console, stop: StopSignal, heartbeat: Heartbeat, traced_steps: int
) -> bool:
    """Takes the remaining steps, and writes the files of a complete run; see `train`.

    `state` is in the form of the run's mapper. The first step reuses its buffers.
    """
    plan = run.plan
    tracker = Tracker(plan.config.log.tracker if run.writes else '', plan.folder, plan.config, plan.total_steps)
    log = _open_log(run, tracker)
    step = plan.start_step
    heartbeat.enter('compile', step + 1, settled=step)
    step_fn = _compile(run, state, log)
    loader = _loader(run)
    in_flight, save_schedule = InFlight(run, log, console, loader), run.save_schedule()
    trace = Trace(str(plan.folder / 'profile'), plan.start_step, traced_steps)
    with run.checkpoints, loader, trace, tracker:
        heartbeat.enter('input', step + 1, settled=step)
        for step, batch in enumerate(loader, start=plan.start_step + 1):
            first = step == plan.start_step + 1  # 'compile' lasts to its end: pmap may compile, and collectives connect
            heartbeat.enter('compile' if first else 'step', step, settled=in_flight.settled)
            trace.before(step)
            state, metrics = step_fn(state, batch)
            trace.after(step, metrics)
            in_flight.add(step, metrics)
            stops = stop.after(step)
            measures = run.measures_after(step)
            saves = save_schedule.after(step) or stops or (measures and run.saves_measured)
            in_flight.settle(0 if measures or saves or first else IN_FLIGHT)
            console.step(step)
            if measures or saves:
                with in_flight.pace.paused():
                    global_state = run.mapper.global_state(state)
                    if measures:
                        heartbeat.enter('evaluate', step, settled=step)
                        _measure(run, step, global_state, log)
                    if saves:
                        heartbeat.enter('save', step, settled=step)
                        console.warn(_save(run, step, global_state, log, in_flight.skipped))
                    del global_state
            if stops:
                break
            heartbeat.enter('input', step + 1, settled=in_flight.settled)
        heartbeat.enter('save', step, settled=step)
        run.checkpoints.finish()
    console.warn(tracker.problem())

    if step < plan.total_steps:
        console.close()
        console.note(f'stopped after step {step} of {plan.total_steps} and saved; run the same command to resume')
        return False
    heartbeat.enter('evaluate', step, settled=step)
    _finish(run, state, log, in_flight, console)
    return True


def _open_log(run: Run, tracker: Tracker) -> MetricsLog:
    """Opens the metrics. The process that writes replaces their file only when all others have read it."""
    opened = partial(
        MetricsLog,
        run.plan.folder,
        run.plan.start_step,
        writes=run.writes,
        waiting=run.past.waiting,
        tracker=tracker,
    )
    log = None if run.writes else opened()
    from_all('metrics', '')
    return log or opened()


def _compile(run: Run, state: TrainState, log: MetricsLog) -> Callable[..., Any]:
    """Compiles the step for a state in the form of the run's mapper and the batches of the loader.

    Meanwhile a new run measures its references: the scores of baselines and of the encoder before training.
    """
    step = partial(train_step, run.plan.method)
    with ThreadPoolExecutor(max_workers=1) as beside:
        compiling = beside.submit(run.mapper.compile, step, run.shapes, run.plan.batch())
        if run.monitors and run.plan.start_step == 0:
            found: dict[str, float] = {}
            variables = run.mapper.global_state(state).variables
            for monitor in run.monitors:
                found |= monitor.references() | monitor.encoder(variables)
            log.write(0, run.wall_time_s(), found)
        return compiling.result()


def _loader(run: Run) -> Loader:
    """Loads the batches of this process for the remaining steps."""
    plan, config = run.plan, run.plan.config
    return Loader(
        plan.splits.train,
        rows=process_rows(plan.mesh, config.train.batch_size),
        seed=config.seed,
        batch_size=config.train.batch_size,
        start_step=plan.start_step,
        stop_step=plan.total_steps,
        place=run.mapper.put_batch,
        recipe=plan.method.views.host_recipe,
        workers=config.parallel.workers if config.parallel.workers >= 0 else share_of_cores(),
    )


def _measure(run: Run, step: int, state: TrainState, log: MetricsLog) -> None:
    """Records the scores of the encoder after a step. Every process must call it."""
    found: dict[str, float] = {}
    for monitor in run.monitors:
        found |= monitor.encoder(state.variables)
    log.write(step, run.wall_time_s(), found)


def _save(run: Run, step: int, state: TrainState, log: MetricsLog, skipped: Skipped) -> str:
    """Starts saving a checkpoint. Returns a warning if saving it or the previous one failed, or an empty string."""
    log.flush()  # a run that resumes from this checkpoint needs the earlier records
    record = dict(run.record) | {
        'wall_time_s': run.wall_time_s(),
        'skipped_steps': skipped.steps,
        'extended_at': list(run.past.extended_at),
        'waiting': log.waiting(),
    }
    scores = (log.newest(name) for name in SCORES)
    score, measured = next((found for found in scores if found[0] is not None), (None, None))
    return run.checkpoints.save(step, state, record, score, measured)


def _finish(run: Run, state: TrainState, log: MetricsLog, in_flight: InFlight, console: Console) -> None:
    """Writes the summary and the pictures of a complete run. Every process must call it.

    Args:
      run: the run, whose steps are all done.
      state: the final state in the form of the run's mapper.
      log: the metrics; this function closes it.
      in_flight: the record of the steps, none of which is in flight.
      console: the terminal; this function closes it.
    """
    rates = in_flight.rates()
    global_state = run.mapper.global_state(state)
    results = summary.results(
        run,
        log,
        rates,
        skipped_steps=in_flight.skipped.steps,
        state_sha256=state_sha256(global_state),
    )
    if run.plan.config.log.pictures:
        console.warn(_draw(run, global_state, log, results['versions']))
    log.close()
    if run.writes:
        write_json(run.plan.folder / 'summary.json', results)  # written last: a run with this file is complete
    from_process_0('finished', '')  # at its end JAX would wait for it no longer than 300 s, and then abort
    console.warn(log.problem())
    console.close()
    console.note(summary.closing(results, run.plan.folder))


def _draw(run: Run, state: TrainState, log: MetricsLog, versions: dict[str, str]) -> str:
    """Writes `figures/` and `report.html`. Every process must call it; only the one that writes draws.

    Returns:
      A warning if they cannot be drawn; the run is complete without them. Empty if they are.

    Raises:
      OSError: the disk is full.
    """
    plan, state = run.plan, gathered(state)
    samples = take_samples(run.embed, state.variables, plan.splits)
    if not run.writes:
        return ''
    try:
        draw_pictures(_subject(run, state, log, versions), samples)
    except Exception as error:  # whatever drawing raises
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        remedy = f'dualcl report --workdir={plan.folder} --output=FILE.html draws the report later'
        return f'the pictures cannot be drawn ({reason_of(error, typed=True)}); {remedy}'
    return ''


def _subject(run: Run, state: TrainState, log: MetricsLog, versions: dict[str, str]) -> Subject:
    """What the pictures show of a complete run."""
    plan = run.plan
    return Subject(
        folder=plan.folder,
        config=plan.config,
        method=plan.method,
        splits=plan.splits,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        state=to_host(state),
        records=log.records,
        versions=versions,
    )
