"""Files that are there whole or not at all, local or remote."""

import contextlib
import errno

from etils import epath


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
