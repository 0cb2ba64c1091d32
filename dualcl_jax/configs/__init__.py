"""The configurations that come with the package: those of `configs/`, under this name in a checkout and a wheel.

A configuration of your own can start from one of them, wherever it is:

    from dualcl_jax.configs import default

In a checkout the files are in its top-level folder `configs`; in a wheel they are in this package.
"""

import typing
from pathlib import Path

if typing.TYPE_CHECKING:

    def __getattr__(name: str) -> typing.Any:
        """In a checkout, type checkers do not find the files."""


_CHECKOUT = Path(__file__).parents[2] / 'configs'

if (_CHECKOUT / 'default.py').is_file():
    __path__.append(str(_CHECKOUT))

FOLDER = Path(__path__[-1])
"""The folder of the files."""


def names() -> list[str]:
    """The names that `--config` accepts in place of a path, sorted."""
    return sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != '__init__')


def path_of(name: str) -> Path:
    """The file of a name of `names()`."""
    return FOLDER / f'{name}.py'
