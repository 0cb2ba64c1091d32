"""The site: `make docs` builds it and treats warnings as errors."""

import os
import sys
import tomllib
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'docs')]

import pages  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

project = 'dualcl_jax'
author = 'the authors of dualcl_jax'
copyright = author
release = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project'].get('version', '')

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.mathjax']
exclude_patterns = ['_build']
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb'}
nb_execution_mode = 'off' if os.environ.get('NOTEBOOKS') == 'off' else 'cache'
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = 'sphinx_book_theme'
html_title = 'dualcl_jax'
html_static_path = ['_static']
html_css_files = ['site.css']
html_theme_options = {
    'show_toc_level': 2,
    'show_navbar_depth': 1,
    'use_download_button': False,
    'navbar_persistent': [],
}


def setup(app: Sphinx) -> None:
    """Writes the generated pages, and rewrites links to files that the site does not have."""
    pages.write_all(Path(app.srcdir) / 'generated')
    app.connect('autodoc-skip-member', lambda app, what, name, value, skip, options: skip or _is_field(value))
    app.connect('source-read', lambda app, name, source: _rewrite(Path(app.env.doc2path(name)), source))


def _is_field(value: object) -> bool:
    """Whether a member is a field of a NamedTuple, which the docstring of its class describes."""
    return type(value).__name__ == '_tuplegetter'


def _rewrite(path: Path, source: list[str]) -> None:
    if path.suffix == '.ipynb':
        source[0] = pages.notebook_with_links(source[0], path)
    elif path.parent.name != 'generated':
        source[0] = pages.with_links(source[0], path, path)
