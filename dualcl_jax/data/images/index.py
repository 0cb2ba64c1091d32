"""The index of a folder of images: every file is examined once, before order and sharding are fixed.

A file is identified by its path, size and time of change. An index is valid as long as no folder has another time of
change and, in sets of up to `FULL_CHECK` files, no file has another size or time. In larger sets a file is compared
when it is read. `dualcl_jax.data.images.index_cache` keeps indices, so that files are not examined again.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dualcl_jax.data.images.decode import CONVERSIONS, CONVERTED
from dualcl_jax.data.images.display import shown
from dualcl_jax.data.images.scan import (
    DUPLICATE,
    NOT_TAKEN,
    OUTCOMES,
    SAME_CONTENT,
    SKIPPED,
    SPECIAL,
    UNREAD,
    USED,
    Entry,
    Finding,
    examine_file,
    scan,
)
from dualcl_jax.system.console import progress
from dualcl_jax.system.errors import RestartError, UserError, is_temporary, reason_of
from dualcl_jax.system.machine import available_cores

FULL_CHECK = 50_000
LISTED = 10_000
"""The report names at most this many converted files and this many that are left out, but all skipped files."""
BLOCK = 4096
SAVE_S = 600.0
"""How often the findings so far are saved, so that an interrupted examination resumes from there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Every file below a folder, in the order of folders and names, as columns.

    Attributes:
      root: the folder.
      folders: relative paths of all folders, '' for the root.
      folder_times: int64 [F], when each folder changed, -1 if that is uncertain.
      folder_of: int32 [N], the folder of each file.
      names, ends: uint8, all names in a row; int64 [N], where each name ends.
      sizes, times: int64 [N], bytes and nanoseconds.
      shapes: int32 [N, 2], upright height and width of the files that can be used.
      outcomes: uint8 [N], one of `OUTCOMES`; `NOT_TAKEN` only where rows were left out of a copy.
      conversions: uint16 [N], bits of `decode.CONVERSIONS` and `stored.TYPE_BITS`.
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

    def shown(self, row: int) -> str:
        """The path of a file as it is shown."""
        return shown(self.path(row))

    def read(self, row: int) -> bytes:
        """The content of a file.

        Raises:
          UserError: the file cannot be read, or has changed since it was examined.
          RestartError: it cannot be read now.
        """
        path = os.path.join(self.root, self.path(row))
        try:
            with open(path, 'rb') as file:
                now = os.fstat(file.fileno())
                if (now.st_size, now.st_mtime_ns) == (self.sizes[row], self.times[row]):
                    return file.read()
        except OSError as error:
            problem = f'{shown(path)}: cannot be read ({reason_of(error)})'
            if is_temporary(error):
                raise RestartError(f'{problem}; run the same command again') from error
            raise UserError(f'{problem}; restore it, or start a new --workdir') from error
        raise UserError(
            f'{shown(path)}: changed since its folder was examined; restore it\n'
            f'or touch its folder, so that it is examined again, and start a new --workdir'
        )

    def is_fresh(self, *, retry: bool = True) -> bool:
        """Whether the folder is unchanged since it was examined, by the checks that the module describes.

        `retry`: whether what could not be read, and may be now, counts as a change.
        """
        try:
            for folder, known in zip(self.folders, self.folder_times.tolist(), strict=True):
                if os.stat(os.path.join(self.root, folder)).st_mtime_ns != known:
                    return False
            if retry and any(self._may_be_read(row) for row in np.flatnonzero(self.outcomes == SKIPPED).tolist()):
                return False
            if len(self) <= FULL_CHECK:
                for row in np.flatnonzero(self.sizes >= 0).tolist():
                    now = os.stat(os.path.join(self.root, self.path(row)))
                    if (now.st_size, now.st_mtime_ns) != (self.sizes[row], self.times[row]):
                        return False
        except OSError:
            return False
        return True

    def usable(self) -> np.ndarray:
        """The rows of the files that can be used, with duplicates, int32 [n]."""
        return np.flatnonzero((self.outcomes == USED) | (self.outcomes == DUPLICATE)).astype(np.int32)

    def _may_be_read(self, row: int) -> bool:
        """Whether a skipped file, link or folder could not be read, and may be now."""
        note = self.notes[row]
        unread = note.startswith(UNREAD) or (self.sizes[row] < 0 and not note.startswith(SPECIAL))
        return unread and os.access(os.path.join(self.root, self.path(row)), os.R_OK)

    def is_current_for(self, row: int, entry: Entry) -> bool:
        """Whether what was found at `row` is still valid for the file that is at its path now."""
        same = (self.sizes[row], self.times[row]) == (entry.size, entry.time)
        return same and entry.size >= 0 and not self.notes.get(row, '').startswith(UNREAD)

    def report(self) -> dict[str, Any]:
        """Counts the files with each outcome, and names all that were not used unchanged."""
        counts = {name: int((self.outcomes == code).sum()) for code, name in enumerate(OUTCOMES)}
        left_out = np.flatnonzero(self.outcomes == NOT_TAKEN)
        others = np.flatnonzero((self.outcomes != USED) & (self.outcomes != NOT_TAKEN))
        files = [
            {'path': self.shown(row), 'outcome': OUTCOMES[self.outcomes[row]], 'reason': self.notes[row]}
            for row in (*others.tolist(), *left_out[:LISTED].tolist())
        ]
        rows = np.flatnonzero((self.outcomes == USED) & (self.conversions & CONVERTED > 0))
        files += [
            {'path': self.shown(row), 'outcome': 'converted', 'reason': _conversions(int(self.conversions[row]))}
            for row in rows[:LISTED].tolist()
        ]
        files.sort(key=lambda file: file['path'])
        return {'folder': shown(self.root), 'found': len(self), **counts, 'converted': len(rows)} | {
            'not_listed': max(len(rows) - LISTED, 0) + max(len(left_out) - LISTED, 0),
            'files': files,
        }


