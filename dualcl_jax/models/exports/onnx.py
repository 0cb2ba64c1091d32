"""Exports the encoder as an ONNX program that contains its weights, for any batch size.

jax2onnx converts it, and onnxruntime then computes features of random pixels. A program whose features differ from
JAX's is not written. The input is pixels float32 [batch, H, W, C] in [0, 1], which the program normalises itself, and
the output is features float32 [batch, F]. The description is in the metadata of the model.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dualcl_jax.models.encoder import Variables
from dualcl_jax.models.exports.encoder import Described, Description, compute
from dualcl_jax.system.errors import UserError, reason_of

TOLERANCE = 1e-4
"""Largest difference of a feature from JAX's, relative to the largest feature."""
CHECKED = 4
"""The number of images that are compared."""


def write(description: Described, variables: Variables) -> bytes:
    """Converts the encoder and compares its features with those of JAX.

    Raises:
      UserError: it is not an encoder of images, a package is missing, the network cannot be converted, or its features
        differ.
    """
    if not isinstance(description, Description):
        raise UserError('--format=onnx: only encoders of images are converted; use safetensors or stablehlo')
    try:
        with _quiet():
            import jax2onnx
            import onnxruntime
    except ImportError as error:
        raise UserError(f"--format=onnx: {error}; pip install 'dualcl-jax[onnx]'") from error
    name, shape, encoder = description.architecture['name'], description.images.shape, description.build()

    def function(pixels: jax.Array) -> jax.Array:
        return compute(description, encoder, variables, pixels)

    try:
        with _quiet(), _for_cpu():
            model = jax2onnx.to_onnx(function, inputs=[('batch', *shape)], model_name='encoder')
            for key, value in description.to_metadata().items():
                model.metadata_props.add(key=key, value=value)
            content = model.SerializeToString()
            session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
            pixels = np.random.default_rng(0).uniform(size=(CHECKED, *shape)).astype(np.float32)
            (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
    except Exception as error:  # both packages raise errors of many types
        raise UserError(f'--format=onnx: {name} cannot be converted ({reason_of(error)}); use stablehlo') from error
    expected = np.asarray(jax.jit(function)(pixels))
    if found.shape != expected.shape or found.dtype != np.float32:
        raise UserError(f'--format=onnx: {name} becomes {found.dtype} {found.shape} in onnxruntime; use stablehlo')
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f'--format=onnx: features of onnxruntime differ from those of JAX by {difference:.1e} of the largest, more '
            f'than {TOLERANCE:.0e}; use stablehlo'
        )
    return content


@contextlib.contextmanager
def _for_cpu() -> Iterator[None]:
    """A context in which traced programs contain only their branches for a CPU: ONNX has no choice by platform."""

    def on_cpu(*arguments: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
        return cpu(*arguments)

    lax: Any = jax.lax
    before, lax.platform_dependent = lax.platform_dependent, on_cpu
    try:
        yield
    finally:
        lax.platform_dependent = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the converter prints and logs off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
