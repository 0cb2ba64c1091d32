"""A file that the user names with --output."""

import uuid

from etils import epath

from dualcl_jax.errors import UserError
from dualcl_jax.files import reachable


def check_output(path: str) -> None:
    """Makes the folder that a file is to lie in. Raises UserError where it cannot be written."""
    file = reachable(path, f'--output={path}')
    try:
        if not path or file.is_dir():
            raise IsADirectoryError(None, 'not the name of a file')
        file.parent.mkdir(parents=True, exist_ok=True)
        probe = _beside(file)
        probe.write_text('')
        probe.unlink()
    except FileExistsError as error:
        raise _refusal(path, OSError(None, 'a file is in the place of its folder')) from error
    except OSError as error:
        raise _refusal(path, error) from error


def write_output(path: str, content: bytes) -> None:
    """Writes a file whole or not at all. Raises UserError where that fails."""
    file = epath.Path(path)
    partial = _beside(file)
    try:
        try:
            partial.write_bytes(content)
            partial.replace(file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _refusal(path, error) from error


def _beside(file: epath.Path) -> epath.Path:
    return file.parent / f'.{file.name}-{uuid.uuid4().hex}'


def _refusal(path: str, error: OSError) -> UserError:
    return UserError(f'--output={path}: cannot be written ({error.strerror or error}); choose another path')
