"""Pages of the site that are generated: config fields, commands, and documents that lie outside `docs/`."""

import ast
import contextlib
import importlib
import io
import json
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from dualcl_jax.__main__ import COMMANDS
from dualcl_jax.system.command_line import COMMAND

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = ROOT / 'configs' / 'default.py'
SETTINGS = ROOT / 'dualcl_jax' / 'evaluators' / 'settings.py'

COPIES = {
    'ablations.md': 'experiments/README.md',
    'gpu.md': 'experiments/results/gpu/README.md',
    'changelog.md': 'CHANGELOG.md',
    'contributing.md': 'CONTRIBUTING.md',
}
"""Generated pages that are copies of documents of the repository."""
SHOWN = COPIES | {'config.md': 'configs/default.py', 'settings.md': 'dualcl_jax/evaluators/settings.py'}
"""Generated pages that show a file of the repository: links to the file go to the page."""

LINK = re.compile(r'(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s]+)\)')


def write_all(folder: Path) -> None:
    """Writes all generated pages; a page that has not changed is not touched, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    found = {'config.md': config_page(), 'settings.md': settings_page(), 'commands.md': commands_page()}
    for name, source in COPIES.items():
        found[name] = with_links((ROOT / source).read_text(), ROOT / source, folder / name)
    for name, text in found.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def with_links(text: str, source: Path, page: Path) -> str:
    """Rewrites the links of a document: to pages of the site where they are, else to plain text.

    Args:
      text: Markdown.
      source: the file that its relative links start from.
      page: where the text is shown.
    """
    shown = {(ROOT / path).resolve(): ROOT / 'docs' / 'generated' / name for name, path in SHOWN.items()}

    def rewrite(found: re.Match[str]) -> str:
        image, label, target = found.groups()
        path, hash_mark, anchor = target.partition('#')
        if '://' in target or target.startswith(('#', 'mailto:')):
            return found[0]
        file = (source.parent / path).resolve()
        file = shown.get(file, file)
        on_site = file.suffix in ('.md', '.ipynb', '.png', '.svg') and (ROOT / 'docs') in file.parents
        if not on_site:
            return label
        return f'{image}[{label}]({os.path.relpath(file, page.parent)}{hash_mark}{anchor})'

    return LINK.sub(rewrite, text)


def notebook_with_links(text: str, source: Path) -> str:
    """Rewrites the links in the texts of a notebook as `with_links` does."""
    notebook = json.loads(text)
    for cell in notebook['cells']:
        if cell['cell_type'] == 'markdown':
            cell['source'] = with_links(''.join(cell['source']), source, source)
    return json.dumps(notebook)


def config_fields(source: str) -> Iterator[tuple[str, str, str]]:
    """The fields that the first function of a file sets, in order: name, default, and comments beside and above it.

    A comment above several fields without a comment of their own counts for all of them.
    """
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.removeprefix('#').strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    sections, above = {'config': '', 'settings': ''}, []
    for node in function.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        target = node.targets[0]
        field = sections[ast.unparse(target.value)] + target.attr
        if len(node.targets) == 2:  # config.data = data = ConfigDict()
            sections[ast.unparse(node.targets[1])] = f'{field}.'
            continue
        first = node.lineno
        while lines[first - 2].strip().startswith('#'):
            first -= 1
        found = [comments[line] for line in range(first, (node.end_lineno or first) + 1) if line in comments]
        above = found if first < node.lineno and node.lineno not in comments else above if not found else []
        default = 'unset' if 'placeholder' in ast.unparse(node.value) else ast.unparse(node.value)
        yield field, default, ' '.join(found or above)


def config_page() -> str:
    """The tables of config fields."""
    head = (
        '# Config fields\n\nGenerated from the comments of `configs/default.py`. Set a field with '
        '`--config.FIELD=VALUE`; its type is that of the default.\n'
    )
    return _tables(head, 'The run', DEFAULTS)


def settings_page() -> str:
    """The tables of the settings of the protocols."""
    head = (
        '# Evaluation settings\n\nGenerated from the comments of `dualcl_jax/evaluators/settings.py`. '
        '`dualcl evaluate` takes a setting as `--config.FIELD=VALUE`; its type is that of the default, and tuples are '
        'written as `--config.knn.k=20,200`. A section is named after its protocol. Fields of the data can '
        'also be given ([config fields](config.md#data)).\n'
    )
    return _tables(head, 'All protocols', SETTINGS)


def _tables(head: str, of_all: str, path: Path) -> str:
    """A page with a table for each section of the fields in a file; `of_all` is the heading of those without one."""
    parts, section = [head], None
    for field, default, comment in config_fields(path.read_text()):
        first = field.rpartition('.')[0]
        if first != section:
            section = first
            parts.append(f'\n## {section or of_all}\n\n| field | default | meaning |\n|---|---|---|')
        text = comment.replace('|', '\\|').replace('<-', '←').replace('<', '&lt;')
        parts.append(f'| `{field}` | `{default}` | {text} |')
    return '\n'.join(parts) + '\n'


def commands_page() -> str:
    """The help texts of all commands."""
    parts = [
        '# Commands\n\nGenerated from the parsers of the programs. Each prints this text with `--help`. '
        '`python -m dualcl_jax.main` is `dualcl train`, and every other command has the name of its module.\n'
    ]
    for name, (module, _) in COMMANDS.items():
        parts.append(f'\n## {COMMAND} {name}\n\n```text\n{help_text(name, module)}```\n')
    return ''.join(parts)


def help_text(name: str, module: str) -> str:
    """What a command prints for --help."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, 'argv', [f'{COMMAND} {name}', '--help']),
        mock.patch.dict(os.environ, COLUMNS='82'),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(f'dualcl_jax.{module}').main()
    return printed.getvalue()
