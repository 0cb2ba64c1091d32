"""Fixtures of the tests of networks."""

from functools import partial

import pytest

from dualcl_jax.models.convnext import ConvNeXt
from dualcl_jax.models.encoder import MODELS


@pytest.fixture
def small_convnext(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ConvNeXt-T with fewer blocks and channels."""
    monkeypatch.setitem(MODELS, 'convnext_t', partial(ConvNeXt, (1, 1, 2, 1), (8, 16, 24, 32)))
