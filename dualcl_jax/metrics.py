"""What a run writes while it trains: `metrics.jsonl` and TensorBoard events, cut back where a run resumes."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from dualcl_jax.workdir import write_text

Record = dict[str, Any]

REMOTE_SECONDS = 60.0
"""How often records go into a remote folder, to whose files nothing can be appended."""


def read_records(path: epath.Path) -> list[Record]:
    """The records of a metrics file, in order; none where it is missing. A torn last line is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith('\n'):
            records.append(json.loads(line))
    return records


class MetricsLog:
    """Appends records to `metrics.jsonl` and `tensorboard/` of a workdir.

    In a remote one, gs:// and the like, the file is written as a whole: by `flush` and `close`, and every
    `REMOTE_SECONDS`.

    Args:
      workdir: of the run.
      resume_step: the step the run goes on from; later records of an interrupted run are dropped. 0 for a new run.
      writes: False in a process that keeps the records and writes no file.
    """

    def __init__(self, workdir: epath.Path, resume_step: int, *, writes: bool = True) -> None:
        self._path, self._writes = workdir / 'metrics.jsonl', writes
        self._appends, self._stored = '://' not in str(workdir), time.monotonic()
        self.records: list[Record] = []
        if resume_step:
            self.records = [record for record in read_records(self._path) if record['step'] <= resume_step]
        if writes:
            write_text(self._path, ''.join(map(_line, self.records)))
            self._tensorboard = SummaryWriter(str(workdir / 'tensorboard'), purge_step=resume_step + 1)

    def write(self, step: int, wall_time_s: float, scalars: Mapping[str, float]) -> Record:
        """Appends one record; a value that is not finite is stored as null."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        record = {'step': step, 'wall_time_s': round(wall_time_s, 3), **values}
        self.records.append(record)
        if self._writes:
            if self._appends:
                with self._path.open('a') as file:
                    file.write(_line(record))
            elif time.monotonic() - self._stored > REMOTE_SECONDS:
                self.flush()
            for name, value in values.items():
                if value is not None:
                    self._tensorboard.add_scalar(name, value, step)
        return record

    def first(self, name: str) -> float | None:
        """The earliest value of a metric; None where no record has it."""
        return next((record[name] for record in self.records if name in record), None)

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None where no record has it."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    def flush(self) -> None:
        """Stores the records that a remote folder does not hold yet."""
        if self._writes and not self._appends:
            write_text(self._path, ''.join(map(_line, self.records)))
            self._stored = time.monotonic()

    def close(self) -> None:
        """Writes out what is still held."""
        self.flush()
        if self._writes:
            self._tensorboard.close()


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + '\n'
