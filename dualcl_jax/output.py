"""A file that the user names with --output."""

import uuid

from etils import epath

from dualcl_jax.errors import UserError


def write_output(path: str, content: bytes) -> None:
    """Writes a file whole or not at all, and the folders it lies in. Raises UserError where that fails."""
    file = epath.Path(path)
    partial = file.parent / f'.{file.name}-{uuid.uuid4().hex}'
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(None, 'Is a directory')
        try:
            partial.write_bytes(content)
            partial.replace(file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f'--output={path}: cannot be written ({error.strerror or error}); choose another path'
        ) from error
