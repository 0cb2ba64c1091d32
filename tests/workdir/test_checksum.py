"""Checksums: any change of a word is seen, and so are copies that differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from dualcl_jax.system.devices import device_mesh, replicate
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.checksum import checksums, is_sealed, seal

DTYPES = [np.float32, np.int32, np.uint32, jnp.bfloat16, np.float16, np.uint8, np.bool_]


def reference(array: np.ndarray) -> int:
    """The definition, in Python's integers."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    words = array.ravel().view(f'u{array.dtype.itemsize}').tolist()
    return sum((2 * i + 1) * word for i, word in enumerate(words)) % 2**32


@pytest.mark.parametrize('dtype', DTYPES)
def test_against_the_definition(dtype) -> None:
    values = np.random.default_rng(0).normal(0, 100, (3, 5, 7)).astype(dtype)
    scalar = np.asarray(3, dtype)
    found = checksums({'a': jnp.asarray(values), 'b': jnp.asarray(scalar)})
    assert found == {"['a']": reference(values), "['b']": reference(scalar)}


@settings(max_examples=50)
@given(st.integers(0, 999), st.integers(0, 31))
def test_any_flipped_bit_is_seen(place: int, bit: int) -> None:
    words = np.random.default_rng(1).integers(0, 2**32, 1000, dtype=np.uint32)
    changed = words.copy()
    changed[place] ^= np.uint32(1 << bit)
    assert checksums([words]) == {'[0]': reference(words)} != checksums([changed])


def test_copies_that_differ_are_named() -> None:
    mesh = device_mesh()
    state = {'step': np.int32(3), 'weights': np.ones((4, 4), np.float32)}
    assert checksums(replicate(state, mesh)) == {
        name: reference(v) for name, v in zip(["['step']", "['weights']"], state.values(), strict=True)
    }
    copies = [jax.device_put(state['weights'] + (i == 2) * np.float32(1e-6), d) for i, d in enumerate(mesh.devices)]
    apart = jax.make_array_from_single_device_arrays((4, 4), NamedSharding(mesh, PartitionSpec()), copies)
    with pytest.raises(UserError, match=r"device 2 of 4 holds a different \['weights'\] from device 0"):
        checksums(replicate(state, mesh) | {'weights': apart})


def test_a_sharded_array_has_the_checksum_of_the_whole() -> None:
    mesh = device_mesh()
    values = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)
    sharded = jax.device_put(values, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))
    assert checksums([sharded]) == {'[0]': reference(values)}


def test_seal() -> None:
    sealed = seal({'wall_time_s': 0.1 + 0.2, 'skipped_steps': [3]})
    assert is_sealed(sealed)
    for broken in (None, [], {}, {'wall_time_s': 1.0}, sealed | {'wall_time_s': 0.3}, sealed | {'more': 1}):
        assert not is_sealed(broken)
