"""The index of a folder of images: every file examined once, before order and sharding are fixed.

A file is known by its path, size and time of change: what is known is kept in a cache and not examined again. The
cache is a columnar .npz file in $XDG_CACHE_HOME/dualcl_jax (~/.cache/dualcl_jax). It is good as long as no folder has
another time of change and, in sets of up to `FULL_CHECK` files, no file another size or time; in larger sets a file
is compared when it is read.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import simplejpeg

from dualcl_jax.data.images.decode import CONVERSIONS, UnusableError, examine
from dualcl_jax.system.console import progress
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import BROKEN, cache_folder, locked
from dualcl_jax.system.machine import available_cores

USED, SKIPPED, DUPLICATE, IGNORED = range(4)
OUTCOMES = ('used', 'skipped', 'duplicate', 'ignored')
SUFFIXES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.jp2', '.png', '.apng', '.webp', '.gif', '.bmp', '.tif', '.tiff'),
    *('.ppm', '.pgm', '.pbm', '.pnm'),
    *('.heic', '.heif', '.avif'),  # cannot be read, and are said to be images
)
MAGIC = (b'\xff\xd8\xff', b'\x89PNG\r\n', b'GIF8', b'RIFF', b'BM', b'II*\0', b'MM\0*')
FULL_CHECK = 50_000
LISTED = 10_000
"""So many converted files are named in the report; of skipped ones all."""
MAX_BYTES = 2**30
RECENT_NS = 2 * 10**9
"""A folder that changed this shortly before it was read may change again without another time."""
VERSION = f'1 {PIL.__version__} {simplejpeg.__version__}'
BLOCK = 4096


class Entry(NamedTuple):
    """A file as the folder lists it; `problem` is why it cannot be opened."""

    folder: int
    name: bytes
    size: int
    time: int
    problem: str = ''


class Finding(NamedTuple):
    """What a file is found to be."""

    outcome: int
    note: str = ''
    height: int = 0
    width: int = 0
    conversions: int = 0
    digest: bytes = bytes(16)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Every file below a folder, in the order of folders and names, as columns.

    Attributes:
      root: the folder.
      folders: relative paths of all folders, '' the root's; `folder_times` int64 [F] when each changed, -1 unsure.
      folder_of: int32 [N] the folder of each file; `names` uint8 all names in a row, `ends` int64 [N] where each ends.
      sizes, times: int64 [N], bytes and nanoseconds.
      shapes: int32 [N, 2], upright height and width of those that can be used.
      outcomes: uint8 [N], one of `OUTCOMES`; `conversions` uint16 [N], bits of `decode.CONVERSIONS`.
      digests: uint8 [N, 16], BLAKE2b of the content.
      notes: why a file is not used.
    """

    root: str
    folders: tuple[str, ...]
    folder_times: np.ndarray
    folder_of: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    shapes: np.ndarray
    outcomes: np.ndarray
    conversions: np.ndarray
    digests: np.ndarray
    notes: dict[int, str]

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, row: int) -> bytes:
        """The name of a file in its folder."""
        return self.names[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes()

    def path(self, row: int) -> str:
        """The path of a file, relative to the root."""
        return os.path.join(self.folders[self.folder_of[row]], os.fsdecode(self.name(row)))

    def read(self, row: int) -> bytes:
        """The content of a file.

        Raises:
          UserError: it cannot be read, or is not the file that was examined.
        """
        path = os.path.join(self.root, self.path(row))
        try:
            with open(path, 'rb') as file:
                now = os.fstat(file.fileno())
                if (now.st_size, now.st_mtime_ns) == (self.sizes[row], self.times[row]):
                    return file.read()
        except OSError as error:
            raise UserError(
                f'{path}: cannot be read ({error.strerror}); restore it, or start a new --workdir'
            ) from error
        raise UserError(
            f'{path}: changed since its folder was examined; restore it\n'
            f'or touch its folder, so that it is examined again, and start a new --workdir'
        )

    def is_fresh(self) -> bool:
        """Whether the folder is still as it was examined, as far as the module says."""
        try:
            for folder, known in zip(self.folders, self.folder_times.tolist(), strict=True):
                if os.stat(os.path.join(self.root, folder)).st_mtime_ns != known:
                    return False
            if len(self) <= FULL_CHECK:
                for row in np.flatnonzero(self.sizes >= 0).tolist():
                    now = os.stat(os.path.join(self.root, self.path(row)))
                    if (now.st_size, now.st_mtime_ns) != (self.sizes[row], self.times[row]):
                        return False
        except OSError:
            return False
        return True

    def report(self) -> dict[str, Any]:
        """How many files had which outcome, and by name all that were not used just as they are."""
        used, converted = self.outcomes == USED, (self.outcomes == USED) & (self.conversions > 0)
        counts = {name: int((self.outcomes == code).sum()) for code, name in enumerate(OUTCOMES)}
        files = [
            {'path': self.path(row), 'outcome': OUTCOMES[self.outcomes[row]], 'reason': self.notes[row]}
            for row in np.flatnonzero(~used).tolist()
        ]
        rows = np.flatnonzero(converted).tolist()
        files += [
            {'path': self.path(row), 'outcome': 'converted', 'reason': _conversions(int(self.conversions[row]))}
            for row in rows[:LISTED]
        ]
        files.sort(key=lambda file: file['path'])
        unlisted = max(len(rows) - LISTED, 0)
        return {'folder': self.root, 'found': len(self), **counts, 'converted': len(rows)} | {
            'not_listed': unlisted,
            'files': files,
        }


def open_index(root: str) -> Index:
    """The index of a local folder: from its cache where that is good, else by examining what is new.

    Raises:
      UserError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise UserError(f'data.path={root}: no such folder; with data.name=folder it names a local folder of images')
    cache = _cache_file(root)
    with _locked(cache) as writable:
        known = _load(cache, root)
        if known and known.is_fresh():
            return known
        index = _examine_all(root, known)
        if writable:
            try:
                _save(index, cache)
            except OSError as error:  # such as a full disk
                _note_uncached(cache, error)
    return index


def _cache_file(root: str) -> Path:
    return cache_folder() / f'{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]}.npz'


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[bool]:
    """Other processes of this machine wait, then find the cache. Yields False where nothing can be written."""
    with contextlib.ExitStack() as stack:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(cache.with_suffix('.lock')))
            writable = True
        except OSError as error:
            _note_uncached(cache, error)
            writable = False
        yield writable


def _note_uncached(cache: Path, error: OSError) -> None:
    print(f'note: {cache.parent} cannot be written ({error.strerror}): images are examined at every start')


def _scan(root: str) -> tuple[list[str], list[int], list[Entry]]:
    """Folders with their times, and files, without opening any."""
    folders, times, entries = [''], [0], []
    began, seen = time.time_ns(), {_identity(os.stat(root))}
    position = 0
    while position < len(folders):
        here = os.path.join(root, folders[position])
        changed = os.stat(here).st_mtime_ns
        times[position] = changed if changed < began - RECENT_NS else -1
        below = []
        with os.scandir(here) as listed:
            for item in sorted(listed, key=lambda item: os.fsencode(item.name)):
                name = os.fsencode(item.name)
                if item.name.startswith('.'):
                    entries.append(Entry(position, name, -1, 0, 'hidden'))
                    continue
                try:
                    found = item.stat()
                except OSError as error:
                    problem = 'broken link' if item.is_symlink() else f'cannot be read: {error.strerror}'
                    entries.append(Entry(position, name, -1, 0, problem))
                    continue
                if stat.S_ISDIR(found.st_mode):
                    readable = os.access(os.path.join(here, item.name), os.R_OK | os.X_OK)
                    if _identity(found) in seen or not readable:
                        problem = 'folder that is listed elsewhere' if readable else 'folder that cannot be read'
                        entries.append(Entry(position, name, -1, 0, problem))
                    else:
                        seen.add(_identity(found))
                        below.append(os.path.join(folders[position], item.name))
                elif stat.S_ISREG(found.st_mode):
                    entries.append(Entry(position, name, found.st_size, found.st_mtime_ns))
                else:
                    entries.append(Entry(position, name, -1, 0, 'not a regular file'))
        folders[position + 1 : position + 1] = below
        times[position + 1 : position + 1] = [0] * len(below)
        position += 1
    return folders, times, entries


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _examine_all(root: str, known: Index | None) -> Index:
    folders, folder_times, entries = _scan(root)
    before: dict[tuple[str, bytes], int] = {}
    if known:
        before = {(known.folders[known.folder_of[row]], known.name(row)): row for row in range(len(known))}

    def find(entry: Entry) -> Finding:
        row = before.get((folders[entry.folder], entry.name), -1)
        if known and row >= 0 and (known.sizes[row], known.times[row]) == (entry.size, entry.time) and entry.size >= 0:
            outcome = USED if known.outcomes[row] == DUPLICATE else int(known.outcomes[row])
            height, width = known.shapes[row].tolist()
            note = known.notes.get(row, '') if outcome != USED else ''
            return Finding(outcome, note, height, width, int(known.conversions[row]), known.digests[row].tobytes())
        return _find(os.path.join(root, folders[entry.folder], os.fsdecode(entry.name)), entry)

    findings: list[Finding] = []
    with ThreadPoolExecutor(available_cores()) as threads, progress(len(entries), f'examining {root}') as advance:
        for start in range(0, len(entries), BLOCK):
            for finding in threads.map(find, entries[start : start + BLOCK]):
                findings.append(finding)
                advance()
    index = Index(
        root,
        tuple(folders),
        np.array(folder_times, np.int64),
        np.array([entry.folder for entry in entries], np.int32),
        np.frombuffer(b''.join(entry.name for entry in entries), np.uint8),
        np.cumsum([len(entry.name) for entry in entries], dtype=np.int64),
        np.array([entry.size for entry in entries], np.int64),
        np.array([entry.time for entry in entries], np.int64),
        np.array([finding[2:4] for finding in findings], np.int32).reshape(-1, 2),
        np.array([finding.outcome for finding in findings], np.uint8),
        np.array([finding.conversions for finding in findings], np.uint16),
        np.frombuffer(b''.join(finding.digest for finding in findings), np.uint8).reshape(-1, 16),
        {row: finding.note for row, finding in enumerate(findings) if finding.note},
    )
    _mark_duplicates(index)
    return index


def _find(path: str, entry: Entry) -> Finding:
    """Examines one file."""
    if entry.problem:
        ignored = entry.problem == 'hidden' or entry.problem.startswith('folder')
        return Finding(IGNORED if ignored else SKIPPED, entry.problem)
    named = os.path.splitext(path)[1].lower() in SUFFIXES
    try:
        with open(path, 'rb') as file:
            start = file.read(8)
            if not named and not start.startswith(MAGIC):
                return Finding(IGNORED, 'no image, nor named as one')
            if entry.size > MAX_BYTES:
                return Finding(SKIPPED, f'larger than {MAX_BYTES:,} bytes')
            encoded = start + file.read()
    except OSError as error:
        return Finding(SKIPPED, f'cannot be read: {error.strerror}')
    digest = hashlib.blake2b(encoded, digest_size=16).digest()
    try:
        return Finding(USED, '', *examine(encoded), digest)
    except UnusableError as error:
        return Finding(SKIPPED if named else IGNORED, str(error), digest=digest)


def _mark_duplicates(index: Index) -> None:
    """Of files with the same content the first is used."""
    rows = np.flatnonzero(index.outcomes == USED)
    high, low = index.digests[rows].view(np.uint64).reshape(-1, 2).T
    order = np.lexsort((rows, low, high))
    same = np.flatnonzero((high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])) + 1
    first: dict[int, int] = {}
    for place in same.tolist():
        before, row = int(rows[order[place - 1]]), int(rows[order[place]])
        first[row] = first.get(before, before)
        index.outcomes[row] = DUPLICATE
        index.notes[row] = f'same content as {index.path(first[row])}'


def _conversions(bits: int) -> str:
    return ', '.join(name for bit, name in enumerate(CONVERSIONS) if bits >> bit & 1)


def _save(index: Index, cache: Path) -> None:
    """Writes the cache, whole or not at all."""
    arrays = {name: value for name, value in vars(index).items() if isinstance(value, np.ndarray)}
    about = {'version': VERSION, 'folders': index.folders, 'notes': list(index.notes.items())}
    partial = cache.with_suffix(f'.{os.getpid()}.new')
    arrays['about'] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    try:
        with partial.open('wb') as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        partial.replace(cache)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _load(cache: Path, root: str) -> Index | None:
    """What the cache holds; None where there is none, or one that cannot be used."""
    try:
        with cache.open('rb') as file, np.load(file, allow_pickle=False) as archive:
            about = json.loads(archive['about'].tobytes())
            if about['version'] != VERSION:
                return None
            arrays = {name: archive[name] for name in archive.files if name != 'about'}
            return Index(
                root, tuple(about['folders']), **arrays, notes={int(row): note for row, note in about['notes']}
            )
    except FileNotFoundError:
        return None
    except (*BROKEN, LookupError, TypeError) as error:
        print(f'note: {cache} cannot be read ({error}): the images are examined again')
        return None
