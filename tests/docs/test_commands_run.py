"""The commands of README and of the pages for users run, in the order of the pages, on small data with small networks.

A command is run as it is written, with flags behind it that make it short, in a folder that has what it names in
capitals: PHOTOS, FILE and so on.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.test_commands import CASES, is_pattern, python_blocks
from tests.support.runs import REPOSITORY
from tests.support.text_runs import write_pairs
from tests.support.text_sets import write_classification, write_passages, write_sts
from tests.support.tfds_sets import LABEL, image_feature, write_prepared

pytestmark = pytest.mark.slow

PAGES = (
    'README.md',
    'docs/how_to/train.md',
    'docs/how_to/ablate.md',
    'docs/how_to/own_images.md',
    'docs/how_to/embed.md',
    'docs/how_to/evaluate.md',
    'docs/how_to/export.md',
    'docs/python.md',
    'docs/text.md',
    'docs/evaluation.md',
)
TINY = ('train.steps=2', 'train.batch_size=8', 'queue.size=16')
FOLDER = (*TINY, 'model.width=4', 'monitor.every_epochs=0')
SENTENCES = (*TINY, 'model.vocabulary=220', 'optimizer.warmup_epochs=0.0', 'data.path=FILE.tsv', 'data.columns=2,3')
BERT = (*TINY, 'text.length=12', 'model.dim=16')
SIZES = (
    'model.width=16',
    'model.layers=2',
    'model.heads=4',
    'model.mlp_width=24',
    'model.max_positions=16',
    'model.vocabulary=20',
)  # of MODEL, which a run that starts from a run does not take from it
SHORT = {
    '--config=folder': FOLDER,
    '--config=quickstart': (*TINY, 'model.width=4', 'data.limit=64'),
    '--config=cifar10': (*TINY, 'model.width=4', 'checkpoint.keep_best=1'),
    '--config=sentences': SENTENCES,
    '--config=simcse': ('train.batch_size=8', 'text.length=12'),
    '--config=simcse:dualcl_pair': BERT,
    '--config=simcse:crop': (*BERT, *SIZES),
}
"""Fields that make a run with a config short."""
PLACES = {
    'data.data_dir=DIR': 'data.data_dir=PREPARED',
    '--output=DIR': '--output=ABLATION',
    '--workdir=RUN': '--workdir=runs/mine',
}
"""Names that stand for something else on every page."""
LEFT_OUT = {
    'dualcl train --config=imagenet:moco_v3': 'ImageNet',
    'dualcl prepare --dataset=cifar10': 'a download',
    'dualcl compile': 'minutes for a ResNet-50; tests/training/test_ahead_of_time.py compiles small ones',
    'python -m experiments.': 'hours; tests/experiments run them shortened',
    'dualcl train --config=folder --config.data.path=PHOTOS --config.data.image_size=224': 'published weights',
    'dualcl train --config=CONFIG': 'any config',
    'dualcl export --workdir=DIR': 'any run on text; tests/models/exports/test_text_exports.py',
    'dualcl embed --workdir=DIR --data=FILE': 'any run on text; tests/programs/test_text_program.py',
    '--format=onnx': 'an extra; tests/models/exports/test_onnx.py',
}
"""Parts of commands that are not run here, and why."""


def chosen() -> list[str]:
    """The demo, and the commands of the pages, each once, in order."""
    found = ['dualcl train --config=quickstart --workdir=runs/quickstart']
    found += [command for page in PAGES for document, command in CASES if document == page]
    ours = [
        command for command in found if command.startswith(('dualcl ', 'python -m dualcl_jax', 'python -m experiments'))
    ]
    complete = [command for command in ours if not is_pattern(command) and '=' in command]
    return [command for command in dict.fromkeys(complete) if not any(part in command for part in LEFT_OUT)]


def photos(folder: Path, count: int, channels: int = 3) -> None:
    """Random images of two classes, for training and testing: PNG, or .npy of 16 bits with other channels."""
    rng = np.random.default_rng(channels)
    for split, number in {'train': count, 'test': count // 2}.items():
        for name in ('ants', 'bees'):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                path = folder / split / name / str(index)
                if channels == 3:
                    Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(f'{path}.png')
                else:
                    np.save(f'{path}.npy', rng.integers(0, 10_000, (40, 40, channels), np.uint16))


def prepared(root: Path, name: str, classes: tuple[str, ...]) -> None:
    """A TFDS set of 32 pixels with the name of a real one."""
    photos(root / 'files', 32)
    files = sorted((root / 'files').rglob('*.png'))
    rows = {
        split: [
            {'image': path.read_bytes(), 'label': index % 3} for index, path in enumerate(files) if split in path.parts
        ]
        for split in ('train', 'test')
    }
    shutil.rmtree(root / 'files')
    features = {'image': image_feature(40, 40, 3), 'label': LABEL}
    write_prepared(root / name / '3.0.2', name, rows, features, classes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Where the commands run."""
    root = tmp_path_factory.mktemp('user')
    for name in ('PHOTOS', 'FOLDER', 'DIR'):  # the same images: what a page calls runs/mine is one run
        photos(root / name, 24)
    photos(root / 'SCENES', 24, channels=5)
    for name in ('cifar10', 'cifar100'):
        prepared(root / 'PREPARED', name, ('ant', 'bee', 'cat'))
    shutil.copytree(REPOSITORY / 'tests/data/huggingface/bert', root / 'MODEL')
    write_passages(root / 'FILE.tsv', 64)
    write_pairs(root / 'FILE')
    write_sts(root / 'STS')
    write_classification(root / 'SETS')
    (root / 'configs').symlink_to(REPOSITORY / 'configs')
    (network,) = (block for document, block in python_blocks() if document == 'docs/python.md' and 'class Net' in block)
    (root / 'nets.py').write_text(network)
    return root


def test_commands_are_found():
    assert len(chosen()) > 15
    for part in LEFT_OUT:
        assert any(part in command for _, command in CASES), part


def test_the_commands_run(folder):
    environment = os.environ | {
        'PYTHONPATH': f'{REPOSITORY}:{folder}',
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_backend_optimization_level=0',
        'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
    }
    problems = []
    for command in chosen():
        written = command
        for name, place in PLACES.items():
            written = written.replace(name, place)
        words = shlex.split(written, comments=True)
        words[:1] = [sys.executable, '-m', 'dualcl_jax'] if words[0] == 'dualcl' else [sys.executable]
        for config, fields in SHORT.items():
            if config in words and '--show_views' not in written:
                words += [f'--config.{field}' for field in fields if f'--config.{field.split("=")[0]}=' not in written]
        for path in folder.glob('features.*'):  # of another page
            path.unlink()
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            problems.append(f'{command}\n  status {done.returncode}: {done.stderr[-600:]}')
    assert not problems, '\n'.join(problems)
