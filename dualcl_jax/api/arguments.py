"""Arguments of the functions, as text in the form of the flags of the commands."""

import os
from collections.abc import Sequence
from typing import Any

from dualcl_jax.system.errors import UserError


def path_of(name: str, value: Any, remedy: str = 'give a path') -> str:
    """The argument `name`, a path. Raises UserError, which ends with the remedy, if it is something else."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise UserError(f'{name}: {type(value).__name__}; {remedy}')


def optional_path(name: str, value: Any, remedy: str = 'give a path') -> str | None:
    """The argument `name`, a path or None. Raises UserError as `path_of` does."""
    return None if value is None else path_of(name, value, remedy)


def assignment(field: str, value: Any) -> str:
    """The value of a field as 'FIELD=VALUE', also of sequences, and of arrays and scalars of NumPy.

    Example:
      >>> import numpy as np
      >>> assignment('data.mean', np.array([0.5, 0.25], np.float32))
      'data.mean=(0.5, 0.25)'
    """
    if getattr(value, 'ndim', 0) or (isinstance(value, Sequence) and not isinstance(value, str)):
        value = f'({", ".join(map(format, value))})'  # repr of NumPy names the type
    return f'{field}={value}'
