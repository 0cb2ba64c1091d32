"""Encoders of images as folders for transformers, which computes the same features."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from dualcl_jax.data.images import decode
from dualcl_jax.data.images.crops import central_square
from dualcl_jax.models.exports import load
from dualcl_jax.models.exports.huggingface_images import network_of, write_folder
from dualcl_jax.models.exports.weights import write
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.export import describe
from dualcl_jax.workdir.model_card import model_card
from tests.support.random_run import random_run

PYTHON = os.environ.get('TORCH_PYTHON', sys.executable)
"""A Python with torch and transformers; TORCH_PYTHON names that of another environment."""
NETWORKS = {
    'ViT': ('vit_tiny',),
    'ViT with learned positions': ('vit_tiny', 'model.positions=learned'),
    'ConvNeXt': ('convnext_t', 'data.image_size=32'),
    'ResNet of basic blocks': ('resnet18', 'model.stem=imagenet'),
    'ResNet of bottlenecks': ('resnet50', 'model.stem=imagenet'),
}
CODE = """
import sys, numpy, PIL.Image, torch, transformers
folder, kind, features = sys.argv[1:]
options = {'add_pooling_layer': False} if kind == 'ViTModel' else {}
model, about = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
assert not any(about[name] for name in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), about
given = numpy.load(f'{folder}/given.npz')
with torch.no_grad():
    output = model.eval()(pixel_values=torch.from_numpy(given['pixels']))
found, expected = eval(f'output.{features}').numpy(), given['expected']
assert found.shape == expected.shape, (found.shape, expected.shape)
difference = abs(found - expected).max() / abs(expected).max()
assert difference < 1e-4, difference
print(f'{kind} {difference:.1e}')
if 'picture' in given:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = processor([PIL.Image.fromarray(given['picture'])], return_tensors='pt')['pixel_values'].numpy()
    assert found.shape == given['square'].shape, found.shape
    assert abs(found - given['square']).max() < 0.02, abs(found - given['square']).max()
"""


pytestmark = pytest.mark.usefixtures('small_convnext')


def exported(folder: Path, *fields: str, channels: int = 3, projection: bool = False) -> tuple[Any, dict[str, bytes]]:
    """The description of a run's encoder, and the files of its folder, which are written, as is an export of ours."""
    folder.mkdir()
    run = random_run(folder, f'model.name={fields[0]}', *fields[1:], channels=channels)
    description, variables = describe(run, encoder='query', projection=projection)
    files = write_folder(description, variables, model_card(run, description))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / 'ours.safetensors').write_bytes(write(description, variables))
    return description, files


def write_comparison(folder: Path, description: Any, channels: int) -> None:
    """Writes images as transformers takes them, and the features that our export has for them."""
    side = description.image_size
    pixels = np.random.default_rng(0).uniform(size=(3, side, side, channels)).astype(np.float32)
    expected = np.asarray(load(str(folder / 'ours.safetensors'))(pixels))
    standard = np.asarray(description.images.standardize(jnp.asarray(pixels))).transpose(0, 3, 1, 2)
    given = {'pixels': standard, 'expected': expected}
    if channels == 3:
        given['picture'] = np.asarray(picture(3 * side, 6 * side))
        given['square'] = as_read(Image.fromarray(given['picture']), description)
    np.savez(folder / 'given.npz', **given)


