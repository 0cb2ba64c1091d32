"""The training loop, top to bottom."""

import collections
import contextlib
import time
from functools import partial

import jax
from ml_collections import ConfigDict

from dualcl_jax import summary
from dualcl_jax.checkpoint import state_sha256
from dualcl_jax.console import Console
from dualcl_jax.data import Loader
from dualcl_jax.data.encoded import available_cores
from dualcl_jax.method import crop_recipe
from dualcl_jax.metrics import MetricsLog
from dualcl_jax.pace import Pace
from dualcl_jax.parallel import process_rows, to_host
from dualcl_jax.report.pictures import draw_pictures
from dualcl_jax.run import Run, open_run
from dualcl_jax.signals import StopSignal
from dualcl_jax.state import TrainState
from dualcl_jax.step import train_step
from dualcl_jax.watch import warning
from dualcl_jax.workdir import read_summary, write_json

IN_FLIGHT = 2
"""Steps that may be under way on the devices before the host waits for the oldest."""


def train(config: ConfigDict, workdir: str) -> bool:
    """Trains a new run, or goes on with the one in `workdir`, and writes everything that belongs in there.

    Args:
      config: see `configs/default.py`.
      workdir: local or remote folder.

    Returns:
      True when the run is complete, False when a signal stopped it after a checkpoint.

    Raises:
      UserError: something in the config, the data or the folder that the user can mend; before anything is compiled.
        Later, a loss that is not finite.
    """
    began = time.monotonic()
    run, global_state = open_run(config, workdir)
    finished = read_summary(run.folder)
    if finished and run.start_step == run.total_steps:
        Console(run.total_steps, run.start_step, silent=not run.writes).note(summary.closing(finished, run.folder))
        run.checkpoints.close()
        return True
    console = Console(run.total_steps, run.start_step, silent=not run.writes)
    console.header(summary.header(run, global_state.params))
    log = MetricsLog(run.folder, run.start_step, writes=run.writes)

    def wall_time() -> float:
        return run.trained_s + time.monotonic() - began

    if run.monitor and run.start_step == 0:
        log.write(0, wall_time(), run.monitor.raw_pixels() | run.monitor.encoder(global_state.variables))

    step_fn = run.mapper.map(partial(train_step, run.method))
    state = run.mapper.put_state(global_state)
    del global_state  # its buffers may become the step's

    pace = Pace(config.train.batch_size)
    unwritten: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
    in_flight: collections.deque[jax.Array] = collections.deque()

    def write_metrics() -> None:
        step, metrics = unwritten.popleft()
        values = _finite_values(run, step, metrics)
        values |= {'train/epoch': step / run.steps_per_epoch} | pace.recent(batches.wait_seconds)
        record = log.write(step, wall_time(), values)
        text = summary.status(record, log.last('monitor/knn_top1_backbone'))
        console.status(step, text, pace.seconds_per_step())
        message = warning(log.records, run.total_steps)
        if message:
            console.note(message)

    step = run.start_step
    loader = Loader(
        run.splits.train,
        rows=process_rows(run.mesh, config.train.batch_size),
        seed=config.seed,
        batch_size=config.train.batch_size,
        start_step=run.start_step,
        stop_step=run.total_steps,
        place=run.mapper.put_batch,
        recipe=crop_recipe(run.method),
        workers=config.parallel.workers if config.parallel.workers >= 0 else available_cores(),
    )
    stop_signal = StopSignal(several_processes=jax.process_count() > 1)
    with contextlib.closing(run.checkpoints), loader as batches, stop_signal as stop:
        for step, batch in enumerate(batches, start=run.start_step + 1):
            state, metrics = step_fn(state, batch)
            in_flight.append(metrics['train/loss'])
            last = step == run.total_steps
            while len(in_flight) > (0 if last or step == run.start_step + 1 else IN_FLIGHT):
                in_flight.popleft().block_until_ready()
                pace.step_done(batches.wait_seconds)
            console.step(step)

            if last or step == 1 or step % config.log.every_steps == 0:
                unwritten.append((step, metrics))
            stops = stop.after(step)
            monitors = run.monitor is not None and (last or step % _monitor_steps(run) == 0)
            saves = last or stops or (step % (config.checkpoint.every_steps or run.total_steps) == 0)
            while unwritten and (unwritten[0][0] <= step - IN_FLIGHT or monitors or saves):
                write_metrics()
            if saves:
                _finite_values(run, step, metrics)  # a state beyond rescue is not worth keeping
            if monitors or saves:
                with pace.paused():
                    _pause(run, log, state, step, wall_time(), monitors=monitors, saves=saves)
            if stops:
                break

    if step < run.total_steps:
        console.close()
        console.note(f'stopped after step {step} of {run.total_steps} and saved; run the same command to go on')
        return False

    rates = pace.overall(batches.wait_seconds)
    global_state = run.mapper.global_state(state)
    results = summary.results(run, log, rates, wall_time_s=wall_time(), state_sha256=state_sha256(global_state))
    draw_pictures(run, global_state, log.records, results['versions'])
    if run.writes:
        write_json(run.folder / 'summary.json', results)
    log.close()
    console.close()
    console.note(summary.closing(results, run.folder))
    return True


def _monitor_steps(run: Run) -> int:
    """How many steps lie between two measurements of kNN accuracy."""
    return run.config.monitor.every_epochs * run.steps_per_epoch


def _finite_values(run: Run, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
    """The metrics of a step as numbers. Raises UserError when the loss or the gradient is none."""
    values = {name: float(value.squeeze()) for name, value in to_host(metrics).items()}
    summary.check_finite(step, values, run.folder)
    return values


def _pause(
    run: Run, log: MetricsLog, state: TrainState, step: int, wall_time_s: float, *, monitors: bool, saves: bool
) -> None:
    """What training waits for: the kNN monitor, and a checkpoint until it is off the devices."""
    global_state = run.mapper.global_state(state)
    if monitors and run.monitor:
        log.write(step, wall_time_s, run.monitor.encoder(global_state.variables))
    if saves:
        log.flush()  # a run that goes on from here needs the records before it
        record = {'data_fingerprint': run.splits.train.fingerprint, 'wall_time_s': wall_time_s}
        run.checkpoints.save(step, global_state, record, log.last('monitor/knn_top1_backbone'))
