"""Versions of the packages that a result depends on."""

import importlib.metadata
import importlib.util
import platform

VERSION = '0.1.0'
"""The version of this package."""

PACKAGES = ('dualcl-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
"""Packages whose versions affect a result; they must be the same in every process of a run."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect a result, and the kind of device."""
    import jax  # after `processes.start` has set its environment

    found = {name: _version(name) for name in PACKAGES}
    return {'python': platform.python_version(), **found, 'device': jax.devices()[0].device_kind}


def _version(name: str) -> str:
    """The version of an installed package; 'not installed' for one that is only on the path, such as a checkout."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return 'not installed'