def examine_all(root: str, known: Index | None, channels: int, save: Callable[[Index], None] | None = None) -> Index:
    """Lists the files below a folder, and examines those that `known` lacks or could not read, or that have changed.

    Args:
      root: the folder.
      known: an index of the folder as it was.
      channels: see `dualcl_jax.data.images.index_cache.open_index`.
      save: called every `SAVE_S` seconds with an index of the files whose findings are known so far. It is not fresh.

    Raises:
      UserError: the folder cannot be read.
    """
    folders, folder_times, entries = scan(root)
    findings = _known_findings(known, folders, entries)
    rows = [row for row, finding in enumerate(findings) if finding is None]

    def find(row: int) -> Finding:
        entry = entries[row]
        return examine_file(os.path.join(root, folders[entry.folder], os.fsdecode(entry.name)), entry, channels)

    saved = time.monotonic()
    with ThreadPoolExecutor(available_cores()) as threads, progress(len(rows), f'examining {root}') as advance:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            for row, finding in zip(block, threads.map(find, block), strict=True):
                findings[row] = finding
                advance()
            if save and start + BLOCK < len(rows) and time.monotonic() - saved >= SAVE_S:
                save(_index(root, folders, [-1] * len(folders), entries, findings))
                saved = time.monotonic()
    index = _index(root, folders, folder_times, entries, findings)
    mark_duplicates(index, np.flatnonzero(index.outcomes == USED))
    return index


def _known_findings(known: Index | None, folders: list[str], entries: list[Entry]) -> list[Finding | None]:
    """For each file the finding in an index; None if it has none that holds for the file as it is now."""
    if known is None:
        return [None] * len(entries)
    before = {(known.folders[known.folder_of[row]], known.name(row)): row for row in range(len(known))}

    def finding(entry: Entry) -> Finding | None:
        row = before.get((folders[entry.folder], entry.name), -1)
        if row < 0 or not known.is_current_for(row, entry):
            return None
        outcome = USED if known.outcomes[row] == DUPLICATE else int(known.outcomes[row])
        height, width = known.shapes[row].tolist()
        note = known.notes.get(row, '') if outcome != USED else ''
        return Finding(outcome, note, height, width, int(known.conversions[row]), known.digests[row].tobytes())

    return [finding(entry) for entry in entries]


def _index(
    root: str, folders: list[str], folder_times: list[int], entries: list[Entry], findings: list[Finding | None]
) -> Index:
    """The index of the files that have a finding, in which no file is a duplicate."""
    found = [(entry, finding) for entry, finding in zip(entries, findings, strict=True) if finding is not None]
    return Index(
        root,
        tuple(folders),
        np.array(folder_times, np.int64),
        np.array([entry.folder for entry, _ in found], np.int32),
        np.frombuffer(b''.join(entry.name for entry, _ in found), np.uint8),
        np.cumsum([len(entry.name) for entry, _ in found], dtype=np.int64),
        np.array([entry.size for entry, _ in found], np.int64),
        np.array([entry.time for entry, _ in found], np.int64),
        np.array([(finding.height, finding.width) for _, finding in found], np.int32).reshape(-1, 2),
        np.array([finding.outcome for _, finding in found], np.uint8),
        np.array([finding.conversions for _, finding in found], np.uint16),
        np.frombuffer(b''.join(finding.digest for _, finding in found), np.uint8).reshape(-1, 16),
        {row: finding.note for row, (_, finding) in enumerate(found) if finding.note},
    )


def mark_duplicates(index: Index, rows: np.ndarray) -> None:
    """Marks all but the first of the files at `rows` that have the same content as duplicates."""
    for row, first in copies(index, rows).items():
        index.outcomes[row] = DUPLICATE
        index.notes[row] = f'{SAME_CONTENT} {index.shown(first)}'


def copies(index: Index, rows: np.ndarray) -> dict[int, int]:
    """For each of the files at `rows` that has the same content as an earlier one, the first of them."""
    high, low = index.digests[rows].view(np.uint64).reshape(-1, 2).T
    order = np.lexsort((rows, low, high))
    same = np.flatnonzero((high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])) + 1
    first: dict[int, int] = {}
    for place in same.tolist():
        before, row = int(rows[order[place - 1]]), int(rows[order[place]])
        first[row] = first.get(before, before)
    return first


def _conversions(bits: int) -> str:
    return ', '.join(name for bit, name in CONVERSIONS.items() if bits & bit)