def picture(height: int, width: int) -> Image.Image:
    """A picture whose halves and central square differ."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, red / 2 + green / 2], -1).astype(np.uint8))


def as_read(image: Image.Image, description: Any) -> np.ndarray:
    """An image as a folder of files is read for the encoder, float32 [1, C, size, size]."""
    file = io.BytesIO()
    image.save(file, 'png')
    squares = decode.cut(file.getvalue(), central_square, description.image_size)
    return np.asarray(description.images.plain(squares)).transpose(0, 3, 1, 2)


def as_processed(image: Image.Image, fields: dict[str, Any]) -> np.ndarray:
    """An image as transformers prepares it with these fields of a processor."""
    edge, (height, width) = fields['size']['shortest_edge'], (fields['crop_size'][name] for name in ('height', 'width'))
    short = min(image.size)
    small = image.resize([int(edge * side / short) for side in image.size], fields['resample'])
    left, top = (small.width - width) // 2, (small.height - height) // 2
    pixels = np.asarray(small)[top : top + height, left : left + width] * fields['rescale_factor']
    return ((pixels - fields['image_mean']) / fields['image_std']).transpose(2, 0, 1)[None]


@pytest.mark.parametrize('channels', [3, 5])
@pytest.mark.parametrize('name', NETWORKS)
def test_transformers_computes_the_same(name: str, channels: int, tmp_path: Path) -> None:
    if sys.executable == PYTHON:
        for package in ('torch', 'transformers'):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f'needs {package}, here or in the Python that TORCH_PYTHON names')
    description, _ = exported(tmp_path / 'run', *NETWORKS[name], channels=channels)
    write_comparison(tmp_path / 'run', description, channels)
    network = network_of(description)
    done = subprocess.run(
        [PYTHON, '-c', CODE, str(tmp_path / 'run'), network.name, network.features],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def test_files_of_a_folder(tmp_path: Path) -> None:
    method = ('loss.key_weight=0.5', 'loss.key_term=batch', 'loss.hardness=1.0', 'queue.size=0', 'negatives.k=4')
    rates = ('optimizer.learning_rate=0.6', 'optimizer.reference_batch=1', 'ema.schedule=cosine', 'ema.momentum=0.9')
    description, files = exported(tmp_path / 'run', 'vit_tiny', 'data.mean=0.5', 'data.std=0.25', *method, *rates)
    assert set(files) == {'config.json', 'model.safetensors', 'preprocessor_config.json', 'README.md'}
    config, processor = (json.loads(files[name]) for name in ('config.json', 'preprocessor_config.json'))
    assert (config['architectures'], config['num_channels'], config['image_size']) == (['ViTModel'], 3, 16)
    assert processor['do_center_crop']
    for sides in ((48, 96), (96, 48), (64, 64)):
        image = picture(*sides)
        np.testing.assert_allclose(as_processed(image, processor), as_read(image, description), atol=0.02)
    assert len(processor['image_mean']) == len(processor['image_std']) == 3
    tensors = safetensors.numpy.load(files['model.safetensors'])
    assert tensors['embeddings.position_embeddings'].shape == (1, 1 + 16, 64)
    assert tensors['encoder.layer.1.attention.attention.key.weight'].shape == (64, 64)
    card = files['README.md'].decode()
    assert 'ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)' in card
    facts = dict(
        line.strip('| ').split(' | ', 1) for line in card.splitlines() if line.startswith('| ') and line[2:3] != '|'
    )
    assert facts['images'].startswith('16×16×3')
    assert facts['encoder'].startswith('vit_tiny, mlp projection to 8; ')
    assert (
        facts['loss']
        == 'InfoNCE, both view orders, τ 0.1, key term at 0.5 against all other queries of the batch, equally weighted'
    )
    assert facts['negatives'].startswith('threshold 4 of the other keys of the batch, weighted by hardness, β 1')
    assert facts['momentum'] == '0.9 at first, cosine schedule'
    assert facts['optimizer'].startswith('sgd, learning rate 9.6 at its peak, cosine schedule, ')
    assert str(tmp_path) not in card
    assert description.features == config['hidden_size']


def test_a_folder_without_a_processor(tmp_path: Path) -> None:
    _, files = exported(tmp_path / 'run', 'resnet18', 'model.stem=imagenet', channels=5)
    assert set(files) == {'config.json', 'model.safetensors', 'README.md'}
    assert json.loads(files['config.json'])['num_channels'] == 5
    card = files['README.md'].decode()
    assert 'float32 [N, 5, 16, 16]: values of 0 to 255' in card
    assert 'ResNetModel.from_pretrained(FOLDER)' in card
    assert '| encoder | resnet18, width 4, imagenet stem, mlp projection to 8; ' in card


@pytest.mark.parametrize(
    ('fields', 'projection', 'words'),
    [
        (('resnet18',), False, 'transformers has no resnet18 with the stem cifar; use safetensors, torchvision or'),
        (('tiny',), False, 'transformers has no tiny; use safetensors or stablehlo'),
        (('vit_tiny',), True, 'models of transformers have no projection; leave --projection out'),
    ],
)
def test_what_transformers_has_not(fields: tuple[str, ...], projection: bool, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        exported(tmp_path / 'run', *fields, projection=projection)
    assert str(error.value).startswith('--format=huggingface: ')
    assert words in str(error.value)
