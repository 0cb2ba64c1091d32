"""Momentum contrastive pre-training with dual views and hard negatives, in JAX and Flax."""

import typing

if typing.TYPE_CHECKING:
    from dualcl_jax.models.exports import LoadedEncoder


def load_encoder(path: str) -> 'LoadedEncoder':
    """The encoder in a file of `python -m dualcl_jax.export`; called on images [N, H, W, C] it gives features [N, F].

    Images are uint8, or floats in [0, 1], of the size that `.description.image_size` says. JAX is imported here, not
    with the package.

    Raises:
      UserError: no such file, or one that is damaged or of another kind.
    """
    from dualcl_jax.models.exports import load

    return load(path)
