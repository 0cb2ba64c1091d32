"""Files that are there whole or not at all, local or remote, and paths to them."""

import contextlib
import errno

from etils import epath

from dualcl_jax.errors import UserError, first_line


def write_text(path: epath.Path, text: str) -> None:
    """Replaces a file by text, whole or not at all. Raises OSError, which names the file."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Replaces a file, whole or not at all. Raises OSError, which names the file."""
    partial = path.parent / f'{path.name}.new'
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # on a full disk its room is needed
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error  # epath says less


def reachable(path: str, named: str) -> epath.Path:
    """A path that a user gave, `named` such as '--workdir=gs://bucket/run' in messages; whether it exists is not asked.

    Raises:
      UserError: it is remote, and its store cannot be reached.
    """
    found = epath.Path(path)
    if '://' not in path:
        return found
    try:
        found.exists()
    except ImportError as error:
        raise UserError(f"{named}: {error}; gs:// needs pip install 'dualcl-jax[gcs]'") from error
    except Exception as error:  # each store has its own: no login, no bucket, no network
        reason = f'{type(error).__name__}: {first_line(error)}'
        raise UserError(f'{named}: cannot be reached ({reason}); see to login, bucket and network') from error
    return found
