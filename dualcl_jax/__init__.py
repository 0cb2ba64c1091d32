"""Momentum contrastive pre-training with dual views and hard negatives, in JAX and Flax."""

import typing

if typing.TYPE_CHECKING:
    from dualcl_jax.models.exports import LoadedEncoder, LoadedTextEncoder


def load_encoder(path: str) -> 'LoadedEncoder | LoadedTextEncoder':
    """Loads the encoder in a file written by `python -m dualcl_jax.export`.

    The result maps images [N, H, W, C] to features [N, F]. Images are uint8, or floats in [0, 1], of the size
    `.description.image_size`. The encoder of a run on text maps a list of N sentences instead. JAX is imported by this
    function, not with the package.

    Raises:
      UserError: the file does not exist, is damaged or is of another kind.
    """
    from dualcl_jax.models.exports import load

    return load(path)
