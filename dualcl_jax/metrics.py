"""What a run writes while it trains: `metrics.jsonl` and TensorBoard events, cut back where a run resumes."""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from dualcl_jax.workdir import write_text

Record = dict[str, Any]


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

    Args:
      workdir: of the run.
      resume_step: the step the run goes on from; later records of an interrupted run are dropped. 0 for a new run.
      writes: False in a process that keeps the records and writes no file.
    """

    def __init__(self, workdir: epath.Path, resume_step: int, *, writes: bool = True) -> None:
        self._path, self._writes = workdir / 'metrics.jsonl', writes
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
            with self._path.open('a') as file:
                file.write(_line(record))
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

    def close(self) -> None:
        """Writes out what TensorBoard still holds."""
        if self._writes:
            self._tensorboard.close()


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + '\n'
