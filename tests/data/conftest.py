"""Fixtures of the tests of folders of images."""

from pathlib import Path

import pytest


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An empty folder for images."""
    path = tmp_path / 'images'
    path.mkdir()
    return path
