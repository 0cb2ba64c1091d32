"""Atomic writes of local and remote files, and checks of the paths that a user gives."""

import contextlib
import errno
import fcntl
import glob
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from dualcl_jax.system.errors import UserError, first_line, reason_of

BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, MemoryError)
"""What reading a damaged .npz file can raise; an encrypted one raises RuntimeError."""


AnyPath = TypeVar('AnyPath', Path, epath.Path)


@contextlib.contextmanager
def replacing(path: AnyPath, *, shared: bool = False) -> Iterator[AnyPath]:
    """A context with a partial file beside `path`, which replaces it at the end. After any error it is removed.

    Args:
      path: the file to write.
      shared: whether several processes may write the file at once. Each partial file then has its own name. Otherwise
        it is NAME.new, so that the next write replaces the one that a killed process left.

    Raises:
      OSError: it names the file, and has an error number and a reason.
    """
    partial = _beside(path) if shared else path.parent / f'{path.name}.new'
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(Exception):  # the error above is the one to raise
            partial.unlink(missing_ok=True)  # frees its space on a full disk
        if not isinstance(error, OSError):
            raise
        number = error.errno or (errno.EISDIR if isinstance(error, IsADirectoryError) else errno.EIO)
        raise OSError(number, error.strerror or str(error), str(path)) from error  # epath omits these


def write_text(path: epath.Path, text: str) -> None:
    """Replaces a file atomically by text. Raises OSError, which names the file."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Replaces a file atomically. Raises OSError, which names the file."""
    try:
        with replacing(path) as partial:
            partial.write_bytes(content)
    except OSError:
        raise
    except Exception as error:  # remote stores raise types of their own
        raise OSError(errno.EIO, first_line(error), str(path)) from error


def reachable(path: str, named: str) -> epath.Path:
    """Opens a path given by a user, which need not exist. Messages call it `named`, as '--workdir=gs://bucket/run'.

    `~` is replaced by the home directory, as shells do not replace it inside a flag.

    Raises:
      UserError: the path is remote and its store cannot be reached.
    """
    found = epath.Path(os.path.expanduser(path))
    if '://' not in path:
        return found
    try:
        found.exists()
    except ImportError as error:
        raise UserError(f"{named}: {error}; gs:// needs pip install 'dualcl-jax[gcs]'") from error
    except Exception as error:  # each store raises its own types for a missing login, bucket or network
        reason = f'{type(error).__name__}: {first_line(error)}'
        raise UserError(f'{named}: cannot be reached ({reason}); check login, bucket and network') from error
    return found


def absolute(path: epath.Path) -> epath.Path:
    """The absolute form of a local path; a remote one, such as gs://bucket/run, as it is.

    epath's `resolve` and `absolute` put the working directory before a URL.
    """
    return path if '://' in str(path) else path.resolve()


def matching(folder: epath.Path, *patterns: str) -> list[epath.Path]:
    """The paths below a folder that match one of the patterns, sorted; the folder may be missing.

    epath's `glob` also treats wildcards in the name of a local folder as wildcards; here, only the patterns have any.
    """
    if '://' in str(folder):
        return sorted(path for pattern in patterns for path in folder.glob(pattern))
    return sorted(folder / path for pattern in patterns for path in glob.glob(pattern, root_dir=folder))


def cache_folder() -> Path:
    """The folder of everything that is cached: $XDG_CACHE_HOME/dualcl_jax, by default ~/.cache/dualcl_jax.

    For a user without a home directory it is a path that cannot be created.
    """
    base = os.environ.get('XDG_CACHE_HOME')
    try:
        return (Path(base) if base else Path.home() / '.cache') / 'dualcl_jax'
    except RuntimeError:  # neither HOME nor an entry in the user database
        return Path(os.devnull, 'dualcl_jax')


def can_create(folder: Path) -> bool:
    """Whether a folder exists and can be written, or can be created."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A context for one process of this machine at a time, or for any number if the folder has no lock service.

    Raises OSError if the file cannot be created.
    """
    with path.open('w') as file:
        with contextlib.suppress(OSError):  # such as ENOLCK of a network file system
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_writable(folder: epath.Path) -> None:
    """Raises OSError if the folder is not writable."""
    probe = folder / f'.writable-{uuid.uuid4().hex}'  # a different one for each process of a run
    probe.write_text('')
    probe.unlink()


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def check_output(path: str) -> None:
    """Creates the parent folder of an output file. Raises UserError if it is not writable."""
    file = reachable(path, f'--output={path}')
    try:
        if not path or file.is_dir():
            raise IsADirectoryError(None, 'not a file name')
        file.parent.mkdir(parents=True, exist_ok=True)
        probe = _beside(file)
        probe.write_text('')
        probe.unlink()
    except FileExistsError as error:
        raise _refusal(path, OSError(None, 'its folder is a file')) from error
    except OSError as error:
        raise _refusal(path, error) from error


@contextlib.contextmanager
def replacing_output(path: str, *, shared: bool = False) -> Iterator[epath.Path]:
    """The context `replacing` for an output file. Raises UserError if the file cannot be written."""
    try:
        with replacing(reachable(path, f'--output={path}'), shared=shared) as partial:
            yield partial
    except OSError as error:
        raise _refusal(path, error) from error


def write_output(path: str, content: bytes) -> None:
    """Writes an output file atomically. Raises UserError on failure."""
    with replacing_output(path, shared=True) as partial:
        partial.write_bytes(content)


def check_output_folder(path: str) -> None:
    """Creates the parent folder of an output folder. Raises UserError if one of them cannot be used."""
    folder = reachable(path, f'--output={path}')
    if path and folder.is_dir():
        if any(folder.iterdir()):
            raise UserError(f'--output={path}: is not empty; name a new folder')
        check_output(str(folder / 'file'))
    else:
        check_output(path)


def write_output_folder(path: str, files: Mapping[str, bytes]) -> None:
    """Writes the files of an output folder, by their paths in it. Raises UserError on failure."""
    folder = reachable(path, f'--output={path}')
    partial = _beside(folder)
    try:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        if folder.is_dir():
            folder.rmdir()  # it is empty
        partial.rename(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # it may not even exist
            partial.rmtree(missing_ok=True)
        raise _refusal(path, error) from error


def _beside(file: AnyPath) -> AnyPath:
    return file.parent / f'.{file.name}-{uuid.uuid4().hex}'


def _refusal(path: str, error: OSError) -> UserError:
    return UserError(f'--output={path}: cannot be written ({reason_of(error)}); choose another path')
