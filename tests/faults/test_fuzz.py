"""Every reader of files and texts rejects invalid inputs with one clear error."""

from pathlib import Path

import pytest

from tests.faults.fuzz import READERS, fuzz


@pytest.mark.parametrize('name', READERS)
def test_reader(name: str, tmp_path: Path) -> None:
    tried, refused = fuzz(name, tmp_path, 60)
    assert tried >= 60
    assert refused or name in ('folder index', 'summary.json')  # these two are rebuilt instead
