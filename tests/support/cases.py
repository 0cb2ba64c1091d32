"""Folders and files that others reported, where the machine has them: shared/cases beside the checkout."""

import tarfile
from pathlib import Path

import pytest

from tests.support.runs import REPOSITORY

CASES = REPOSITORY.parent / 'shared' / 'cases'


def case(name: str) -> Path:
    """The path of a file. Skips the test where there is none."""
    path = CASES / name
    if not path.exists():
        pytest.skip(f'{CASES} does not have {name}: it is no part of the project')
    return path


def unpacked(name: str, folder: Path) -> Path:
    """A folder, unpacked into another."""
    with tarfile.open(case(f'{name}.tar.gz')) as archive:
        archive.extractall(folder, filter='tar')
    return folder / name
