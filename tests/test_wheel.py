"""The wheel: what it contains, and that the commands and functions work from it, outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from dualcl_jax import __version__, configs
from tests.support.runs import REPOSITORY, TIMEOUT

WRITES = re.compile(r'!?\[[^\]]*\]\((?!https?://)[^)]*\)')

USER = """
import numpy as np

import dualcl_jax
from dualcl_jax.configs import quickstart

images = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 3), np.uint8)
config = quickstart.get_config()
config.log.pictures = False
data = (images, np.arange(96) % 3)
config.train.batch_size = 32
summary = dualcl_jax.train(data, workdir='P', config=config, steps=3, model__width=4, monitor__every_epochs=0)
assert summary['step'] == 3
records = dualcl_jax.evaluate('P', protocols='structure')
value: float = records[0]['value']
found = dualcl_jax.embed('P')
shape: tuple[int, ...] = found.features.shape
assert shape == (96, 32)
version: str = dualcl_jax.__version__
try:
    dualcl_jax.train('nowhere', workdir='Q')
except dualcl_jax.UserError as error:
    assert 'nowhere' in str(error)
"""


LOADS = """
import sys
sys.modules['configs'] = None  # the top-level folder, which an editable installation may add to the path
from dualcl_jax import configs
from dualcl_jax.system.config import load_config
assert configs.__file__.startswith(sys.argv[1])
for name in configs.names():
    load_config(name)
    print(name)
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(REPOSITORY / name, source / name)
    for name in ('dualcl_jax', 'configs'):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    command = [sys.executable, '-m', 'hatchling', 'build', '--target', 'wheel', '--directory', str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    (found,) = folder.glob('*.whl')
    return found


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = BytesParser().parsebytes(archive.read(f'dualcl_jax-{__version__}.dist-info/METADATA'))
        scripts = archive.read(f'dualcl_jax-{__version__}.dist-info/entry_points.txt').decode()
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / 'dualcl_jax').rglob('*.py')}
    assert modules <= names
    assert {f'dualcl_jax/configs/{name}.py' for name in configs.names()} <= names
    assert {'dualcl_jax/py.typed', 'dualcl_jax/configs/shared/recipes.py'} <= names
    assert {name.split('/')[0] for name in names} == {'dualcl_jax', f'dualcl_jax-{__version__}.dist-info'}
    templates = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / 'dualcl_jax').rglob('templates/*')}
    assert templates <= names
    assert metadata['Version'] == __version__
    assert 'dualcl = dualcl_jax.__main__:main' in scripts
    readme = metadata.get_payload()
    assert 'pip install' in readme
    assert WRITES.findall(readme) == []  # a package index has no files beside the text


def test_every_config_loads_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
    done = subprocess.run(
        [sys.executable, '-c', LOADS, str(tmp_path / 'site')],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(tmp_path / 'site'), 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == configs.names()


@pytest.mark.slow
def test_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Training, evaluation, embedding and the functions, from the installed wheel, with a config of one's own."""
    site, place = tmp_path / 'site', tmp_path / 'place'
    place.mkdir()
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', str(site)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    environment = os.environ | {'PYTHONPATH': str(site), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}

    def run(*command: str) -> str:
        options = {'cwd': place, 'env': environment, 'text': True, 'capture_output': True, 'timeout': TIMEOUT}
        done = subprocess.run(command, check=False, **options)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert done.stderr == ''
        return done.stdout

    dualcl = str(site / 'bin' / 'dualcl')
    (place / 'mine.py').write_text(
        'from dualcl_jax.configs import quickstart\n\n\n'
        'def get_config():\n    config = quickstart.get_config()\n    config.model.width = 8\n    return config\n'
    )
    assert str(site) in run(sys.executable, '-c', 'import dualcl_jax; print(dualcl_jax.__file__)')
    small = ('--config.train.steps=4', '--config.train.batch_size=32', '--config.monitor.every_epochs=0')
    assert 'done: 4 steps' in run(dualcl, 'train', '--config=quickstart', *small, '--workdir=W')
    run(dualcl, 'train', '--config=mine.py', *small, '--config.log.pictures=False', '--workdir=mine')
    assert run(dualcl, 'evaluate', '--workdir=W', '--protocols=knn').splitlines()[-1].startswith('{"output"')
    run(dualcl, 'embed', '--workdir=W', '--output=features.parquet', '--near_duplicates')
    (place / 'user.py').write_text(USER)
    run(sys.executable, 'user.py')
    environment['MYPYPATH'] = str(site)
    run(sys.executable, '-m', 'mypy', '--strict', '--follow-imports=silent', 'user.py')
