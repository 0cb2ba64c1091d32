"""The encoder as a StableHLO program with its weights inside, for any batch size, on any of `PLATFORMS`.

The program takes pixels float32 [batch, H, W, C] in [0, 1] and normalises them itself. The file is what
`jax.export.Exported.serialize` makes, so that `jax.export.deserialize(content).call(pixels)` runs it without this
project, followed by the description as JSON, its length, and an end mark.
"""

import hashlib
import json
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from dualcl_jax.models.exports.encoder import Description, LoadedEncoder, Variables, compute, reason

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
END = b'dualcl-jax-export\n'
LENGTH_BYTES = 8


def write(description: Description, variables: Variables) -> bytes:
    """The program and its description."""
    (batch,) = jax.export.symbolic_shape('batch')
    shape, encoder = (batch, *description.images.shape), description.build()

    def function(pixels: jax.Array) -> jax.Array:
        # Behind the barrier weights are not folded into what surrounds them: bfloat16 rounds as in the run's encoder.
        return compute(description, encoder, jax.lax.optimization_barrier(variables), pixels)

    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.float32))
    program = bytes(exported.serialize())
    metadata = description.to_metadata()
    text = json.dumps(metadata | {'sha256': digest(program, metadata)}).encode()
    return program + text + len(text).to_bytes(LENGTH_BYTES, 'little') + END


def read(content: bytes) -> LoadedEncoder:
    """The encoder in a file of `write`. Raises ValueError where it is damaged."""
    content = content.removesuffix(END)
    content, length = content[:-LENGTH_BYTES], int.from_bytes(content[-LENGTH_BYTES:], 'little')
    if not 0 < length < len(content):
        raise ValueError('its parts do not fit together')
    program = content[:-length]
    try:
        metadata = json.loads(content[-length:])
    except RecursionError as error:
        raise ValueError('its metadata are not JSON') from error
    if not isinstance(metadata, dict) or metadata.pop('sha256', None) != digest(program, metadata):
        raise ValueError('its program or its description is not the one that was written')
    description = Description.from_metadata(metadata)
    pixels = jax.ShapeDtypeStruct((2, *description.images.shape), jnp.float32)
    try:
        exported = jax.export.deserialize(bytearray(program))
        found = jax.eval_shape(exported.call, pixels)
    except Exception as error:  # JAX raises many types for one fact
        raise ValueError(f'its program cannot be used: {reason(error)}') from error
    if getattr(found, 'shape', None) != (2, description.features) or found.dtype != jnp.float32:
        raise ValueError('its program gives other features than its description')
    return LoadedEncoder(description, jax.jit(exported.call))


def digest(program: bytes, metadata: dict[str, Any]) -> str:
    """SHA-256 over the program and the description."""
    return hashlib.sha256(program + json.dumps(metadata, sort_keys=True).encode()).hexdigest()
