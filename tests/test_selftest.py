"""The selftest passes here, and names the case when a fault is planted."""

import jax.numpy as jnp
import pytest

from dualcl_jax import losses, negatives, selftest


def failed() -> set[str]:
    return {name for name, (_, passed) in selftest.run_cases(selftest.load_cases()).items() if not passed}


def test_it_passes():
    assert failed() == set()


def test_bfloat16_similarity(monkeypatch: pytest.MonkeyPatch):
    def rough(a, b):
        rounded = [jnp.asarray(rows).astype(jnp.bfloat16).astype(jnp.float32) for rows in (a, b)]
        return rounded[0] @ rounded[1].T

    monkeypatch.setattr(losses, 'cosine', rough)
    assert failed() == {'loss', 'gradient', 'selection'}


def test_swapped_keys(monkeypatch: pytest.MonkeyPatch):
    honest = losses.dual_view_loss
    monkeypatch.setattr(losses, 'dual_view_loss', lambda queries, keys, *rest: honest(queries, keys[::-1], *rest))
    assert failed() == {'loss', 'gradient'}


def test_unmasked_slot(monkeypatch: pytest.MonkeyPatch):
    honest = negatives.allowed_slots
    monkeypatch.setattr(
        negatives, 'allowed_slots', lambda valid, *rest, **fields: honest(jnp.ones_like(valid), *rest, **fields)
    )
    assert failed() == {'loss', 'gradient'}
