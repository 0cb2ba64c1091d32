"""Every test runs on four forced CPU devices with strict ranks and types: no luck with one device, no silent cast.

TEST_DEVICES=8 forces another number, for the tests that say so.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TEST_DEVICES', '4')
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + f' --xla_force_host_platform_device_count={os.environ["TEST_DEVICES"]}'
)

import jax
import pytest
from support import Trainer

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


@pytest.fixture(scope='session')
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The training command, on a small data set."""
    return Trainer(tmp_path_factory.mktemp('trainer'))
