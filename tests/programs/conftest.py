"""A copy of a run, and the command that evaluates it."""

import shutil
from pathlib import Path

import pytest

from dualcl_jax import evaluate
from tests.support.runs import Finished


@pytest.fixture
def workdir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that tests may change."""
    return Path(shutil.copytree(finished, tmp_path / 'run'))


@pytest.fixture
def run(in_process):
    """Runs the command in this process, on four devices and with strict types."""

    def main(workdir: Path | str, protocols: str, *flags: str) -> Finished:
        source = [f'--workdir={workdir}'] if workdir else []
        return in_process(evaluate.main, *source, f'--protocols={protocols}', *flags)

    return main
