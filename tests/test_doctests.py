"""The examples in the docstrings of the public functions of losses, negatives and views."""

import doctest
import importlib
from collections.abc import Iterator
from typing import Any

import pytest

MODULES = (
    'dualcl_jax.losses',
    'dualcl_jax.method.negatives.queue',
    'dualcl_jax.method.negatives.selectors',
    'dualcl_jax.method.negatives.top_k',
    'dualcl_jax.method.views.image_draws',
    'dualcl_jax.method.views.image_ops',
    'dualcl_jax.method.views.images',
)


def public_functions() -> Iterator[tuple[str, str]]:
    """The module and name of every public function, including those that a decorator of JAX wraps."""
    for module in MODULES:
        for name, value in vars(importlib.import_module(module)).items():
            ours = getattr(value, '__module__', '') == module and not name.startswith('_')
            if ours and callable(value) and not isinstance(value, type):
                yield module, name


def run(module: Any, name: str) -> doctest.TestResults:
    """Runs the examples of one function and compares each output exactly."""
    test = doctest.DocTestParser().get_doctest(
        getattr(module, name).__doc__ or '', dict(vars(module)), name, None, None
    )
    return doctest.DocTestRunner().run(test)


@pytest.mark.parametrize(('module', 'name'), list(public_functions()))
def test_example(module: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, attempted = run(importlib.import_module(module), name)
    assert attempted, f'{module}.{name} has no example'
    assert not failed, capsys.readouterr().out
