"""The metrics of a run: `metrics.jsonl` and TensorBoard events, truncated to the step from which a run resumes."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.files import write_text
from dualcl_jax.workdir.trackers import Tracker

Record = dict[str, Any]


class Score(NamedTuple):
    """The names of a score's metrics: of backbone and projection, and of a baseline without an encoder."""

    backbone: str
    projection: str
    baseline: str


KNN = Score('monitor/knn_top1_backbone', 'monitor/knn_top1_projection', 'monitor/knn_top1_raw_pixels')
"""kNN accuracies, in [0, 1]. The baseline is that of raw pixels, of bags of words, or of other raw values."""
STS = Score(
    'monitor/sts_dev_spearman_backbone', 'monitor/sts_dev_spearman_projection', 'monitor/sts_dev_spearman_tf_idf'
)
"""Spearman's correlations on STS-B dev, in [-1, 1], of runs of text. The baseline is that of TF-IDF."""
SCORES = (KNN.backbone, STS.backbone)
"""The metrics by which checkpoints are compared: the first of them that a run has."""

REMOTE_SECONDS = 60.0
"""How often records are written to a remote folder, whose files cannot be appended to."""
FLUSH_SECONDS = 30.0
"""The longest time before events become visible to TensorBoard."""


def read_records(path: epath.Path) -> list[Record]:
    """Reads the records of a metrics file in order; none if it is missing. An incomplete last line is ignored.

    Raises:
      UserError: another line is damaged, or the file cannot be read.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b'\n'):
            record = _parse(line)
            if record is None:
                raise UserError(f'{path}: line {number} is damaged; fix it, or move the file away to resume without it')
            records.append(record)
    return records


def _parse(line: bytes) -> Record | None:
    """Parses the record in a line; None if it is not a valid record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get('step'), int)
    return record if whole and all(value is None or _is_plain(value) for value in record.values()) else None


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, list) and all(isinstance(v, int) for v in value))


class MetricsLog:
    """Appends records to `metrics.jsonl` and `tensorboard/` of a workdir.

    In a remote workdir such as gs://, the whole file is rewritten by `flush` and `close`, and every `REMOTE_SECONDS`.
    Records that cannot be written, because space or the folder is missing, are kept and written with the next record.

    Args:
      workdir: folder of the run.
      resume_step: the step from which the run resumes; later records of an interrupted run are dropped. 0 for a new
        run.
      writes: False in a process that keeps the records but writes no files.
      waiting: the result of `waiting` when that step was saved.
      tracker: receives every record, including those from before the run was resumed.

    Raises:
      UserError: the stored records of the run cannot be read.
    """

    def __init__(
        self,
        workdir: epath.Path,
        resume_step: int,
        *,
        writes: bool = True,
        waiting: Sequence[Record] = (),
        tracker: Tracker | None = None,
    ) -> None:
        self._path, self._writes = workdir / 'metrics.jsonl', writes
        self._appends, self._stored = '://' not in str(workdir), time.monotonic()
        self._failing, self._problem, self._flushed = False, '', 0.0
        self._events: EventsWriter | None = None
        self._tracker = tracker
        self.records: list[Record] = []
        if resume_step:
            self.records = [record for record in read_records(self._path) if record['step'] <= resume_step]
            self.records += [record for record in waiting if record not in self.records]
        self._in_file = len(self.records)
        if writes:
            write_text(self._path, ''.join(map(_line, self.records)))
            folder = workdir / 'tensorboard'
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(os.path.join(str(folder), 'events'))
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))
        self._track(self.records)

    def write(self, step: int, wall_time_s: float, scalars: Mapping[str, float], **about: Any) -> Record:
        """Appends one record; a value that is not finite is stored as null. `about` is written to the file only."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        record = {'step': step, 'wall_time_s': round(wall_time_s, 3), **values, **about}
        self.records.append(record)
        if self._writes:
            self._store(record)
            self._draw(step, values)
        self._track([record])
        return record

    def _store(self, record: Record) -> None:
        """Appends a record, or rewrites the file if it lacks earlier records too or cannot be appended to."""
        if not self._appends or len(self.waiting()) > 1:
            if self._appends or time.monotonic() - self._stored > REMOTE_SECONDS:
                self.flush()
            return
        try:
            with self._path.open('a') as file:
                file.write(_line(record))
            self._in_file = len(self.records)
        except OSError as error:
            self._cannot_store(error)

    def flush(self) -> None:
        """Writes the records that the file lacks."""
        if self.waiting():
            try:
                self._rewrite()
            except OSError as error:
                self._cannot_store(error)

    def waiting(self) -> list[Record]:
        """The records that the file lacks."""
        return self.records[self._in_file :] if self._writes else []

    def _rewrite(self) -> None:
        write_text(self._path, ''.join(map(_line, self.records)))
        self._in_file, self._failing, self._stored = len(self.records), False, time.monotonic()

    def _cannot_store(self, error: OSError) -> None:
        if not self._failing:
            self._problem = f'{self._path} cannot be written ({reason_of(error)}): records are kept until it can be'
        self._failing = True

    def _track(self, records: Sequence[Record]) -> None:
        if self._tracker is not None:
            self._tracker.add(records)
            self._problem = self._problem or self._tracker.problem()

    def _draw(self, step: int, values: Mapping[str, float | None], *, last: bool = False) -> None:
        """Writes TensorBoard events. No run resumes from them, so they stop after the first failure."""
        if self._events is None:
            return
        try:
            for name, value in values.items():
                if value is not None:
                    scalar = summary.scalar(name, value)
                    self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar))
            if last:
                self._events.close()
            elif time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()
        except Exception as error:  # the client of a remote store raises types of its own
            self._problem = (
                self._problem or f'tensorboard/ cannot be written ({reason_of(error)}): no further events are written'
            )
            self._events = None

    def problem(self) -> str:
        """Returns what went wrong in writing, once; empty if nothing did."""
        problem, self._problem = self._problem, ''
        return problem

    def at_start(self, name: str) -> float | None:
        """The value of a metric before the first step; None if it was not measured then."""
        return next((record[name] for record in self.records if record['step'] == 0 and name in record), None)

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None if no record has it."""
        return self.newest(name)[0]

    def newest(self, name: str) -> tuple[float | None, int | None]:
        """The newest value of a metric and its step; None and None if no record has it."""
        found = ((record[name], record['step']) for record in reversed(self.records) if name in record)
        return next(found, (None, None))

    def close(self) -> None:
        """Writes the records that are still kept in memory, and closes the files.

        Raises:
          OSError: the file cannot be written.
        """
        if self.waiting():
            self._rewrite()
        self._draw(0, {}, last=True)


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + '\n'
