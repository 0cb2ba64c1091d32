"""The command `dualcl`: its subcommands, help and errors, and the names of configs."""

import subprocess
import sys
from pathlib import Path

import pytest

import dualcl_jax
from dualcl_jax import __main__ as command
from dualcl_jax import __version__, compile, configs, evaluate, main
from dualcl_jax.api.export import FILES
from dualcl_jax.evaluators.protocols import NAMES, TEXT_PROTOCOLS, protocols_of
from dualcl_jax.models.exports import FORMATS
from dualcl_jax.system.config import flatten, load_config
from dualcl_jax.system.errors import UserError
from tests.support.runs import REPOSITORY


def test_help_and_version(in_process) -> None:
    for arguments in ([], ['--help'], ['help']):
        done = in_process(command.main, *arguments)
        assert done.status == 0
        assert all(f'\n  {name}' in done.out for name in command.COMMANDS)
    assert in_process(command.main, '--version').out == f'dualcl_jax {__version__}\n'


def test_unknown_command(in_process) -> None:
    done = in_process(command.main, 'trian')
    assert (done.status, done.out) == (2, '')
    assert done.err == f'error: trian: no such command; choose one of {", ".join(command.COMMANDS)}\n'


@pytest.mark.parametrize('name', command.COMMANDS)
def test_subcommand(name: str, in_process) -> None:
    """A wrong flag is an error of the subcommand, which names itself as the user typed it."""
    done = in_process(command.main, name, '--no_such_flag')
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith(('error: ', f'see dualcl {name} --help'))


@pytest.mark.parametrize('name', command.COMMANDS)
def test_flags_are_parsed_before_jax(name: str) -> None:
    code = (
        f'import sys; sys.argv = ["dualcl", {name!r}, "--help"]\n'
        'from dualcl_jax.__main__ import main\n'
        'try:\n    main()\nexcept SystemExit:\n    pass\n'
        'sys.exit("jax" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f'usage: dualcl {name}' in done.stdout


def test_names_in_help_texts() -> None:
    """Programs name protocols and formats without importing JAX."""
    assert tuple(dict.fromkeys(evaluate.PROTOCOLS + evaluate.TEXT_PROTOCOLS)) == NAMES
    assert tuple(TEXT_PROTOCOLS) == evaluate.TEXT_PROTOCOLS
    for_text = protocols_of('text').keys() - TEXT_PROTOCOLS.keys()
    assert set(evaluate.PROTOCOLS) - for_text == {'finetune', 'semi', 'robustness', 'retrieval'}
    assert tuple(FORMATS) == FILES


def test_configs_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(configs.names()) == {path.stem for path in (REPOSITORY / 'configs').glob('*.py')}
    for name in ('quickstart', 'imagenet:moco_v3'):
        file, colon, recipe = name.partition(':')
        by_path = load_config(f'{REPOSITORY}/configs/{file}.py{colon}{recipe}')
        assert dict(flatten(load_config(name))) == dict(flatten(by_path))
    (tmp_path / 'cifar10').write_text('def get_config():\n    raise ValueError("mine")\n')
    with pytest.raises(UserError, match='not a Python file'):  # a file goes before a name
        load_config('cifar10')


@pytest.mark.parametrize(
    ('given', 'said'),
    [('quickstrat', 'did you mean quickstart?'), ('zzz', 'one of cifar10'), ('configs/cifar11.py', 'mean cifar10')],
)
def test_no_such_config(given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load_config(given)
    assert said in str(error.value)


def test_own_config_starts_from_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = 'def get_config():\n    config = default.get_config()\n    config.seed = 7\n    return config\n'
    (tmp_path / 'mine.py').write_text(f'from dualcl_jax.configs import default\n\n\n{own}')
    assert load_config('mine.py').seed == 7
    (tmp_path / 'old.py').write_text('raise ModuleNotFoundError("no configs here", name="configs")\n')
    with pytest.raises(UserError, match=r'import from dualcl_jax\.configs instead'):
        load_config('old.py')


@pytest.mark.parametrize('field', ['model.name', 'model.norm', 'data.name'])
def test_a_config_that_lacks_a_field(in_process, tmp_path: Path, field: str) -> None:
    """Whatever is trained or compiled with it, the error names the field."""
    config, workdir = tmp_path / 'mine.py', tmp_path / 'run'
    remove = f'c = default.get_config()\n  c.unlock()\n  del c.{field}\n  return c'
    config.write_text(f'from configs import default\ndef get_config():\n  {remove}')
    said = f'config.{field}: missing; start from configs/default.py'
    for program, flags in ((main.main, [f'--workdir={workdir}']), (compile.main, [])):
        done = in_process(program, f'--config={config}', *flags)
        assert (done.status, done.err) == (2, f'error: {said}\n')
    with pytest.raises(UserError, match=f'^{said}$'):
        dualcl_jax.train(workdir=workdir, config=config)
    assert not workdir.exists()
