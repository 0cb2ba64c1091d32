"""The examples in the docstrings of the package."""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runs import REPOSITORY

PROMPT = '>>> '
COMPLETE = (
    'dualcl_jax.losses',
    'dualcl_jax.method.negatives.queue',
    'dualcl_jax.method.negatives.selectors',
    'dualcl_jax.method.negatives.top_k',
    'dualcl_jax.method.views.image_draws',
    'dualcl_jax.method.views.image_ops',
    'dualcl_jax.method.views.images',
)
"""Modules for users, in which every public function has an example."""
SLOW = ('draw_crop', 'largest', 'make_views')
"""Functions whose examples take long to compile; tests of their own call them."""


def documented(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The name and the docstring of a module, and of all its classes, functions and methods."""

    def inside(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, ast.get_docstring(node) or ''
        for child in ast.iter_child_nodes(node):
            yield from inside(child, '.'.join(filter(None, (name, getattr(child, 'name', '')))))

    return inside(tree, '')


def examples() -> Iterator[tuple[str, str, str]]:
    """The module, name and docstring of everything in the package that has an example, wrapped by decorators or not."""
    for path in sorted((REPOSITORY / 'dualcl_jax').rglob('*.py')):
        source = path.read_text()
        if PROMPT in source:
            module = '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts).removesuffix('.__init__')
            for name, text in documented(ast.parse(source)):
                if PROMPT in text:
                    yield module, name, text


@pytest.mark.parametrize(
    ('module', 'name', 'text'),
    [
        pytest.param(*each, id='.'.join(each[:2]), marks=[pytest.mark.slow] if each[1] in SLOW else [])
        for each in examples()
    ],
)
def test_example(module: str, name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    test = doctest.DocTestParser().get_doctest(text, dict(vars(importlib.import_module(module))), name, None, None)
    assert test.examples
    assert not doctest.DocTestRunner().run(test).failed, capsys.readouterr().out


def test_no_example_is_forgotten() -> None:
    """Every prompt in the package is in a docstring, which is run."""
    run = sum(text.count(PROMPT) for _, _, text in examples())
    assert run == sum(path.read_text().count(PROMPT) for path in (REPOSITORY / 'dualcl_jax').rglob('*.py'))


@pytest.mark.parametrize('module', COMPLETE)
def test_every_public_function_has_an_example(module: str) -> None:
    tree = ast.parse(Path(REPOSITORY, *module.split('.')).with_suffix('.py').read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != '_'}
    assert functions <= {name for found, name, _ in examples() if found == module}
