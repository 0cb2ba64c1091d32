"""Every command in a document is one that its program accepts, every Python block runs or compiles."""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from dualcl_jax.evaluators.evaluate import chosen
from dualcl_jax.evaluators.protocols import NAMES
from dualcl_jax.method.validation import validate
from dualcl_jax.system.config import flatten, load_config, override
from dualcl_jax.system.user_modules import own_modules
from tests.support.runs import REPOSITORY

DOCUMENTS = sorted(
    path
    for pattern in ('*.md', 'docs/**/*.md', 'experiments/README.md', 'experiments/results/gpu/README.md')
    for path in REPOSITORY.glob(pattern)
    if path.parent.name != 'generated'
)
FENCED = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r'(?:^(?:    .*)?\n)+', re.MULTILINE)
INLINE = re.compile(r'`((?:python -m (?:dualcl_jax|experiments)|make |pip install |dualcl )[^`]*)`')
OTHERS = ('cd', 'git', 'export', 'sbatch', 'apt-get', 'docker', 'kubectl', 'sky', 'ray', 'wandb', 'pre-commit', 'xpk')
"""Programs of others that a command block may call; nothing is checked of them."""
EXTRAS = re.compile(r'\[([\w,]+)\]')


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def commands(text: str) -> Iterator[str]:
    """The commands of a document: those of its shell blocks, and those in a line of text."""
    prose = FENCED.sub('', text)
    blocks = [block for language, block in FENCED.findall(text) if language in ('bash', 'sh', 'shell', 'console')]
    blocks += INDENTED.findall(prose)
    for block in blocks:
        for line in block.replace('\\\n', ' ').splitlines():
            if line.strip() and ' ∈ ' not in line:  # a formula
                yield ' '.join(line.split())
    for inline in INLINE.findall(prose):
        yield ' '.join(inline.split())


def is_pattern(command: str) -> bool:
    """Whether a command stands for several, or for the flags of any."""
    return command.startswith('--') or bool(re.search(r'[{|…<]|\.\.\.|\bNAME\b', command))


CASES = [(name(path), command) for path in DOCUMENTS for command in commands(path.read_text())]


def test_there_are_commands() -> None:
    assert len(CASES) > 40
    assert all(any(document == name(path) for document, _ in CASES) for path in DOCUMENTS if path.name == 'README.md')


def check_install(words: list[str]) -> None:
    """The extras that pip should install exist."""
    extras = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']['optional-dependencies']
    for word in words:
        for found in EXTRAS.findall(word):
            assert set(found.split(',')) <= set(extras), word


def check_config(flags: object, fields: list[str]) -> None:
    """A config with its fields is valid, as far as that does not depend on data and devices."""
    if flags.config == 'CONFIG':  # any
        return
    config = load_config(flags.config.removeprefix('/tmp/release/'))  # type: ignore[attr-defined]
    override(config, fields)
    if not own_modules(dict(flatten(config))):  # else a network or a selector that only the reader has
        validate(config)


@pytest.mark.parametrize('command', sorted({command for _, command in CASES if not is_pattern(command)}))
def test_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(REPOSITORY)
    words = shlex.split(command.split(' && ')[-1], comments=True)
    while re.match(r'[A-Z_]+=', words[0]):
        words.pop(0)
    program, *rest = words
    if program == 'make':
        targets = re.findall(r'^([\w-]+):', (REPOSITORY / 'Makefile').read_text(), re.MULTILINE)
        assert not rest or rest[0] in targets, command
    elif program == 'pip':
        check_install(rest)
    elif program == 'dualcl':
        subcommands = importlib.import_module('dualcl_jax.__main__').COMMANDS
        if rest and rest[0] in subcommands:
            check_program(f'dualcl_jax.{subcommands[rest[0]][0]}', rest[1:])
    elif program.startswith('python') and rest[0] == '-m':
        check_program(rest[1], rest[2:])
    elif program.startswith('python') or program.endswith('.sh'):
        assert (REPOSITORY / (rest[0] if program.startswith('python') else program)).exists(), command
    else:
        assert program in OTHERS, command


def check_program(module: str, arguments: list[str]) -> None:
    """A program of ours accepts its arguments; a module that is named alone exists."""
    if not module.startswith(('dualcl_jax', 'experiments')):
        return
    program = importlib.import_module(
        f'{module}.__main__' if (REPOSITORY / module.replace('.', '/')).is_dir() else module
    )
    if not arguments or '--help' in arguments:
        return
    parsed = program.parse(arguments)
    flags, fields = parsed if isinstance(parsed, tuple) else (parsed, [])
    if module in ('dualcl_jax.main', 'dualcl_jax.compile'):
        check_config(flags, fields)
    if module == 'dualcl_jax.evaluate':
        assert chosen(flags.protocols, NAMES, '--protocols')


def python_blocks() -> Iterator[tuple[str, str]]:
    for path in DOCUMENTS:
        for language, block in FENCED.findall(path.read_text()):
            if language == 'python':
                yield name(path), block


@pytest.mark.parametrize(('document', 'block'), list(python_blocks()))
def test_python_block(document: str, block: str) -> None:
    """A block that needs no file runs; any other one compiles."""
    code = compile(block, document, 'exec')
    if 'workdir' not in block and 'load_encoder' not in block:
        with jax.numpy_rank_promotion('allow'):
            exec(code, {})


def test_python_blocks_are_found() -> None:
    documents = {document for document, _ in python_blocks()}
    assert {'README.md', 'docs/start.md', 'docs/how_to/export.md'} <= documents
