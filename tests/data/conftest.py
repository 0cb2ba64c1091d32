"""Fixtures of the tests of folders of images."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for the indexes of folders of images, which is this test's own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'dualcl_jax'


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An empty folder for images."""
    path = tmp_path / 'images'
    path.mkdir()
    return path
