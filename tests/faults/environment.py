"""Hostile environments of a run: each case works, or gives one line and status 2. See `injected.py`."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.injected import CONFIG
from tests.support.runs import QUICK, REPOSITORY, TIMEOUT, Finished, Trainer, finish, summary

FEW = ('train.steps=4', 'negatives.selector=all')
NOWHERE = '/dev/null/nowhere'
"""A path that cannot be created, not even by root."""

NO_LOCKS = """
import errno, fcntl, os
def flock(file, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""

SCRIPT = """
import sys, threading
from dualcl_jax.system.config import override
from dualcl_jax.training.loop import train
from tests.support import quick_config

def work():
    config = quick_config.get_config()
    override(config, sys.argv[2:])
    assert train(config, sys.argv[1])

"""
CALLS = {
    'script without a guard': 'work()',
    'thread': 'thread = threading.Thread(target=work)\nthread.start()\nthread.join()',
    'notebook cell': 'import asyncio\nasync def cell():\n    work()\nasyncio.run(cell())',
}


def image_folder(folder: Path) -> Path:
    """A folder of 64 training and 16 test images."""
    rng = np.random.default_rng(0)
    for split, count in {'train': 32, 'test': 8}.items():
        for name in 'ab':
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f'{index}.png')
    return folder


def run(
    trainer: Trainer,
    workdir: Path | str,
    *fields: str,
    status: int = 0,
    within: Sequence[str] = (),
    script: Path | None = None,
    **environment: str,
) -> Finished:
    """Trains a few steps with variables of the environment, by a command that starts with `within`."""
    start = [str(script)] if script else ['-m', 'dualcl_jax.main', f'--config={QUICK}']
    given = (*FEW, f'data.path={trainer.data}', *fields)
    given = given if script else tuple(f'--config.{field}' for field in given)
    done = subprocess.run(
        [*within, sys.executable, *start, str(workdir) if script else f'--workdir={workdir}', *given],
        cwd=REPOSITORY,
        env=trainer.environment() | {'PYTHONPATH': str(REPOSITORY)} | environment,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    ended = Finished(done.returncode, done.stdout.decode(errors='replace'), done.stderr.decode(errors='replace'))
    assert ended.status == status, ended
    assert 'Traceback' not in ended.err, ended
    assert len(ended.err.splitlines()) == (status != 0), ended
    if not status:
        assert summary(Path(workdir))['step'] == 4
    return ended


def on_folder(folder: Path) -> tuple[str, ...]:
    """Fields for a folder of images that two workers decode."""
    return ('data.name=folder', f'data.path={image_folder(folder)}', 'data.memory_bytes=1', 'parallel.workers=2')


def redirected(trainer: Trainer, folder: Path, redirection: str) -> None:
    """Standard output is closed, full or a pipe that nothing reads."""
    run(trainer, folder / 'run', within=['bash', '-c', f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', 'bash'])


def no_home(trainer: Trainer, folder: Path) -> None:
    """HOME cannot be written, and there is no other folder for caches."""
    run(trainer, folder / 'run', *on_folder(folder / 'images'), HOME=NOWHERE, XDG_CACHE_HOME='', MPLCONFIGDIR='')


def no_lock_service(trainer: Trainer, folder: Path) -> None:
    """File systems without locks, such as some network homes."""
    (folder / 'sitecustomize.py').write_text(NO_LOCKS)
    ended = run(
        trainer,
        folder / 'run',
        *on_folder(folder / 'images'),
        PYTHONPATH=f'{folder}:{REPOSITORY}',
        XDG_CACHE_HOME=str(folder / 'cache'),
    )
    assert 'cannot be locked' in ended.out


def cache_full(trainer: Trainer, folder: Path) -> None:
    """The disk of the caches is full."""
    (folder / 'cache').mkdir()
    ended = run(
        trainer,
        folder / 'run',
        *on_folder(folder / 'images'),
        within=mounted('size=4k', folder / 'cache'),
        XDG_CACHE_HOME=str(folder / 'cache'),
        JAX_COMPILATION_CACHE_DIR=str(folder / 'cache'),
    )
    assert 'images are examined at every start' in ended.out


def no_shared_memory(trainer: Trainer, folder: Path) -> None:
    """Neither /dev/shm nor TMPDIR has space for the results of the workers."""
    (folder / 'tmp').mkdir()
    within = mounted('size=4k', Path('/dev/shm'), folder / 'tmp')
    run(trainer, folder / 'run', *on_folder(folder / 'images'), within=within, TMPDIR=str(folder / 'tmp'))


def no_space_but_the_workdir(trainer: Trainer, folder: Path) -> None:
    """HOME, /dev/shm and TMPDIR are full."""
    for name in ('home', 'tmp'):
        (folder / name).mkdir()
    within = mounted('size=4k', Path('/dev/shm'), folder / 'home', folder / 'tmp')
    places = {'HOME': str(folder / 'home'), 'TMPDIR': str(folder / 'tmp'), 'XDG_CACHE_HOME': '', 'MPLCONFIGDIR': ''}
    run(trainer, folder / 'run', *on_folder(folder / 'images'), 'log.pictures=True', within=within, **places)


def mounted(options: str, *places: Path) -> list[str]:
    """The start of a command that sees small disks at some places."""
    mounts = ' && '.join(f'mount -t tmpfs -o {options} disk {place}' for place in places)
    return ['unshare', '-rm', 'sh', '-c', f'{mounts} && exec "$@"', 'sh']


def can_mount() -> bool:
    """Whether this machine allows `mounted`."""
    with contextlib.suppress(OSError):
        command = [*mounted('size=4k', Path('/dev/shm')), 'true']
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    return False


def wrong_platform(trainer: Trainer, folder: Path) -> None:
    """JAX_PLATFORMS names a platform that is unknown, or not here."""
    for platform in ('nonsense', 'cuda'):
        ended = run(trainer, folder / 'run', status=2, JAX_PLATFORMS=platform)
        assert ended.err.startswith(f'error: JAX_PLATFORMS={platform}: JAX cannot use it ('), ended


def broken_driver(trainer: Trainer, folder: Path) -> None:
    """A plugin of JAX fails to start: the run says so in one line and uses the CPU."""
    (folder / 'jax_plugins' / 'broken').mkdir(parents=True)
    (folder / 'jax_plugins' / 'broken' / '__init__.py').write_text(
        'def initialize():\n    raise RuntimeError("driver too old\\nmore")\n'
    )
    within = ['bash', '-c', '"$@" 2>&1', 'bash']  # `run` expects nothing on standard error of a run that works
    ended = run(trainer, folder / 'run', within=within, JAX_PLATFORMS='', PYTHONPATH=f'{folder}:{REPOSITORY}')
    assert ended.out.count('driver too old') == 1, ended
    assert 'Traceback' not in ended.out


def ascii_locale(trainer: Trainer, folder: Path) -> None:
    """A locale without the characters that a run prints."""
    run(trainer, folder / 'run', LC_ALL='POSIX', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')


def odd_name(trainer: Trainer, folder: Path) -> None:
    """A workdir whose name is not UTF-8."""
    ended = run(trainer, os.fsdecode(os.fsencode(folder) + b'/r\xe9'), status=2)
    assert 'not UTF-8' in ended.err, ended


def proxy(trainer: Trainer, folder: Path) -> None:
    """Two processes, with a proxy for HTTP that does not answer."""
    variables = {'http_proxy': 'http://127.0.0.1:9', 'no_proxy': 'example.org'}
    with trainer.processes(folder / 'run', 'train.steps=4', config=CONFIG, **variables) as processes:
        for process in processes:
            assert finish(process, 0).err == ''


def called(trainer: Trainer, folder: Path, how: str) -> None:
    """`train` is called by a program, not by our command."""
    script = folder / 'script.py'
    script.write_text(SCRIPT + CALLS[how])
    run(trainer, folder / 'run', *on_folder(folder / 'images'), script=script)


CASES: Mapping[str, Callable[[Trainer, Path], None]] = {
    'no home': no_home,
    'no lock service': no_lock_service,
    'cache full': cache_full,
    'no shared memory': no_shared_memory,
    'no space but the workdir': no_space_but_the_workdir,
    'wrong JAX_PLATFORMS': wrong_platform,
    'broken driver': broken_driver,
    'ASCII locale': ascii_locale,
    'name not UTF-8': odd_name,
    'proxy, two processes': proxy,
    'stdout closed': lambda trainer, folder: redirected(trainer, folder, '>&-'),
    'stdout full': lambda trainer, folder: redirected(trainer, folder, '>/dev/full'),
    'stdout not read': lambda trainer, folder: redirected(trainer, folder, '| true'),
    **{name: lambda trainer, folder, name=name: called(trainer, folder, name) for name in CALLS},
}
MOUNTING = ('cache full', 'no shared memory', 'no space but the workdir')
"""Cases that need `mounted`."""
FAST = ('no lock service', 'script without a guard')
"""Cases of the short form; the others are marked slow. `tests/system/test_terminal.py` has those of standard output."""
