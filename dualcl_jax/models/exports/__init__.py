"""Encoders exported to one file, for use without the run, without this project's training code, or without JAX."""

from collections.abc import Callable

from dualcl_jax.models.encoder import Variables
from dualcl_jax.models.exports import onnx, stablehlo, weights
from dualcl_jax.models.exports.encoder import Described, Description, LoadedEncoder
from dualcl_jax.models.exports.sentences import LoadedTextEncoder, TextDescription, with_variables
from dualcl_jax.system.errors import UserError, reason_of
from dualcl_jax.system.files import reachable

__all__ = [
    'FORMATS',
    'Described',
    'Description',
    'LoadedEncoder',
    'LoadedTextEncoder',
    'TextDescription',
    'load',
    'with_variables',
]

# Each function turns an encoder's description and variables into the bytes of a file.
FORMATS: dict[str, Callable[[Described, Variables], bytes]] = {
    'safetensors': weights.write,
    'stablehlo': stablehlo.write,
    'torchvision': weights.write_torchvision,
    'onnx': onnx.write,
}


def load(path: str) -> LoadedEncoder | LoadedTextEncoder:
    """Loads the encoder from a file of `python -m dualcl_jax.export`, of any format but onnx.

    Loading executes no code in the file. Calling an encoder of the format stablehlo runs the program in its file, so
    only use files from sources you trust.

    Args:
      path: a local or remote path.

    Raises:
      UserError: the file does not exist, is damaged, or is of another kind.
    """
    try:
        content = reachable(path, path).read_bytes()
    except OSError as error:
        raise UserError(
            f'{path}: cannot be read ({reason_of(error)}); name a file that dualcl_jax.export wrote'
        ) from error
    try:
        return stablehlo.read(content) if content.endswith(stablehlo.END) else weights.read(content)
    except ValueError as error:
        raise UserError(
            f'{path}: not a complete export of an encoder ({error}); export it again with dualcl_jax.export'
        ) from error
