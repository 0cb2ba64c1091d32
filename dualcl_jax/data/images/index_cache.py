"""The caches of indices of folders, and how the processes of a run share one.

The cache of a folder is a columnar .npz file in $XDG_CACHE_HOME/dualcl_jax (~/.cache/dualcl_jax), and a compressed one
in the workdir of a run (`dualcl_jax.data.run_cache`). Files that could not be read are examined again at the next
start.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
import simplejpeg

from dualcl_jax.data.images import stored
from dualcl_jax.data.images.index import Index, examine_all
from dualcl_jax.data.run_cache import NO_CACHE, RunCache
from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.files import BROKEN, cache_folder, locked, replacing
from dualcl_jax.system.processes.agreement import made_once

VERSION = f'4 {PIL.__version__} {simplejpeg.__version__}'
"""The version of the format and of the decoders. A cache of another version is not used."""


def open_index(root: str, channels: int = 0, run_cache: RunCache = NO_CACHE) -> Index:
    """Opens the index of a local folder: from a cache that is valid, else by examining the files that no cache has.

    Of the processes of a run that have the same folder, process 0 does this, and the others use its index: all leave
    out what process 0 could not read.

    Args:
      root: the folder.
      channels: the channels of usable images, which are read as stored; 0: images that can be converted to RGB.
      run_cache: that of the run.

    Raises:
      UserError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise UserError(f'data.path={root}: no such folder; with data.name=folder, set it to a local folder of images')
    caches = _Caches(root, channels, run_cache, _cache_file(root, channels))
    if not run_cache.trains:
        return caches.open()
    # Neither the inode nor the time of the folder: gcsfuse gives them anew to each mount.
    key = repr((os.path.realpath(root), channels))
    return made_once('index', key, caches.open, caches.of_process_0, has=caches.fresh_of_machine)


class _Caches(NamedTuple):
    """The two caches of the index of a folder: `file` on this machine, and that of the run. See `open_index`."""

    root: str
    channels: int
    run_cache: RunCache
    file: Path

    @property
    def name(self) -> str:
        """The name of the cache of the run."""
        return f'index-{self.file.stem[:16]}.npz'

    def of_run(self) -> Index | None:
        """The index in the cache of the run; None if there is none, or it cannot be used."""
        content = self.run_cache.read(self.name)
        shown = f'{self.name} in {self.run_cache.workdir}'
        return None if content is None else _usable(shown, lambda: io.BytesIO(content), self.root)

    def fresh_of_machine(self) -> Index | None:
        """The index in the cache of this machine; None if there is none that is valid."""
        known = _load(self.file, self.root)
        return known if known is not None and known.is_fresh() else None

    def open(self) -> Index:
        """Opens the index in this process, and stores it in the cache of the run."""
        kept = self.of_run()
        index = self._examined(kept, self._save_in_run)
        if kept is None or not _same(index, kept):
            self._save_in_run(index)
        return index

    def of_process_0(self) -> Index | None:
        """The index that process 0 has stored in the cache of the run; None if this process cannot use it."""
        index = self.of_run()
        if index is None:
            return None
        if not index.is_fresh(retry=False):  # this process has other files, or folders with other times
            return self._examined(index)
        if not _holds(self.file, index):  # processes with one home need not wait for its lock
            with _locked(self.file) as writable:
                if writable and not _holds(self.file, index):
                    _try_to_save(index, self.file)
        return index

    def _save_in_run(self, index: Index) -> None:
        self.run_cache.save(self.name, functools.partial(_write, index, compressed=True))

    def _examined(self, other: Index | None, save: Callable[[Index], None] | None = None) -> Index:
        """A valid index: `other`, that of this machine, or a new one for which `save` stores what is found so far."""
        with _locked(self.file) as writable:
            cached = _load(self.file, self.root)
            found = [known for known in (other, cached) if known is not None]
            index = next((known for known in found if known.is_fresh()), None)

            def save_part(index: Index) -> None:
                if writable:
                    _try_to_save(index, self.file)
                if save:
                    save(index)

            if index is None:
                index = examine_all(self.root, max(found, key=len, default=None), self.channels, save_part)
            if writable and (cached is None or not _same(index, cached)):
                _try_to_save(index, self.file)
        return index


def _cache_file(root: str, channels: int) -> Path:
    key = os.fsencode(os.path.realpath(root)) + (f'\0{channels} {stored.readers()}'.encode() if channels else b'')
    return cache_folder() / f'{hashlib.sha256(key).hexdigest()[:24]}.npz'


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[bool]:
    """Makes other processes of this machine wait for the cache. Yields False if nothing can be written."""
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
    print(f'note: {cache.parent} cannot be written ({reason_of(error)}): images are examined at every start')


def _holds(cache: Path, index: Index) -> bool:
    """Whether the cache has this index already."""
    found = _load(cache, index.root)
    return found is not None and _same(found, index)


def _same(one: Index, other: Index) -> bool:
    arrays = [name for name, value in vars(one).items() if isinstance(value, np.ndarray)]
    return (one.folders, one.notes) == (other.folders, other.notes) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


def _try_to_save(index: Index, cache: Path) -> None:
    """Writes the cache, or prints why it cannot be written."""
    try:
        _save(index, cache)
    except OSError as error:  # such as a full disk
        _note_uncached(cache, error)


def _save(index: Index, cache: Path) -> None:
    """Writes the cache, whole or not at all."""
    with replacing(cache, shared=True) as partial, partial.open('wb') as file:
        _write(index, file)


def _write(index: Index, file: BinaryIO, *, compressed: bool = False) -> None:
    arrays = {name: value for name, value in vars(index).items() if isinstance(value, np.ndarray)}
    about = {'version': VERSION, 'folders': index.folders, 'notes': list(index.notes.items())}
    arrays['about'] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    (np.savez_compressed if compressed else np.savez)(file, **arrays)  # type: ignore[arg-type]


def _load(cache: Path, root: str) -> Index | None:
    """Loads the index from the cache; None if there is no cache, or it cannot be used."""
    return _usable(str(cache), lambda: cache.open('rb'), root)


def _usable(shown: str, open_file: Callable[[], BinaryIO], root: str) -> Index | None:
    """Reads an index from a file that `open_file` opens; None if there is none, or it cannot be used."""
    try:
        with open_file() as file:
            return _read(file, root)
    except FileNotFoundError:
        return None
    except (*BROKEN, LookupError, TypeError) as error:
        print(f'note: {shown} cannot be read ({error}): the images are examined again')
        return None


def _read(file: BinaryIO, root: str) -> Index | None:
    """Reads an index from a file; None if another version wrote it. Passes on the errors of a damaged file."""
    with np.load(file, allow_pickle=False) as archive:
        about = json.loads(archive['about'].tobytes())
        if about['version'] != VERSION:
            return None
        arrays = {name: archive[name] for name in archive.files if name != 'about'}
        return Index(root, tuple(about['folders']), **arrays, notes={int(row): note for row, note in about['notes']})
