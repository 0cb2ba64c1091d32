"""The site and the README: generated pages are complete, links hold, and both render without a warning."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from configs import default
from dualcl_jax.evaluators.settings import default_settings
from dualcl_jax.system.config import flatten
from tests.support.runs import REPOSITORY

DOCS = REPOSITORY / 'docs'
sys.path.insert(0, str(DOCS))
import pages  # noqa: E402

LINK = re.compile(r'\]\(([^)\s]+)\)')


def test_every_config_field_is_documented() -> None:
    found = {field: (value, text) for field, value, text in pages.config_fields(pages.DEFAULTS.read_text())}
    fields = dict(flatten(default.get_config()))
    assert found.keys() == fields.keys()
    assert [field for field, (_, text) in found.items() if not text] == []
    assert found['loss.temperature'] == ('0.1', 'τ > 0')
    assert found['skip_nonfinite'][1].startswith('skip up to this many batches')
    assert found['data.validation_fraction'][1].startswith('A fixed random share of the training images')
    assert found['parallel.save_s'][1] == found['parallel.compile_s'][1] != found['parallel.mapper'][1]
    table = pages.config_page()
    assert all(f'| `{field}` |' in table for field in fields)


def test_every_setting_is_documented() -> None:
    found = {field: (value, text) for field, value, text in pages.config_fields(pages.SETTINGS.read_text())}
    fields = dict(flatten(default_settings()))
    assert found.keys() == fields.keys()
    assert [field for field, (_, text) in found.items() if not text] == []
    assert found['finetune.warmup'] == ('0.1', 'share of the steps')
    table = pages.settings_page()
    assert all(f'| `{field}` |' in table for field in fields)


def test_every_metric_is_documented() -> None:
    text = (DOCS / 'how_to' / 'train.md').read_text()
    sources = [path.read_text() for path in (REPOSITORY / 'dualcl_jax').rglob('*.py')]
    found = {name for source in sources for name in re.findall(r"'((?:train|queue|time|monitor)/\w+)'", source)}
    assert 'queue/age' in found
    assert [name for name in sorted(found - {'train/finite'}) if f'`{name}`' not in text] == []


def test_every_extra_is_documented() -> None:
    text = (DOCS / 'start.md').read_text()
    extras = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']['optional-dependencies']
    assert [extra for extra in extras if f'[{extra}]' not in text] == []


def test_every_program_is_documented() -> None:
    text = pages.commands_page()
    for command in ('train', 'evaluate', 'embed', 'export', 'report', 'prepare', 'compile', 'selftest'):
        assert f'usage: dualcl {command} [-h]' in text, command
    assert '--skip_nonfinite N' in text


def test_links_of_copied_documents(tmp_path: Path) -> None:
    """Links to the site stay, others become text; anchors and addresses are kept."""
    text = (
        '[a](docs/data.md#files) [b](dualcl_jax/step.py) [`c`](experiments/README.md#results) [d](#here) '
        '[e](https://arxiv.org/abs/1) ![f](docs/method.png) [`g` [h]](configs)'
    )
    source, page = REPOSITORY / 'README.md', DOCS / 'generated' / 'copy.md'
    assert pages.with_links(text, source, page) == (
        '[a](../data.md#files) b [`c`](ablations.md#results) [d](#here) [e](https://arxiv.org/abs/1) '
        '![f](../method.png) `g` [h]'
    )


def test_links_of_notebooks() -> None:
    cells = [
        {'cell_type': 'code', 'source': ['[f](../../configs)']},
        {'cell_type': 'markdown', 'source': ['[a](../../experiments/README.md#results)\n', '[b](../data.md)']},
    ]
    found = json.loads(pages.notebook_with_links(json.dumps({'cells': cells}), DOCS / 'notebooks' / 'one.ipynb'))
    assert found['cells'][0] == cells[0]
    assert found['cells'][1]['source'] == '[a](../generated/ablations.md#results)\n[b](../data.md)'


def documents() -> list[Path]:
    patterns = (
        '*.md',
        'docs/**/*.md',
        'docs/notebooks/*.ipynb',
        'experiments/README.md',
        'experiments/results/gpu/README.md',
    )
    return sorted(path for pattern in patterns for path in REPOSITORY.glob(pattern) if path.parent.name != 'generated')


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a document, as GitHub and the site make them."""
    if path.suffix != '.md':
        return set()
    text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('path', documents(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_relative_links(path: Path) -> None:
    text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if '://' in link or link.startswith('mailto:') or link.startswith(('generated/', '../generated/')):
            continue  # generated pages are checked when the site is built
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_table_of_contents() -> None:
    toc = (DOCS / 'index.md').read_text()
    entries = {line.strip() for line in toc.splitlines() if re.fullmatch(r'[\w/*]+', line.strip())}
    found = {str(path.relative_to(DOCS).with_suffix('')) for path in (*DOCS.rglob('*.md'), *DOCS.rglob('*.ipynb'))}
    globbed = {page for page in found if any('*' in entry and Path(page).match(entry) for entry in entries)}
    assert {page for page in found - globbed - entries if not page.startswith('generated/')} == {'index'}


def as_on_an_index() -> str:
    """README.md as the build writes it into the package, where it changes it."""
    text = (REPOSITORY / 'README.md').read_text()
    build = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['tool']['hatch'].get('metadata', {})
    for change in build.get('hooks', {}).get('fancy-pypi-readme', {}).get('substitutions', []):
        replacement = re.sub(r'\\(\d)', r'\\g<\1>', change['replacement'])
        text = re.sub(change['pattern'], replacement, text)
    return text


def test_readme_renders_on_an_index() -> None:
    markdown = pytest.importorskip('readme_renderer.markdown', reason='pip install readme-renderer[md]')
    html = markdown.render(as_on_an_index())
    assert html is not None
    assert html.count('<table>') >= 2
    assert '<pre' in html


@pytest.mark.parametrize('name', ['method', 'accuracy'])
def test_pictures(tmp_path: Path, name: str) -> None:
    """Each is drawn by its script; pixels may differ by fonts."""
    from PIL import Image

    script = importlib.import_module({'method': 'draw_method', 'accuracy': 'draw_results'}[name])
    script.draw(tmp_path / 'drawn.png')
    with Image.open(tmp_path / 'drawn.png') as drawn, Image.open(DOCS / f'{name}.png') as stored:
        assert abs(drawn.width - stored.width) < 40
        assert abs(drawn.height - stored.height) < 40


@pytest.mark.slow
@pytest.mark.parametrize('notebooks', ['off', 'on'])
def test_site_builds(tmp_path: Path, notebooks: str) -> None:
    """Without a warning; with 'on' both notebooks are executed, and an error in one fails the build."""
    pytest.importorskip('myst_nb', reason="pip install -e '.[docs]'")
    flags = (
        '-W',
        '--keep-going',
        '-q',
        '-b',
        'html',
        '-d',
        str(tmp_path / 'doctrees'),
        '-D',
        'nb_execution_cache_path=' + str(tmp_path / 'cache'),
    )
    process = subprocess.run(
        [sys.executable, '-m', 'sphinx', *flags, str(DOCS), str(tmp_path / 'site')],
        env=os.environ | {'NOTEBOOKS': notebooks, 'PYTHONPATH': str(REPOSITORY), 'XLA_FLAGS': ''},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert (tmp_path / 'site' / 'generated' / 'config.html').exists()
