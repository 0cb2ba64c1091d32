"""The selftest passes here, and names the failing case after a fault is injected."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import pytest

from dualcl_jax import losses
from dualcl_jax.method import contrast, randomness
from dualcl_jax.method.negatives import queue_loss, selectors
from dualcl_jax.method.views import image_ops
from dualcl_jax.models import norm
from dualcl_jax.training import selftest_cases

THE_LOSS = ('loss', 'gradient', 'selection', 'queue', 'whole step')
PARTS = [THE_LOSS[:-1], pytest.param(THE_LOSS, marks=pytest.mark.slow)]
"""One fault in the whole step is enough: compiling it takes most of the time."""


def as_bfloat16(values: jax.Array) -> jax.Array:
    """Rounds float32 values to those of bfloat16. A conversion and back would not do: XLA may omit both."""
    return jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)


def failed(names: Sequence[str]) -> set[str]:
    return {
        name for name, (_, passed) in selftest_cases.run_cases(selftest_cases.load_cases(), names).items() if not passed
    }


@pytest.mark.slow
def test_it_passes():
    assert failed(tuple(selftest_cases.CASES)) == set()


def test_bfloat16_similarity(monkeypatch: pytest.MonkeyPatch):
    def rough(a, b):
        return as_bfloat16(jnp.asarray(a)) @ as_bfloat16(jnp.asarray(b)).T

    for module in (losses, queue_loss):
        monkeypatch.setattr(module, 'cosine', rough)
    assert failed(THE_LOSS) == {'loss', 'gradient', 'selection', 'whole step'}


@pytest.mark.parametrize('names', PARTS, ids=len)
def test_swapped_keys(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]):
    honest = losses.dual_view_loss
    for module in (losses, contrast):
        monkeypatch.setattr(module, 'dual_view_loss', lambda queries, keys, *rest: honest(queries, keys[::-1], *rest))
    assert failed(names) == {'loss', 'gradient', 'whole step'}.intersection(names)


@pytest.mark.parametrize('names', PARTS, ids=len)
def test_unmasked_slot(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]):
    honest = selectors.allowed_slots
    for module in (selectors, contrast):
        monkeypatch.setattr(
            module, 'allowed_slots', lambda valid, *rest, **fields: honest(jnp.ones_like(valid), *rest, **fields)
        )
    assert failed(names) == {'loss', 'gradient', 'whole step'}.intersection(names)


def test_reduced_precision_of_views(monkeypatch: pytest.MonkeyPatch):
    def rough(image, rows, columns):
        return jnp.einsum('oh,pw,hwc->opc', *map(as_bfloat16, (rows, columns, image)))

    monkeypatch.setattr(image_ops, 'apply_separable', rough)
    assert failed(('draws', 'views', 'queue')) == {'views'}


def test_another_generator_of_random_numbers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(randomness, 'GENERATOR', 'rbg')
    assert failed(('draws', 'views', 'queue')) == {'draws', 'views'}


def test_statistics_that_are_not_synchronized(monkeypatch: pytest.MonkeyPatch):
    honest = norm._moments
    monkeypatch.setattr(norm, '_moments', lambda x, span, axis_name: honest(x, 1, axis_name))
    names = [name for name in selftest_cases.CASES if name.startswith('batch')]
    assert failed(names) == {'batch statistics, all devices'}
