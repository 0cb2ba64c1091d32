"""Measures the cost of many data workers: the time to the first batch, and the memory of all processes.

    python -m experiments.benchmark.workers --workers=64 [--examples=1281167] [--read_ms=0]

The set is made up: its index has the columns of a folder of that many images in 1,000 classes, and the files that the
first batches need are 32 photographs of 500×375 under many names. The memory is the proportional set size (PSS) of this
process, which has imported what a training process imports, and of its workers. The last line is JSON.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import UserError, exits_cleanly

BATCH, STEPS, CLASSES = 256, 40, 1000


@dataclasses.dataclass(frozen=True)
class Slow:
    """Files that take some seconds more to read, as files on a network do."""

    files: Any
    seconds: float

    def __len__(self) -> int:
        return len(self.files)

    def prepare(self) -> None:
        self.files.prepare()

    def read(self, index: int) -> bytes:
        time.sleep(self.seconds)
        return self.files.read(index)

    def where(self, index: int) -> str:
        return self.files.where(index)

    def names(self, indices: np.ndarray) -> list[str] | None:
        return self.files.names(indices)


def make_source(root: Path, count: int, read_ms: float) -> Any:
    """A source of `count` images below a new folder, of which the first batches can be read."""
    from dualcl_jax.data.images.encoded import EncodedSource
    from dualcl_jax.data.images.folder import IndexedFiles
    from dualcl_jax.data.images.index import Index
    from dualcl_jax.data.order import batch_indices
    from experiments.benchmark.data import _photographs

    photos = _photographs(32)
    for number, photo in enumerate(photos):
        (root / f'{number}.jpg').write_bytes(photo)
        os.utime(root / f'{number}.jpg', ns=(10**18, 10**18))
    numbers = np.arange(count)
    classes, places = np.divmod(numbers, -(-count // CLASSES))
    folders = ['', *(f'n{number:08d}' for number in range(CLASSES))]
    for name in folders[1:]:
        (root / name).mkdir()
    names = [f'n{one:08d}_{two:05d}.JPEG'.encode() for one, two in zip(classes.tolist(), places.tolist(), strict=True)]
    sizes = np.array([len(photo) for photo in photos], np.int64)[numbers % len(photos)]
    for step in range(STEPS):
        for row in batch_indices(0, step, count, BATCH).tolist():
            os.link(root / f'{row % len(photos)}.jpg', root / folders[1 + classes[row]] / os.fsdecode(names[row]))
    index = Index(
        root=str(root),
        folders=tuple(folders),
        folder_times=np.zeros(len(folders), np.int64),
        folder_of=(1 + classes).astype(np.int32),
        names=np.frombuffer(b''.join(names), np.uint8),
        ends=np.cumsum([len(name) for name in names]),
        sizes=sizes,
        times=np.full(count, 10**18, np.int64),
        shapes=np.full((count, 2), 400, np.int32),
        outcomes=np.zeros(count, np.uint8),
        conversions=np.zeros(count, np.uint16),
        digests=np.random.default_rng(0).integers(0, 256, (count, 16), np.uint8),
        notes={},
    )
    files: Any = IndexedFiles(index, np.arange(count, dtype=np.int32))
    files = Slow(files, read_ms / 1000) if read_ms else files
    return EncodedSource('folder', files, classes.astype(np.int32), 256, tuple(folders[1:]), '')


def measure() -> dict[str, float]:
    """PSS in MB of this process and of its descendants, the number of descendants, and the CPU seconds of all."""
    workers = descendants(os.getpid())
    own, theirs = _pss(os.getpid()), sum(map(_pss, workers))
    found = {'trainer_mb': own, 'workers_mb': theirs, 'all_mb': own + theirs}
    return found | {'processes': len(workers), 'cpu_s': sum(map(cpu_seconds, (os.getpid(), *workers)))}


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have started (Linux)."""
    tasks = Path(f'/proc/{pid}/task').iterdir()
    children = [int(child) for task in tasks for child in (task / 'children').read_text().split()]
    return [*children, *(other for child in children for other in descendants(child))]


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process so far (Linux)."""
    fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _pss(pid: int) -> float:
    text = Path(f'/proc/{pid}/smaps_rollup').read_text()
    return int(text.split('\nPss:')[1].split()[0]) * 1024 / 1e6


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown, or the set so small that an image would come twice."""
    parser = Parser('python -m experiments.benchmark.workers', __doc__)
    parser.add_argument('--workers', type=int, default=64)
    parser.add_argument('--examples', type=int, default=1_281_167)
    parser.add_argument('--read_ms', type=float, default=0.0, help='milliseconds added to the reading of a file')
    parser.add_argument('--batches', type=int, default=8, help='how many to load after the first')
    flags = parser.parse_args(arguments)
    if flags.examples < BATCH * STEPS:
        raise UserError(f'--examples={flags.examples}: at least {BATCH * STEPS:,}, so that no image is loaded twice')
    return flags


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    import jax

    import dualcl_jax.training.loop  # noqa: F401  as a training process has
    from dualcl_jax.system.machine import processor
    from dualcl_jax.system.versions import versions
    from experiments.benchmark.data import crop_loader

    jax.devices()
    with tempfile.TemporaryDirectory() as folder:
        source = make_source(Path(folder), flags.examples, flags.read_ms)
        before, began = measure(), time.monotonic()
        with crop_loader(source, BATCH, flags.workers) as batches:
            first = next(batches)
            seconds = time.monotonic() - began
            after = measure()
            found = {'first_batch_s': seconds, 'first_batch_cpu_s': after['cpu_s'] - before['cpu_s']}
            again = time.monotonic()
            for _ in range(flags.batches):
                next(batches)
            rate = flags.batches * BATCH / (time.monotonic() - again)
            time.sleep(5)  # all results are ready
            stages = {'before': before, 'first_batch': after, 'all_ready': measure()}
            digest = hashlib.sha256(first.examples).hexdigest()
    case: dict[str, Any] = vars(flags) | found | stages | {'images_per_second': rate, 'first_batch_sha256': digest}
    about: dict[str, Any] = {'command': f'python -m experiments.benchmark.workers {" ".join(sys.argv[1:])}'.strip()}
    about |= {'machine': f'{os.cpu_count()} cores of {processor()}', 'versions': versions()}
    print(json.dumps(case | about))
    return 0


if __name__ == '__main__':
    sys.exit(main())
