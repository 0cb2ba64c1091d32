"""Encoders as files of their own, to be used without this run, this project's training code, or JAX."""

from collections.abc import Callable

from dualcl_jax.models.exports import stablehlo, weights
from dualcl_jax.models.exports.encoder import Description, LoadedEncoder, Variables
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import reachable

__all__ = ['FORMATS', 'Description', 'LoadedEncoder', 'load']

# Each writes an encoder's description and variables into bytes.
FORMATS: dict[str, Callable[[Description, Variables], bytes]] = {
    'safetensors': weights.write,
    'stablehlo': stablehlo.write,
    'torchvision': weights.write_torchvision,
}


def load(path: str) -> LoadedEncoder:
    """The encoder in a file of `python -m dualcl_jax.export`, of any format; reading it executes nothing that is in it.

    To call an encoder of the format stablehlo runs the program in its file: take those only from whom you trust.

    Args:
      path: local or remote.

    Raises:
      UserError: no such file, or one that is damaged or of another kind.
    """
    try:
        content = reachable(path, path).read_bytes()
    except OSError as error:
        raise UserError(
            f'{path}: cannot be read ({error.strerror or error}); name a file that python -m dualcl_jax.export wrote'
        ) from error
    try:
        return stablehlo.read(content) if content.endswith(stablehlo.END) else weights.read(content)
    except ValueError as error:
        raise UserError(
            f'{path}: not a whole export of an encoder ({error}); write it again by python -m dualcl_jax.export'
        ) from error
