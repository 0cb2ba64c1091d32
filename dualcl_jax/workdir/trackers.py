"""Experiment trackers: thin, optional sinks of the records in `metrics.jsonl`."""

import contextlib
import importlib.util
import io
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from etils import epath
from ml_collections import ConfigDict

from dualcl_jax.system.config import flatten
from dualcl_jax.system.errors import UserError, first_line
from dualcl_jax.system.files import write_json

PROJECT = 'dualcl_jax'
"""Project or experiment in which runs appear; WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME and TRACKIO_PROJECT replace it."""
FILE = 'tracker.json'
"""File of a workdir with the id of the run in each tracker, and the last record that was sent."""
REMOTE_SECONDS = 60.0
"""How often records are sent from a remote workdir, in which that file must be replaced each time."""
WANDB_SECONDS = 30.0
"""The longest wait for an answer of wandb's server."""


class Started(NamedTuple):
    """What a tracker receives about a run.

    Attributes:
      id: 8 hexadecimal digits, the same at every start of the run.
      name: name of the workdir.
      folder: the workdir if it is local, else an empty string.
      config: fields and their values.
    """

    id: str
    name: str
    folder: str
    config: Mapping[str, Any]


class Sink(NamedTuple):
    """An open run of a tracker: `send(step, values)`, and `close(complete)` when no more follow."""

    send: Callable[[int, dict[str, float]], None]
    close: Callable[[bool], None]


def open_wandb(run: Started) -> Sink:
    """Weights & Biases. WANDB_MODE=offline writes to `wandb/` in the workdir; without it, a login is needed."""
    import wandb

    settings = wandb.Settings(silent=True, console='off', disable_git=True, save_code=False, init_timeout=WANDB_SECONDS)
    opened = wandb.init(
        project=os.environ.get('WANDB_PROJECT', PROJECT),
        id=run.id,
        name=run.name,
        dir=run.folder or None,
        config=dict(run.config),
        resume='allow',
        settings=settings,
    )
    return Sink(
        lambda step, values: opened.log(values, step=step),
        lambda complete: opened.finish(exit_code=0 if complete else 1),
    )


