"""The layout of the project: the rule of imports, the lengths of files and functions, and the paths that texts name."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.runs import REPOSITORY

PACKAGE = REPOSITORY / 'dualcl_jax'

LAYERS = (
    ('configs',),
    ('system', 'losses'),
    ('data', 'models'),
    ('method',),
    ('workdir', 'step'),
    ('evaluators', 'contrastive'),
    ('reports',),
    ('training',),
    ('api',),
    ('programs',),
)
"""The subpackages, lowest layer first. Each imports only itself and those of lower layers."""

PROGRAMS = ('__main__', 'main', 'evaluate', 'embed', 'export', 'report', 'prepare', 'compile', 'selftest')
"""The modules that users run with python -m. Nothing in the package imports them."""

INNER = {
    'dualcl_jax.data.images': tuple(
        f'dualcl_jax.data.{name}' for name in ('loader', 'order', 'source', 'tfds_folder', 'tree', 'workers')
    )
}
"""Folders that the modules beside them, in the same package, must not import."""

ROOT_FILES = 13
FILE_LINES = 400
FUNCTION_LINES = 90

FILE = re.compile(r'`([\w-]+\.(?:py|sh|npz))`')
PATH = re.compile(r'(?<![\w./-])(?:dualcl_jax|configs|experiments|tests)/[\w./-]*\.(?:py|npz|sh|md|json|png)\b')
COMMAND = re.compile(r'python3? -m ((?:dualcl_jax|experiments|tests)[\w.]*\w)')
DOTTED = re.compile(r'(?<![\w./@-])dualcl_jax(?:\.\w+)+')


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    return '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts).removesuffix('.__init__')


@cache
def modules() -> dict[str, ast.Module]:
    """The modules of the package by their dotted names."""
    return {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob('*.py'))}


def package_of(module: str) -> str:
    """The package of a module; '' for the package itself."""
    first = module.split('.')[1] if '.' in module else ''
    return 'programs' if first in PROGRAMS else first


@cache
def imports() -> dict[str, set[str]]:
    """The modules of the package that each module imports, on top or inside functions."""
    found: dict[str, set[str]] = {name: set() for name in modules()}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name.split('.')[0] == 'dualcl_jax'}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f'{name}: a relative import'
                if node.module and node.module.split('.')[0] == 'dualcl_jax':
                    inside = {f'{node.module}.{alias.name}' for alias in node.names} & modules().keys()
                    rest = any(f'{node.module}.{alias.name}' not in modules() for alias in node.names)
                    found[name] |= inside | ({node.module} if rest else set())
    return found


def layer_violations() -> Iterator[tuple[str, str]]:
    """Imports from the same or a higher layer, and imports of inner folders by the modules beside them."""
    layer = {package: number for number, packages in enumerate(LAYERS) for package in packages}
    for name, targets in imports().items():
        for target in targets:
            package, other = package_of(name), package_of(target)
            if package and package != other and (not other or layer[other] >= layer[package]):
                yield name, target
            for folder, beside in INNER.items():
                if name in beside and f'{target}.'.startswith(f'{folder}.'):
                    yield name, target


def test_every_module_is_in_a_layer():
    packages = {package for packages in LAYERS for package in packages} | {''}
    assert {name for name in modules() if package_of(name) not in packages} == set()


def test_packages_import_from_lower_layers_only():
    assert list(layer_violations()) == []


def test_programs_are_not_imported():
    found = {(name, target) for name, targets in imports().items() for target in targets if target != name}
    assert {pair for pair in found if package_of(pair[1]) == 'programs'} == set()


def test_no_circle_of_imports():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, ' -> '.join((*path[path.index(name) :], name))
        if name not in done:
            for target in imports()[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in imports():
        visit(name, ())


def test_few_files_in_the_root():
    assert len(list(PACKAGE.glob('*.py'))) <= ROOT_FILES


def test_no_long_file():
    folders = ('dualcl_jax', 'configs', 'experiments', 'tests')
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob('*.py')]
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > FILE_LINES} == {}


def test_no_long_function():
    long = {
        f'{name}.{node.name}'
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    }
    assert long == set()


def texts() -> list[Path]:
    """Files that name paths and modules."""
    found = [REPOSITORY / name for name in ('Makefile', 'pyproject.toml', 'experiments/README.md')]
    found += [path for pattern in ('*.md', 'docs/**/*.md', 'configs/**/*.py') for path in REPOSITORY.glob(pattern)]
    found = [path for path in found if path.parent.name != 'generated']  # copies, with links of their own
    found += [path for folder in ('dualcl_jax', 'experiments') for path in (REPOSITORY / folder).rglob('*.py')]
    return sorted(found)


@cache
def file_names() -> set[str]:
    """The names of all files of the project, without their folders."""
    folders = ('dualcl_jax', 'configs', 'experiments', 'tests')
    return {path.name for folder in folders for path in (REPOSITORY / folder).rglob('*')}


def has_module(name: str) -> bool:
    """Whether python -m can run this module."""
    path = REPOSITORY.joinpath(*name.split('.'))
    return path.with_suffix('.py').is_file() or (path / '__main__.py').is_file()


def has_name(dotted: str) -> bool:
    """Whether a dotted name is a module of the package, or a name that one defines."""
    parts = dotted.split('.')
    if parts[1] == 'configs' and parts[2:]:  # a wheel has the top-level folder there
        path = REPOSITORY.joinpath(*parts[1:3])
        if path.is_dir() or path.with_suffix('.py').is_file():
            return True
    for end in range(len(parts), 0, -1):
        tree = modules().get('.'.join(parts[:end]))
        if tree is not None:
            return end == len(parts) or parts[end] in defined(tree)
    return False


def defined(tree: ast.Module) -> set[str]:
    """The names on the top level of a module, those that it imports among them."""
    found: set[str] = set()
    inside = [part for node in tree.body if isinstance(node, ast.If) for part in node.body]  # TYPE_CHECKING
    for node in [*tree.body, *inside]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split('.')[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return found


def missing(text: str) -> list[str]:
    """The paths, files, commands and dotted names in a text that do not exist."""
    found = [path for path in PATH.findall(text) if not (REPOSITORY / path).exists()]
    found += [file for file in FILE.findall(text) if file not in file_names()]
    found += [command for command in COMMAND.findall(text) if not has_module(command)]
    return found + [dotted for dotted in DOTTED.findall(PATH.sub('', text)) if not has_name(dotted)]


def test_named_paths_exist():
    by_file = {str(path.relative_to(REPOSITORY)): missing(path.read_text()) for path in texts()}
    assert {path: found for path, found in by_file.items() if found} == {}


def test_no_two_test_files_share_a_name():
    """pytest imports them by their names alone."""
    names = [path.name for path in (REPOSITORY / 'tests').rglob('test_*.py')]
    assert sorted(names) == sorted(set(names))
