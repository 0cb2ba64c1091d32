"""Checksums of a state, computed on the devices that hold it. The method is this project's own.

The checksum of an array, read as 32-bit words w, is Σ (2i + 1)·w_i mod 2³². Since the weights are odd, any change of a
single word changes the sum; a change of several words leaves it unchanged in one of 2³² cases. The arrays stay on the
devices: only 4 bytes per array are transferred.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dualcl_jax.method.state import TrainState
from dualcl_jax.system.devices import gathered, to_host
from dualcl_jax.system.errors import UserError


def checksums(state: Any) -> dict[str, int]:
    """The checksum of every array of a global state, by its path. Every process must call it.

    Raises:
      UserError: two devices hold different values of an array that should be equal.
    """
    sums = _sums(state)
    shards = sorted(sums.addressable_shards, key=lambda shard: shard.device.id)
    copies = np.stack([np.asarray(shard.data) for shard in shards])
    if jax.process_count() > 1:
        copies = np.asarray(multihost_utils.process_allgather(copies)).reshape(-1, copies.shape[-1])
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    apart = np.argwhere(copies != copies[0])
    if len(apart):
        device, leaf = apart[0].tolist()
        raise UserError(
            f'device {device} of {len(copies)} holds a different {names[leaf]} from device 0: one of them has faulty '
            'arithmetic or memory\nnothing was saved; find the faulty one, exclude it, and run the same command again'
        )
    return dict(zip(names, copies[0].tolist(), strict=True))


@jax.jit
def _sums(state: Any) -> jax.Array:
    """Checksums uint32 [leaves]. Each device computes them from its own copy of replicated arrays."""
    return jnp.stack([_sum(leaf) for leaf in jax.tree.leaves(state)])


def _sum(leaf: jax.Array) -> jax.Array:
    bits = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    bits = jax.lax.bitcast_convert_type(bits, {1: jnp.uint8, 2: jnp.uint16}.get(bits.dtype.itemsize, jnp.uint32))
    words = bits.ravel().astype(jnp.uint32)
    return (words * (2 * jax.lax.iota(jnp.uint32, words.size) + 1)).sum(dtype=jnp.uint32)


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Adds to a JSON record a checksum over the record."""
    return record | {'checksum': _digest(record)}


def is_sealed(record: Any) -> bool:
    """Whether a record is unchanged since `seal`."""
    if not isinstance(record, dict) or 'checksum' not in record:
        return False
    return record['checksum'] == _digest({name: value for name, value in record.items() if name != 'checksum'})


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def state_sha256(state: TrainState) -> str:
    """SHA-256 over path, dtype, shape and bytes of every array of a state, in the order of the paths."""
    digest = hashlib.sha256()
    on_host = to_host(gathered(state))
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(on_host)]
    for path, leaf in sorted(leaves, key=lambda item: item[0]):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{path}:{array.dtype}:{array.shape};'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
