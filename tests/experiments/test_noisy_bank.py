"""The noisy queue of `noisy_bank.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualcl_jax import step as training_step
from dualcl_jax.losses import normalize
from dualcl_jax.method.negatives.queue import UNKNOWN, empty_queue, enqueue
from experiments.sweeps.shared import noisy_bank


def test_share_of_noise() -> None:
    """Three tenths are random unit vectors without image and label, the rest is written as usual; steps differ."""
    count, dim = 4000, 16
    keys = normalize(jax.random.normal(jax.random.key(1), (count, dim)))
    ids, labels = jnp.arange(count), jnp.arange(count) % 10
    queues = [
        noisy_bank.enqueue_with_noise(empty_queue(count, dim), keys, ids, labels, jnp.int32(step)) for step in (3, 4)
    ]
    noise = [np.asarray(queue.ids) == UNKNOWN for queue in queues]
    for queue, replaced in zip(queues, noise, strict=True):
        assert abs(replaced.mean() - noisy_bank.SHARE) < 4 * np.sqrt(0.3 * 0.7 / count)
        np.testing.assert_array_equal(np.asarray(queue.labels) == UNKNOWN, replaced)
        np.testing.assert_allclose(np.linalg.norm(queue.keys, axis=1), 1, rtol=1e-5)
        random = np.asarray(queue.keys)[replaced]
        assert abs((random * np.asarray(keys)[replaced]).sum(1)).mean() < 0.25  # 0.2 for independent vectors
        np.testing.assert_array_equal(np.asarray(queue.keys)[~replaced], np.asarray(keys)[~replaced])
        np.testing.assert_array_equal(np.asarray(queue.ids)[~replaced], np.asarray(ids)[~replaced])
    assert (noise[0] != noise[1]).mean() > 0.3  # 0.42 for independent draws


def test_the_config_replaces_the_queue_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, 'enqueue', enqueue)  # restored afterwards
    config = noisy_bank.get_config()
    assert training_step.enqueue is noisy_bank.enqueue_with_noise
    assert config.loss.symmetric is False
