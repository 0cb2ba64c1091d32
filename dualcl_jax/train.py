"""The training loop, top to bottom."""

import collections
import time
from functools import partial

import jax
from ml_collections import ConfigDict

from dualcl_jax import summary
from dualcl_jax.checkpoint import Checkpoints, state_sha256
from dualcl_jax.console import Console
from dualcl_jax.data import Loader, load
from dualcl_jax.data.order import steps_per_epoch
from dualcl_jax.errors import UserError
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.evaluators.monitor import KnnMonitor, can_monitor
from dualcl_jax.method import build_method
from dualcl_jax.metrics import MetricsLog
from dualcl_jax.pace import Pace
from dualcl_jax.parallel import MAPPERS, device_mesh, process_rows, replicate, to_host
from dualcl_jax.report.pictures import draw_pictures
from dualcl_jax.signals import StopSignal
from dualcl_jax.state import create_train_state
from dualcl_jax.step import train_step
from dualcl_jax.validation import validate, validate_devices, validate_schedule
from dualcl_jax.watch import warning
from dualcl_jax.workdir import (
    channel_statistics,
    check_same_run,
    open_workdir,
    write_config,
    write_data_report,
    write_json,
)

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
    """
    began = time.monotonic()
    validate(config)
    mesh = device_mesh()
    validate_devices(config, mesh.devices.size)
    folder = open_workdir(workdir)
    splits = load(config.data)
    if not config.data.mean:
        config.data.mean, config.data.std = channel_statistics(splits.train)
    check_same_run(folder, config)
    epoch = steps_per_epoch(len(splits.train), config.train.batch_size)
    total_steps = config.train.steps or config.train.epochs * epoch
    validate_schedule(config, total_steps, epoch)

    method = build_method(config, total_steps=total_steps, steps_per_epoch=epoch, num_devices=mesh.devices.size)
    channels = splits.train.image_shape[2]
    checkpoints = Checkpoints(
        folder / 'checkpoints', keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best
    )
    resumed_from = checkpoints.latest_step()
    if resumed_from is None:
        global_state = replicate(jax.jit(partial(create_train_state, method, channels))(), mesh)
        trained_s = 0.0
    else:
        like = jax.eval_shape(partial(create_train_state, method, channels))
        global_state, saved = checkpoints.restore(resumed_from, like, mesh)
        if saved['data_fingerprint'] != splits.train.fingerprint:
            raise UserError(
                f'data.name={config.data.name}: not the images that {folder} was trained on\n'
                'restore the data, or start in a new --workdir'
            )
        trained_s = saved['wall_time_s']
    start = resumed_from or 0

    primary = jax.process_index() == 0
    console = Console(total_steps, start, silent=not primary)
    log = MetricsLog(folder if primary else None, start)
    if primary:
        write_config(folder, config)
        write_data_report(folder, splits)
    console.header(summary.header(config, method, splits, mesh, global_state.params, folder, start, total_steps))

    def wall_time() -> float:
        return trained_s + time.monotonic() - began

    embed = Embedder(method, mesh)
    monitor = None
    if config.monitor.every_epochs and can_monitor(splits):
        monitor = KnnMonitor(
            embed,
            splits,
            k=config.monitor.k,
            temperature=config.monitor.temperature,
            bank=config.monitor.bank,
        )
    if monitor and log.first('monitor/knn_top1_raw_pixels') is None and start == 0:
        log.write(0, wall_time(), monitor.raw_pixels() | monitor.encoder(global_state.variables))

    mapper = MAPPERS[config.parallel.mapper](mesh)
    step_fn = mapper.map(partial(train_step, method))
    state = mapper.put_state(global_state)
    del global_state

    def save(step: int) -> None:
        record = {'data_fingerprint': splits.train.fingerprint, 'wall_time_s': wall_time()}
        checkpoints.save(step, mapper.global_state(state), record, log.last('monitor/knn_top1_backbone'))

    pace = Pace(config.train.batch_size)
    unwritten: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
    in_flight: collections.deque[jax.Array] = collections.deque()

    def write_metrics() -> None:
        step, metrics = unwritten.popleft()
        values = {name: float(value.squeeze()) for name, value in to_host(metrics).items()}
        summary.check_finite(step, values, folder)
        values |= {'train/epoch': step / epoch} | pace.recent(batches.wait_seconds)
        record = log.write(step, wall_time(), values)
        console.status(summary.status(record, log.last('monitor/knn_top1_backbone')))
        message = warning(log.records, total_steps)
        if message:
            console.note(message)

    step = start
    loader = Loader(
        splits.train,
        rows=process_rows(mesh, config.train.batch_size),
        seed=config.seed,
        batch_size=config.train.batch_size,
        start_step=start,
        stop_step=total_steps,
        place=mapper.put_batch,
    )
    with loader as batches, StopSignal() as stop:
        for step, batch in enumerate(batches, start=start + 1):
            state, metrics = step_fn(state, batch)
            in_flight.append(metrics['train/loss'])
            if len(in_flight) > IN_FLIGHT or step == start + 1:
                in_flight.popleft().block_until_ready()
            pace.step_done(batches.wait_seconds)
            console.step(step)

            last = step == total_steps
            if step % config.log.every_steps == 0 or step == 1 or last:
                unwritten.append((step, metrics))
            monitors = monitor is not None and (step % (config.monitor.every_epochs * epoch) == 0 or last)
            saves = (
                last
                or stop.received
                or (config.checkpoint.every_steps > 0 and step % config.checkpoint.every_steps == 0)
            )
            while unwritten and (unwritten[0][0] <= step - IN_FLIGHT or monitors or saves):
                write_metrics()
            if monitors or saves:
                with pace.paused():
                    if monitors:
                        log.write(step, wall_time(), monitor.encoder(mapper.global_state(state).variables))
                    if saves:
                        save(step)
            if stop.received:
                break
    checkpoints.close()

    if step < total_steps:
        console.close()
        console.note(f'stopped after step {step} of {total_steps} and saved; run the same command to go on')
        return False

    rates = pace.overall(batches.wait_seconds)
    global_state = mapper.global_state(state)
    draw_pictures(folder if primary else None, config, method, embed, splits, global_state.variables, log.records)
    results = summary.results(
        config,
        log,
        rates,
        step=total_steps,
        resumed_from_step=resumed_from,
        wall_time_s=wall_time(),
        state_sha256=state_sha256(global_state),
    )
    if primary:
        write_json(folder / 'summary.json', results)
    log.close()
    console.close()
    console.note(summary.closing(results, folder))
    return True
