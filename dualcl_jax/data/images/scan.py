"""The files below a folder, listed and examined one by one."""

import hashlib
import os
import stat
import time
from typing import NamedTuple

from dualcl_jax.data.images import kinds, stored
from dualcl_jax.data.images.decode import UnusableError, examine
from dualcl_jax.system.errors import AWAY, EXHAUSTED, UserError, reason_of

USED, SKIPPED, DUPLICATE, IGNORED, NOT_TAKEN = range(5)
OUTCOMES = ('used', 'skipped', 'duplicate', 'ignored', 'not_taken')
"""The outcomes of a file. Skipped files are, or may be, images that cannot be used. Ignored files are not images, or
have formats that are not read. Files not taken are images that belong to no split, or lie beside the folders of
classes."""
MAX_BYTES = 2**30
RECENT_NS = 2 * 10**9
"""A folder that changed this shortly before it was read may change again without a new time."""
HIDDEN, NO_IMAGE, THUMBNAIL = 'hidden', 'no image, nor named as one', 'thumbnails of a camera or a server'
UNREADABLE_FOLDER, LISTED_ELSEWHERE = 'folder that cannot be read', 'folder that is listed elsewhere'
SPECIAL = 'not a regular file'
SAME_CONTENT, OTHER_CLASS = 'same content as', ', with another class'
UNREAD, NO_MEMORY = 'cannot be read', 'not enough memory'
"""A note that begins with `UNREAD` says nothing about the file: the next attempt may succeed."""
PASSING = {NO_MEMORY, *map(os.strerror, (*AWAY, *EXHAUSTED))}
"""Reasons in such a note that running the same command again may remove."""


class Entry(NamedTuple):
    """A file as the folder lists it; `problem` is why it cannot be opened."""

    folder: int
    name: bytes
    size: int
    time: int
    problem: str = ''


class Finding(NamedTuple):
    """The result of examining a file."""

    outcome: int
    note: str = ''
    height: int = 0
    width: int = 0
    conversions: int = 0
    digest: bytes = bytes(16)


def is_passing(note: str) -> bool:
    """Whether a note is about a file or a folder that could not be read for a while."""
    return note.startswith((UNREAD, UNREADABLE_FOLDER)) and note.rpartition(': ')[2] in PASSING


def scan(root: str) -> tuple[list[str], list[int], list[Entry]]:
    """Lists the folders below a folder, with the times of their last change, and the files in them. Opens no file.

    Raises:
      UserError: the folder itself cannot be read.
    """
    folders, times, entries = [''], [0], []
    began, seen = time.time_ns(), {_identity(os.stat(root))}
    listed_as: dict[str, tuple[int, bytes]] = {}
    position = 0
    while position < len(folders):
        here = os.path.join(root, folders[position])
        try:
            changed = os.stat(here).st_mtime_ns
            with os.scandir(here) as listed:
                items = sorted(listed, key=lambda item: os.fsencode(item.name))
        except OSError as error:
            if not position:
                raise UserError(f'data.path={root}: cannot be read ({reason_of(error)})') from error
            entries.append(Entry(*listed_as[folders[position]], -1, 0, f'{UNREADABLE_FOLDER}: {reason_of(error)}'))
            del folders[position], times[position]
            continue
        times[position] = changed if changed < began - RECENT_NS else -1
        below = []
        for item in items:
            found = _entry(item, position, here)
            if isinstance(found, Entry):
                entries.append(found)
            elif _identity(found) in seen:
                entries.append(Entry(position, os.fsencode(item.name), -1, 0, LISTED_ELSEWHERE))
            else:
                seen.add(_identity(found))
                below.append(os.path.join(folders[position], item.name))
                listed_as[below[-1]] = position, os.fsencode(item.name)
        folders[position + 1 : position + 1] = below
        times[position + 1 : position + 1] = [0] * len(below)
        position += 1
    return folders, times, entries


def _entry(item: os.DirEntry, folder: int, here: str) -> Entry | os.stat_result:
    """An `Entry` for a file or for a folder that is left out; for any other folder, the result of `stat`."""
    name = os.fsencode(item.name)
    if item.name.startswith('.'):
        return Entry(folder, name, -1, 0, HIDDEN)
    if kinds.is_thumbnail(item.name):
        return Entry(folder, name, -1, 0, THUMBNAIL)
    try:
        found = item.stat()
    except OSError as error:
        problem = 'broken link' if item.is_symlink() else f'{UNREAD}: {reason_of(error)}'
        return Entry(folder, name, -1, 0, problem)
    if stat.S_ISDIR(found.st_mode):
        if os.access(os.path.join(here, item.name), os.R_OK | os.X_OK):
            return found
        return Entry(folder, name, -1, 0, UNREADABLE_FOLDER)
    if stat.S_ISREG(found.st_mode):
        return Entry(folder, name, found.st_size, found.st_mtime_ns)
    return Entry(folder, name, -1, 0, SPECIAL)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def examine_file(path: str, entry: Entry, channels: int = 0) -> Finding:
    """Examines one file: as an image with `channels` channels, read as stored, or with 0 as one to convert to RGB."""
    if entry.problem:
        ignored = entry.problem in (HIDDEN, THUMBNAIL, LISTED_ELSEWHERE)
        return Finding(IGNORED if ignored else SKIPPED, entry.problem)
    name = os.path.basename(path)
    try:
        with open(path, 'rb') as file:
            start = file.read(kinds.START_BYTES)
            array = bool(channels) and name.lower().endswith(stored.SUFFIX)
            foreign = None if array else kinds.foreign(name, start)
            if foreign is not None:
                return Finding(SKIPPED if foreign.skipped else IGNORED, foreign.name)
            named = array or kinds.named_as_image(name)
            if not named and not start.startswith(kinds.MAGIC):
                return Finding(IGNORED, NO_IMAGE)
            if entry.size > MAX_BYTES:
                return Finding(SKIPPED, f'larger than {MAX_BYTES:,} bytes')
            encoded = start + file.read()
    except OSError as error:
        return Finding(SKIPPED, f'{UNREAD}: {reason_of(error)}')
    except MemoryError:
        return Finding(SKIPPED, f'{UNREAD}: {NO_MEMORY}')
    digest = hashlib.blake2b(encoded, digest_size=16).digest()
    try:
        facts = stored.examine(encoded, channels) if channels else examine(encoded)
        return Finding(USED, '', *facts, digest)
    except UnusableError as error:
        return Finding(SKIPPED if named else IGNORED, str(error), digest=digest)
    except MemoryError:
        return Finding(SKIPPED, f'{UNREAD}: {NO_MEMORY}')
