"""Random keys follow from the seed, a purpose, the step and the position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from dualcl_jax.method import randomness
from dualcl_jax.method.randomness import VIEWS, example_keys, from_data, key, step_key
from dualcl_jax.method.state import create_train_state
from tests.support.methods import image_method
from tests.support.steps import TOTAL_STEPS, tiny


def test_purposes_have_their_numbers() -> None:
    """Other numbers would change every run; equal ones would give two purposes the same random numbers."""
    purposes = {name: value for name, value in vars(randomness).items() if isinstance(value, int)}
    assert purposes == {'INIT': 0, 'VIEWS': 1, 'QUEUE': 3, 'NEGATIVES': 4, 'FINETUNE': 5, 'PAIRS': 6}


def test_keys_are_folded_in_this_order() -> None:
    def folded(*numbers: int) -> np.ndarray:
        expected = jax.random.key(5)
        for number in numbers:
            expected = jax.random.fold_in(expected, number)
        return jax.random.key_data(expected)

    step = jnp.int32(7)
    np.testing.assert_array_equal(jax.random.key_data(key(5, VIEWS)), folded(1))
    np.testing.assert_array_equal(jax.random.key_data(step_key(5, VIEWS, step)), folded(1, 7))
    keys = jax.random.key_data(example_keys(5, VIEWS, step, jnp.array([3, 0, 11])))
    np.testing.assert_array_equal(keys, [folded(1, 7, position) for position in (3, 0, 11)])


@pytest.mark.parametrize('generator', ['threefry2x32', 'rbg'])
def test_draws_depend_on_the_position_alone(generator: str) -> None:
    """Also where JAX's default is a generator that does not separate the keys of a mapped batch."""

    def draws(positions: np.ndarray) -> np.ndarray:
        keys = example_keys(0, VIEWS, jnp.int32(3), jnp.asarray(positions, jnp.int32))
        return np.asarray(jax.vmap(lambda rng: jax.random.uniform(rng, (2,)))(from_data(jax.random.key_data(keys))))

    expected = draws(np.arange(8))
    with jax.default_prng_impl(generator):
        found = draws(np.arange(8))
        np.testing.assert_array_equal(draws(np.arange(4, 8)), found[4:])
    np.testing.assert_array_equal(found, expected)


def test_seeds_differ_in_parameters_and_queue() -> None:
    def leaves(seed: int) -> list[np.ndarray]:
        config = tiny(default.get_config(), 20, queue__init='noise')
        config.seed = seed
        state = create_train_state(image_method(config, total_steps=TOTAL_STEPS, steps_per_epoch=1, num_devices=1))
        kernels = jax.tree.map(np.array, [leaf for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1])
        return [*kernels, np.array(state.queue.keys)]

    assert not any(np.array_equal(a, b) for a, b in zip(leaves(5), leaves(6), strict=True))
