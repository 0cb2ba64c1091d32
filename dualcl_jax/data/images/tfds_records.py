"""TFDS sets with images of any size: records stay encoded, and `EncodedSource` decodes them."""

import collections
import dataclasses
import functools
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from dualcl_jax.data.images.encoded import EncodedSource
from dualcl_jax.data.run_cache import NO_CACHE, RunCache
from dualcl_jax.data.source import fingerprint, limit_indices
from dualcl_jax.data.tfds_folder import class_names_of, in_chunks, open_folder, records_of, unreadable
from dualcl_jax.system.console import progress
from dualcl_jax.system.errors import reason_of
from dualcl_jax.system.files import BROKEN, absolute, cache_folder, replacing
from dualcl_jax.system.processes.agreement import made_once

THREADS = 32
"""How many shards are looked at at once. With 30 ms for a request, 1,024 shards on gs:// take 4 s; it was 362 s with 13
requests for each, one after the other."""
TAIL_BYTES = 2**17
"""Size of the end of a shard, where array_record stores the offsets of its records. They distinguish sets whose
shards, which are padded to blocks, have equal lengths."""


@dataclasses.dataclass(frozen=True, eq=False)
class RecordFiles:
    """Records of a split of a prepared TFDS folder, in the order of `rows`, int [N]."""

    folder: str
    split: str
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def prepare(self) -> None:
        _records(self.folder, self.split)  # shards are opened when they are read

    def read(self, index: int) -> bytes:
        try:
            return _records(self.folder, self.split)[int(self.rows[index])]['image']
        except MemoryError:
            raise
        except Exception as error:  # array_record raises a bare RuntimeError
            raise unreadable(self.where(index), error, 'prepare the set again') from error

    def where(self, index: int) -> str:
        return f'{self.folder}: record {int(self.rows[index])} of {self.split}'

    def names(self, indices: np.ndarray) -> None:
        del indices  # records have no paths


def read_split(builder: Any, split: str, limit: int, stored_size: int, run_cache: RunCache = NO_CACHE) -> EncodedSource:
    """Reads a split of a TFDS builder. Its labels are read once, cached and kept until one of its files changes.

    Of the processes of a run that have the same files, process 0 reads the labels.
    """
    class_names = class_names_of(builder)
    folder, count = str(builder.data_path), builder.info.splits[split].num_examples
    shards, times = _shards([epath.Path(path) for path in sorted(builder.info.splits[split].filepaths)])
    identity = hashlib.sha256(repr((builder.info.full_name, shards)).encode()).digest()
    labels = np.full(count, -1, np.int32)
    if class_names is not None:
        here = identity, str(absolute(epath.Path(folder))), times
        labels = _labels_of(folder, split, count, hashlib.sha256(repr(here).encode()).hexdigest(), run_cache)
    rows = limit_indices(count, limit).astype(np.int32)
    name = builder.info.full_name
    digest = fingerprint(name, (stored_size, stored_size, 3), class_names, labels[rows], rows, identity)
    return EncodedSource(name, RecordFiles(folder, split, rows), labels[rows], stored_size, class_names, digest)


def _shards(paths: list[epath.Path]) -> tuple[list[tuple[str, int, str]], list[int]]:
    """The name, the length and a digest of the end of each shard, and when each changed, in seconds.

    On gs:// each request takes tens of milliseconds, and a set has up to thousands of shards: they are read in threads,
    and the lengths and times of all come from one listing of their folders, which gcsfs remembers.
    """

    def look(path: epath.Path) -> tuple[tuple[str, int, str], int]:
        about = path.stat()
        with path.open('rb') as file:
            file.seek(max(about.length - TAIL_BYTES, 0))
            return (path.name, about.length, hashlib.sha256(file.read()).hexdigest()), about.mtime

    for folder in {path.parent for path in paths if '://' in str(path)}:
        collections.deque(folder.iterdir(), maxlen=0)
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(look, paths))
    return [shard for shard, _ in found], [changed for _, changed in found]


@functools.lru_cache(maxsize=4)
def _records(folder: str, split: str) -> Any:
    """The records of a split with encoded images, opened once per process."""
    return records_of(open_folder(epath.Path(folder)), split, 'image')


def _labels_of(folder: str, split: str, count: int, key: str, run_cache: RunCache) -> np.ndarray:
    """The label of every record, int32 [N]: from the cache of the machine or the run, or from the records.

    Args:
      folder: the folder of the prepared set.
      split: the name of the split.
      count: the number of records.
      key: a digest of the files, their places and times.
      run_cache: that of the run.
    """
    cache = cache_folder() / f'{key[:24]}.npy'
    place = hashlib.sha256(str(absolute(epath.Path(folder))).encode()).hexdigest()
    name = f'labels_{split}-{place[:16]}.npz'
    cached, kept = _cached_labels(cache, count), functools.partial(_kept_labels, run_cache, name, key, count)

    def make() -> np.ndarray:
        labels = kept()
        if labels is None:
            labels = _read_labels(folder, split, count) if cached is None else cached
            run_cache.save(name, functools.partial(np.savez_compressed, key=np.array(key), labels=labels))
        return labels

    if run_cache.trains:
        labels = made_once(f'labels_{split}', key, make, kept, has=lambda: cached)
    else:
        labels = make() if cached is None else cached
    if cached is None:
        _save(cache, labels)
    return labels


def _cached_labels(cache: Path, count: int) -> np.ndarray | None:
    try:
        labels = np.load(cache, allow_pickle=False)
    except BROKEN:  # absent, or cut off
        return None
    return labels if labels.shape == (count,) else None


def _kept_labels(run_cache: RunCache, name: str, key: str, count: int) -> np.ndarray | None:
    """The labels in the cache of a run; None if it has none of these files as they are."""
    content = run_cache.read(name)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            labels = archive['labels'] if str(archive['key']) == key else None
    except (*BROKEN, LookupError):
        return None
    return labels if labels is not None and labels.shape == (count,) else None


def _read_labels(folder: str, split: str, count: int) -> np.ndarray:
    """Reads all records for their labels, int32 [N]. Raises UserError or RestartError if they cannot be read."""
    labels = np.empty(count, np.int32)
    try:
        records = _records(folder, split)
        with progress(count, f'reading labels of {split}') as advance:
            for row, record in enumerate(in_chunks(records, range(count))):
                labels[row] = record['label']
                advance()
    except Exception as error:  # array_record raises a bare RuntimeError
        raise unreadable(f'{folder}: the labels of {split}', error, 'prepare the set again') from error
    return labels


def _save(cache: Path, labels: np.ndarray) -> None:
    """Writes the cache atomically."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache, shared=True) as partial, partial.open('wb') as file:
            np.save(file, labels)
    except OSError as error:
        print(f'note: {cache} cannot be written ({reason_of(error)}): labels are read at every start')
