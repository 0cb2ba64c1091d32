"""Random keys follow from the seed, a purpose, the step and the position."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from dualcl_jax.method import randomness
from dualcl_jax.method.randomness import VIEWS, example_keys, key, step_key
from dualcl_jax.method.state import create_train_state
from tests.support.methods import image_method
from tests.support.steps import TOTAL_STEPS, tiny


def test_purposes_have_their_numbers() -> None:
    """Other numbers would change every run; equal ones would give two purposes the same random numbers."""
    purposes = {name: value for name, value in vars(randomness).items() if name.isupper()}
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


def test_seeds_differ_in_parameters_and_queue() -> None:
    def leaves(seed: int) -> list[np.ndarray]:
        config = tiny(default.get_config(), 20, queue__init='noise')
        config.seed = seed
        state = create_train_state(image_method(config, total_steps=TOTAL_STEPS, steps_per_epoch=1, num_devices=1))
        kernels = jax.tree.map(np.array, [leaf for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1])
        return [*kernels, np.array(state.queue.keys)]

    assert not any(np.array_equal(a, b) for a, b in zip(leaves(5), leaves(6), strict=True))
