"""Every test runs on four forced CPU devices with strict ranks and types: no luck with one device, no silent cast."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'

import jax
import pytest
from support import Trainer

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


@pytest.fixture(scope='session')
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The training command, on a small data set."""
    return Trainer(tmp_path_factory.mktemp('trainer'))