def open_mlflow(run: Started) -> Sink:
    """MLflow, at MLFLOW_TRACKING_URI, or else in `mlflow.db` of a local workdir."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    logging.getLogger('mlflow').setLevel(logging.WARNING)
    os.environ.setdefault('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '2')  # its default of 7 waits for minutes
    address = os.environ.get('MLFLOW_TRACKING_URI', '')
    if not address and not run.folder:
        raise ValueError('a remote workdir cannot hold its database; set MLFLOW_TRACKING_URI')
    client = MlflowClient(tracking_uri=address or f'sqlite:///{run.folder}/mlflow.db')
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = client.get_experiment_by_name(name)
    place = experiment.experiment_id if experiment else client.create_experiment(name)
    earlier = client.search_runs([place], f"tags.dualcl_jax_run = '{run.id}'")
    if earlier:
        identity = earlier[0].info.run_id
        client.update_run(identity, status='RUNNING')
    else:
        identity = client.create_run(place, run_name=run.name, tags={'dualcl_jax_run': run.id}).info.run_id
        client.log_batch(identity, params=[Param(field, str(value)) for field, value in run.config.items()])

    def send(step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        client.log_batch(identity, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    return Sink(send, lambda complete: client.set_terminated(identity, 'FINISHED' if complete else 'KILLED'))


def open_trackio(run: Started) -> Sink:
    """Trackio, in a local database of TRACKIO_DIR, or in the Space that TRACKIO_SPACE_ID names."""
    import trackio

    opened = trackio.init(
        project=os.environ.get('TRACKIO_PROJECT', PROJECT),
        name=f'{run.name}-{run.id}',
        config=dict(run.config),
        resume='allow',
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return Sink(lambda step, values: opened.log(values, step=step), lambda _: trackio.finish())


TRACKERS: dict[str, Callable[[Started], Sink]] = {
    'wandb': open_wandb,
    'mlflow': open_mlflow,
    'trackio': open_trackio,
}
"""The values of `log.tracker` besides the empty one. Each opens a run, or continues the one with the same id."""

REMEDY = {
    'wandb': 'run `wandb login`, or set WANDB_MODE=offline to write to the workdir',
    'mlflow': 'check MLFLOW_TRACKING_URI, or unset it to write to the workdir',
    'trackio': 'check TRACKIO_SPACE_ID and TRACKIO_DIR',
}


def check_tracker(name: str) -> None:
    """Checks that a tracker exists and that its package is installed, without importing it.

    Raises:
      UserError: there is no such tracker, or it is not installed.
    """
    if name and name not in TRACKERS:
        raise UserError(f'config.log.tracker={name!r}: choose one of {", ".join(TRACKERS)}, or leave it empty')
    if name and importlib.util.find_spec(name) is None:
        raise UserError(
            f"config.log.tracker={name!r}: not installed; pip install 'dualcl-jax[{name}]', or leave the field empty"
        )


class Tracker:
    """Sends the records of a run to its tracker, each at most once, even if the run resumes.

    `tracker.json` in the workdir holds the last record that was sent; it is written before that record is sent. A run
    that goes back to an earlier checkpoint does not send the records in between again: an exact resume repeats them.
    If sending fails, or the tracker cannot be started although it has received records of the run before, the run
    continues without it, and the next start sends what is missing.

    Args:
      name: a name of `TRACKERS` that `check_tracker` accepts; empty for a tracker that does nothing.
      folder: the workdir.
      config: config of the run.
      total_steps: length of the run; a run that ends earlier is marked as stopped.

    Raises:
      UserError: the tracker cannot be started for the first time.
    """

    def __init__(self, name: str, folder: epath.Path, config: ConfigDict, total_steps: int) -> None:
        self._name, self._path, self._total_steps = name, folder / FILE, total_steps
        self._local, self._sent_at = '://' not in str(folder), time.monotonic()
        self._pending: list[Mapping[str, Any]] = []
        self._problem = ''
        self._sink: Sink | None = None
        if not name:
            return
        self._stored = _read(self._path)
        known = name in self._stored
        self._place = self._stored.setdefault(name, {'id': uuid.uuid4().hex[:8], 'step': -1, 'names': []})
        fields = {field: value for field, value in flatten(config) if value is not None}
        local = os.path.abspath(str(folder)) if self._local else ''
        try:
            with _quiet():
                self._sink = TRACKERS[name](Started(self._place['id'], folder.name or name, local, fields))
        except Exception as error:  # each tracker raises its own types
            if known:
                self._fail(error)
                return
            reason = f'{type(error).__name__}: {first_line(error)}'
            raise UserError(
                f'config.log.tracker={name!r}: {reason}\n{REMEDY[name]}, or leave the field empty'
            ) from error

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Sends the records that were not sent before; for a remote workdir, every `REMOTE_SECONDS`."""
        if self._sink is not None:
            self._pending += [record for record in records if self._is_new(record)]
            if self._local or time.monotonic() - self._sent_at > REMOTE_SECONDS:
                self._send()

    def _is_new(self, record: Mapping[str, Any]) -> bool:
        """Whether a record comes after the last one that was sent. Records of one step differ in their names."""
        step, last = record['step'], self._place['step']
        return step > last or (step == last and not set(self._place['names']) & _scalars(record).keys())

    def _send(self) -> None:
        try:
            for record in self._pending:
                assert self._sink is not None
                step, values = record['step'], _scalars(record)
                names = self._place['names'] if step == self._place['step'] else []
                self._place |= {'step': step, 'names': sorted({*names, *values})}
                write_json(self._path, self._stored)
                with _quiet():
                    self._sink.send(step, values | {'wall_time_s': record['wall_time_s']})
        except Exception as error:  # each tracker raises its own types
            self._fail(error)
        self._pending, self._sent_at = [], time.monotonic()

    def _fail(self, error: Exception) -> None:
        self._sink = None
        self._problem = (
            f'{self._name}: {type(error).__name__}: {first_line(error)}; no further records are sent to it before the '
            'run is started again'
        )

    def problem(self) -> str:
        """Returns what went wrong in sending, once; empty if nothing did."""
        problem, self._problem = self._problem, ''
        return problem

    def close(self) -> None:
        """Sends what is pending and ends the run in the tracker."""
        if self._sink is None:
            return
        self._send()
        try:
            if self._sink is not None:
                with _quiet():
                    self._sink.close(self._place['step'] >= self._total_steps)
        except Exception as error:  # each tracker raises its own types
            self._fail(error)
        self._sink = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, without its step and time."""
    return {
        name: value
        for name, value in record.items()
        if name not in ('step', 'wall_time_s') and isinstance(value, int | float)
    }


def _read(path: epath.Path) -> dict[str, Any]:
    """The content of `tracker.json`; empty if it is missing.

    Raises:
      UserError: it is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        for place in found.values():
            str(place['id']), int(place['step']), set(place['names'])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: damaged; remove it to send the run to its tracker again, as a new one') from error
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the output of a tracker off the terminal, where it would also ask for a login."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
