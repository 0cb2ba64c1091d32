"""A run, and the command that evaluates it."""

import shutil
from pathlib import Path

import pytest

from dualcl_jax import evaluate
from tests.support.runs import Finished, Trainer


@pytest.fixture(scope='session')
def finished(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 4, which tests must not change."""
    workdir = tmp_path_factory.mktemp('evaluated') / 'run'
    trainer.run(workdir, 'model.name=tiny', 'train.steps=4', 'checkpoint.every_steps=2')
    return workdir


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
