"""Exports the encoder as a StableHLO program that contains its weights, for any batch size and any of `PLATFORMS`.

The program takes pixels float32 [batch, H, W, C] in [0, 1] and normalises them itself; one for sentences takes
{'tokens': int32 [batch, L], 'length': int32 [batch]}. The file begins with the output of
`jax.export.Exported.serialize`, so `jax.export.deserialize(content).call(inputs)` runs it without this project. The
description as JSON, its length and an end mark follow.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from dualcl_jax.models.encoder import Variables
from dualcl_jax.models.exports.encoder import Described, LoadedEncoder, compute
from dualcl_jax.models.exports.sentences import LoadedTextEncoder, loaded, read_description
from dualcl_jax.system.console import quiet_stderr
from dualcl_jax.system.errors import reason_of
from dualcl_jax.system.tree import Tree

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
END = b'dualcl-jax-export\n'
LENGTH_BYTES = 8


def write(description: Described, variables: Variables) -> bytes:
    """Serializes the program and its description."""
    (batch,) = jax.export.symbolic_shape('batch')
    encoder = description.build()

    def function(inputs: Tree) -> jax.Array:
        # The barrier keeps XLA from folding the weights into other constants, so bfloat16 rounds as in the run.
        return compute(description, encoder, jax.lax.optimization_barrier(variables), inputs)

    with _without_paths():
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(description.inputs(batch))
    program = bytes(exported.serialize())
    metadata = description.to_metadata()
    text = json.dumps(metadata | {'sha256': digest(program, metadata)}).encode()
    return program + text + len(text).to_bytes(LENGTH_BYTES, 'little') + END


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """A context in which lowered programs name the source files of their operations without folders."""
    name = 'jax_hlo_source_file_canonicalization_regex'
    before = getattr(jax.config, name)
    jax.config.update(name, '.*/')
    try:
        yield
    finally:
        jax.config.update(name, before)


def read(content: bytes) -> LoadedEncoder | LoadedTextEncoder:
    """Reads the encoder from a file of `write`.

    Raises:
      ValueError: the file is damaged, or its program needs a newer jax than the installed one.
    """
    content = content.removesuffix(END)
    content, length = content[:-LENGTH_BYTES], int.from_bytes(content[-LENGTH_BYTES:], 'little')
    if not 0 < length < len(content):
        raise ValueError('its parts do not fit together')
    program = content[:-length]
    try:
        metadata = json.loads(content[-length:])
    except RecursionError as error:
        raise ValueError('its metadata are not valid JSON') from error
    written = metadata.pop('sha256', None) if isinstance(metadata, dict) else None
    if written is None or written not in (digest(program, metadata), digest(program, None)):
        raise ValueError('its program or its description has changed since it was written')
    description = read_description(metadata)
    inputs = description.inputs(2)
    writer = _version_of_jax(description)
    newer = _numbers(writer) > _numbers(jax.__version__)
    try:
        exported = jax.export.deserialize(bytearray(program))
        found = jax.eval_shape(exported.call, inputs)
        if newer:
            with quiet_stderr():  # the compiler prints every operation that it does not support
                jax.jit(exported.call).lower(inputs)
    except Exception as error:  # JAX raises errors of many types for a damaged program
        if newer:
            raise ValueError(f'it needs jax {writer} or newer, and jax {jax.__version__} is installed') from error
        raise ValueError(f'its program cannot be used: {reason_of(error)}') from error
    if getattr(found, 'shape', None) != (2, description.features) or found.dtype != jnp.float32:
        raise ValueError('the features of its program do not match its description')
    run = jax.jit(exported.call)

    def features_of(inputs: Tree) -> jax.Array:
        if not jax.tree.leaves(inputs)[0].shape[0]:  # a program takes at least one example
            return jnp.zeros((0, description.features), jnp.float32)
        return run(inputs)

    return loaded(description, features_of)


def _version_of_jax(description: Described) -> str:
    """The version of jax that wrote a file; empty if its description does not contain it."""
    versions = description.provenance.get('versions')
    return str(versions.get('jax', ''))[:20] if isinstance(versions, dict) else ''


def _numbers(version: str) -> list[int]:
    """The first three numbers of a version."""
    return [int(number) for number in re.findall(r'\d+', version)[:3]]


def digest(program: bytes, metadata: dict[str, Any] | None) -> str:
    """The SHA-256 of the program and its description; for files from before 0.1.0, of the program alone (None)."""
    described = b'' if metadata is None else json.dumps(metadata, sort_keys=True).encode()
    return hashlib.sha256(program + described).hexdigest()
