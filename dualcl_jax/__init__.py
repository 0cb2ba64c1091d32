"""Momentum contrastive pre-training with dual views and hard negatives, in JAX and Flax.

    import dualcl_jax

    dualcl_jax.train(data='photos', workdir='runs/photos', epochs=20)
    dualcl_jax.evaluate('runs/photos', protocols='knn')
    features = dualcl_jax.embed('runs/photos', data='photos').features
    dualcl_jax.export('runs/photos', 'encoder.safetensors')

The commands `dualcl train`, `evaluate`, `embed` and `export` do the same. JAX is imported on the first call, not when
the package is imported.
"""

import importlib
import typing

from dualcl_jax.system.versions import VERSION

if typing.TYPE_CHECKING:
    from dualcl_jax.api.embed import embed
    from dualcl_jax.api.evaluate import evaluate
    from dualcl_jax.api.export import export, load_encoder
    from dualcl_jax.api.train import train
    from dualcl_jax.system.errors import RestartError, UserError

__version__ = VERSION

__all__ = ['RestartError', 'UserError', '__version__', 'embed', 'evaluate', 'export', 'load_encoder', 'train']

_PLACES = {
    'RestartError': 'dualcl_jax.system.errors',
    'UserError': 'dualcl_jax.system.errors',
    'load_encoder': 'dualcl_jax.api.export',
    'train': 'dualcl_jax.api.train',
}
_CALLABLE_MODULES = ('embed', 'evaluate', 'export')


def __getattr__(name: str) -> typing.Any:
    if name in _CALLABLE_MODULES:
        return importlib.import_module(f'dualcl_jax.{name}')
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
