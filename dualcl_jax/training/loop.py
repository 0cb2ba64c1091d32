"""The training loop, top to bottom."""

import collections
import time
from collections.abc import Callable, Sequence
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
from dualcl_jax.system.devices import process_rows, to_host, whole
from dualcl_jax.system.files import write_json
from dualcl_jax.system.machine import available_cores
from dualcl_jax.system.processes.heartbeat import Heartbeat
from dualcl_jax.system.processes.stop_signal import StopSignal
from dualcl_jax.training import summary
from dualcl_jax.training.health import Skipped, warning
from dualcl_jax.training.pace import Pace
from dualcl_jax.training.profiler import Trace
from dualcl_jax.training.run import Run, open_run
from dualcl_jax.workdir.checksum import state_sha256
from dualcl_jax.workdir.folder import read_summary
from dualcl_jax.workdir.metrics import MetricsLog

IN_FLIGHT = 2
"""Steps that may be under way on the devices before the host waits for the oldest."""


def train(config: ConfigDict, workdir: str, *, traced_steps: int = 0) -> bool:
    """Trains a new run, or goes on with the one in `workdir`, and writes everything that belongs in there.

    Args:
      config: see `configs/default.py`.
      workdir: local or remote folder.
      traced_steps: how many steps to write a profiler trace of, into `profile/`.

    Returns:
      True when the run is complete, False when a signal stopped it after a checkpoint.

    Raises:
      UserError: something in the config, the data or the folder that the user can mend; before anything is compiled.
        Later, a loss that is not finite, a state that cannot be saved, or another process of the run that is lost.
    """
    validate(config)
    with (
        closing(Console(silent=jax.process_index() != 0)) as console,
        StopSignal(several_processes=jax.process_count() > 1) as stop,
        Heartbeat(config) as heartbeat,
    ):
        return _train(config, workdir, console, stop, heartbeat, traced_steps)


def _train(
    config: ConfigDict, workdir: str, console: Console, stop: StopSignal, heartbeat: Heartbeat, traced_steps: int
) -> bool:
    began = time.monotonic()
    run, global_state = open_run(config, workdir)
    finished = read_summary(run.folder)
    if finished and run.start_step == run.total_steps:
        console.note(summary.closing(finished, run.folder))
        run.checkpoints.close()
        return True
    console.facts(summary.header(run, global_state.params))
    console.start(run.total_steps, run.start_step)
    log = MetricsLog(run.folder, run.start_step, writes=run.writes, waiting=run.waiting)
    skipped = Skipped(run, log)

    def wall_time() -> float:
        return run.trained_s + time.monotonic() - began

    with ThreadPoolExecutor(max_workers=1) as beside:
        compiling = beside.submit(_compile, run, global_state)
        if run.monitor and run.start_step == 0:
            log.write(0, wall_time(), run.monitor.raw_pixels() | run.monitor.encoder(global_state.variables))
        step_fn = compiling.result()
    state = run.mapper.put_state(global_state)
    del global_state  # its buffers may become the step's

    pace = Pace(config.train.batch_size)
    in_flight: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()

    def settle() -> None:
        """Waits for the oldest step in flight, and writes what it measured where that is asked for."""
        step, metrics = in_flight.popleft()
        finite = bool(to_host(metrics.pop('train/finite')).all())
        pace.step_done(batches.wait_seconds)
        if not finite:
            console.warn(skipped.add(step, metrics, wall_time()))
        elif step in (1, run.total_steps) or step % config.log.every_steps == 0:
            values = {name: float(value.squeeze()) for name, value in to_host(metrics).items()}
            values |= {'train/epoch': step / run.steps_per_epoch} | pace.recent(batches.wait_seconds)
            record = log.write(step, wall_time(), values)
            text = summary.status(record, log.last('monitor/knn_top1_backbone'))
            console.status(step, text, pace.seconds_per_step())
            console.warn(warning(log.records, run.total_steps))
        console.warn(log.problem())

    step = run.start_step
    loader = Loader(
        run.splits.train,
        rows=process_rows(run.mesh, config.train.batch_size),
        seed=config.seed,
        batch_size=config.train.batch_size,
        start_step=run.start_step,
        stop_step=run.total_steps,
        place=run.mapper.put_batch,
        recipe=run.method.views.host_recipe,
        workers=config.parallel.workers if config.parallel.workers >= 0 else available_cores(),
    )
    trace = Trace(str(run.folder / 'profile'), run.start_step, traced_steps)
    with run.checkpoints, loader as batches, trace:
        for step, batch in enumerate(batches, start=run.start_step + 1):
            trace.before(step)
            state, metrics = step_fn(state, batch)
            trace.after(step, metrics)
            in_flight.append((step, metrics))
            heartbeat.at(step)
            last, stops = step == run.total_steps, stop.after(step)
            monitors = run.monitor is not None and (last or step % _monitor_steps(run) == 0)
            saves = last or stops or (step % (config.checkpoint.every_steps or run.total_steps) == 0)
            while len(in_flight) > (0 if monitors or saves or step == run.start_step + 1 else IN_FLIGHT):
                settle()
            console.step(step)
            if monitors or saves:
                with pace.paused():
                    global_state = run.mapper.global_state(state)
                    if monitors and run.monitor:
                        log.write(step, wall_time(), run.monitor.encoder(global_state.variables))
                    if saves:
                        log.flush()  # a run that goes on from here needs the records before it
                        record = dict(run.record) | {'wall_time_s': wall_time(), 'skipped_steps': skipped.steps}
                        record['waiting'] = log.waiting()
                        knn = log.last('monitor/knn_top1_backbone')
                        console.warn(run.checkpoints.save(step, global_state, record, knn))
                    del global_state
            if stops:
                break
        run.checkpoints.finish()

    if step < run.total_steps:
        console.close()
        console.note(f'stopped after step {step} of {run.total_steps} and saved; run the same command to go on')
        return False

    rates = pace.overall(batches.wait_seconds)
    global_state = run.mapper.global_state(state)
    results = summary.results(
        run, log, rates, skipped_steps=skipped.steps, wall_time_s=wall_time(), state_sha256=state_sha256(global_state)
    )
    if config.log.pictures:
        _draw(run, global_state, log.records, results['versions'])
    log.close()
    if run.writes:
        write_json(run.folder / 'summary.json', results)  # the last of all: a run that has it is complete
    console.warn(log.problem())
    console.close()
    console.note(summary.closing(results, run.folder))
    return True


def _compile(run: Run, state: TrainState) -> Callable[..., Any]:
    """The step, compiled for a global state and the batches of the loader."""
    return run.mapper.compile(partial(train_step, run.method), state, run.batch())


def _monitor_steps(run: Run) -> int:
    """How many steps lie between two measurements of kNN accuracy."""
    return run.config.monitor.every_epochs * run.steps_per_epoch


def _draw(run: Run, state: TrainState, records: Sequence[dict[str, Any]], versions: dict[str, str]) -> None:
    """Writes `figures/` and `report.html`. Every process must call it; the one that writes draws."""
    state = whole(state)
    samples = take_samples(run.embed, state.variables, run.splits, writes=run.writes)
    if samples is None:
        return
    subject = Subject(
        folder=run.folder,
        config=run.config,
        method=run.method,
        splits=run.splits,
        total_steps=run.total_steps,
        steps_per_epoch=run.steps_per_epoch,
        state=to_host(state),
        records=records,
        versions=versions,
    )
    draw_pictures(subject, samples)
