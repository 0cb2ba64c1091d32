"""`constraints.txt` and `pyproject.toml` agree, for every Python that the project names."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.runs import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']
PYTHONS = re.findall(r'Python :: (3\.\d+)', '\n'.join(PROJECT['classifiers']))
LINES = (line.partition('#')[0].strip() for line in (REPOSITORY / 'constraints.txt').read_text().splitlines())
PINS = [Requirement(line) for line in LINES if line]
UNPINNED = {'dualcl-jax', 'gcsfs', 'ray', 'tensorflow'}
"""The project itself, whose extras name each other, and the packages of the extras gcs, prepare and ray."""


def applies(requirement: Requirement, python: str) -> bool:
    where = {'python_version': python, 'python_full_version': f'{python}.9', 'sys_platform': 'linux', 'extra': ''}
    return requirement.marker is None or requirement.marker.evaluate(where)


@pytest.mark.parametrize('python', PYTHONS)
def test_every_python_has_pins_within_the_bounds(python: str) -> None:
    """All packages except those of `UNPINNED` have one pin for each Python, which the bounds of the project allow."""
    lists = [PROJECT['dependencies'], *PROJECT['optional-dependencies'].values()]
    wanted = [each for words in lists for each in map(Requirement, words) if applies(each, python)]
    assert {'sphinx', 'imagecodecs', 'jax', 'tifffile'} | UNPINNED <= {each.name for each in wanted}
    assert not UNPINNED & {canonicalize_name(pin.name) for pin in PINS}
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name not in UNPINNED:
            (pin,) = (pin for pin in PINS if canonicalize_name(pin.name) == name and applies(pin, python))
            (version,) = (each.version for each in pin.specifier)
            assert requirement.specifier.contains(version), (requirement, version)
