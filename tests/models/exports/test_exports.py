"""Compares exported encoders of every format with the run's own, and checks the errors for damaged files."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from dualcl_jax import load_encoder
from dualcl_jax.data import load
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.models import exports
from dualcl_jax.models.exports import stablehlo, weights
from dualcl_jax.system.devices import AXIS, to_host
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.export import describe
from tests.support.random_run import STEP, random_run
from tests.support.runs import REPOSITORY

IMAGES = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def device_mesh_of_one() -> Mesh:
    """Rounding in bfloat16 depends on the number of images per device."""
    return Mesh(np.asarray(jax.devices()[:1]), (AXIS,))


def written(folder: Path, run, form: str, *, encoder='query', projection=False) -> str:
    path = folder / f'encoder.{form}'
    path.write_bytes(exports.FORMATS[form](*describe(run, encoder=encoder, projection=projection)))
    return str(path)


SMALL = 'model.name=tiny'
CASES = [
    ('safetensors', 'query', False, (SMALL,)),
    pytest.param('safetensors', 'query', False, (), marks=pytest.mark.slow),
    ('safetensors', 'momentum', True, (SMALL, 'model.projection=mlp2_bn', 'model.predictor=mlp2')),
    ('stablehlo', 'query', True, ('model.stem=imagenet', 'model.remat=True')),
    ('stablehlo', 'momentum', False, (SMALL, 'model.dtype=bfloat16')),
    pytest.param('stablehlo', 'momentum', False, ('model.dtype=bfloat16',), marks=pytest.mark.slow),
    ('stablehlo', 'query', False, ('model.name=vit_tiny',)),
    ('torchvision', 'momentum', True, ('model.projection=mlp3_bn', 'model.stem=imagenet')),
    pytest.param('stablehlo', 'query', True, ('model.name=resnet50',), marks=pytest.mark.slow),
    pytest.param('torchvision', 'query', True, ('model.name=resnet50',), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(('form', 'encoder', 'projection', 'fields'), CASES)
def test_features_are_those_of_the_run(tmp_path, form, encoder, projection, fields):
    """The reference is the run's own evaluation: `Embedder`, on images of the data set."""
    run = random_run(tmp_path, *fields)
    train = load(run.config.data).train
    variables = to_host(run.state.variables if encoder == 'query' else run.state.momentum_variables)
    rows = np.arange(5)
    want = Embedder(run.method, device_mesh_of_one())(variables, train, rows)[projection]
    loaded = load_encoder(written(tmp_path, run, form, encoder=encoder, projection=projection))
    images = train.examples(rows)
    np.testing.assert_allclose(loaded(images), want, atol=1e-5 * max(1, np.abs(want).max()))
    assert want.std(axis=0).max() > 0.01 * np.abs(want).max()  # features must differ, or the comparison is empty
    assert loaded.description.features == want.shape[1]
    assert (loaded.description.encoder, loaded.description.step) == (encoder, STEP)


@pytest.mark.parametrize('form', ['safetensors', 'stablehlo'])
def test_any_number_of_images_of_either_type(tmp_path, form):
    loaded = load_encoder(written(tmp_path, random_run(tmp_path, SMALL), form))
    want = loaded(IMAGES)
    for count in (1, 2, 4):
        np.testing.assert_allclose(loaded(IMAGES[:count]), want[:count], rtol=1e-5, atol=1e-5)
    none = loaded(IMAGES[:0])
    assert (none.shape, none.dtype) == ((0, want.shape[1]), want.dtype)
    np.testing.assert_allclose(loaded(IMAGES / np.float32(255)), want, rtol=1e-5, atol=1e-5)


def test_the_program_runs_without_this_project(tmp_path):
    """`jax.export.deserialize` gives a program for any number of images on four platforms."""
    path = written(tmp_path, random_run(tmp_path, SMALL), 'stablehlo')
    program = jax.export.deserialize(bytearray(Path(path).read_bytes()))
    assert program.platforms == ('cpu', 'cuda', 'rocm', 'tpu')
    assert str(program.in_avals[0]) == 'float32[batch,16,16,3]'
    want = load_encoder(path)(IMAGES)
    np.testing.assert_array_equal(program.call(jnp.asarray(IMAGES, jnp.float32) / 255.0), want)


def test_names_and_layout_are_torchvisions(tmp_path):
    run = random_run(tmp_path, 'model.projection=linear')
    tensors = safetensors.numpy.load(Path(written(tmp_path, run, 'torchvision', projection=True)).read_bytes())
    blocks = [f'layer{stage}.{block}' for stage in (1, 2, 3, 4) for block in (0, 1)]
    convolutions = ['conv1', *(f'{block}.conv{i}' for block in blocks for i in (1, 2))]
    norms = ['bn1', *(f'{block}.bn{i}' for block in blocks for i in (1, 2))]
    convolutions += [f'layer{stage}.0.downsample.0' for stage in (2, 3, 4)]
    norms += [f'layer{stage}.0.downsample.1' for stage in (2, 3, 4)]
    leaves = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    names = {f'{name}.weight' for name in convolutions} | {f'{name}.{leaf}' for name in norms for leaf in leaves}
    assert set(tensors) == names | {'fc.weight', 'fc.bias'}
    assert (tensors['bn1.num_batches_tracked'].shape, tensors['bn1.num_batches_tracked'].dtype) == ((), np.int64)
    params = run.state.params
    kernel = np.asarray(params['backbone']['layer2_0']['conv1']['kernel'])
    assert tensors['layer2.0.conv1.weight'].shape == (8, 4, 3, 3)
    assert tensors['layer2.0.conv1.weight'][5, 3, 0, 2] == kernel[0, 2, 3, 5]
    np.testing.assert_array_equal(tensors['fc.weight'], np.asarray(params['projection']['fc']['kernel']).T)


@pytest.mark.parametrize(
    ('projection', 'modules'),
    [('mlp', {'fc.0', 'fc.2'}), ('mlp2_bn', {'fc.0', 'fc.1', 'fc.3', 'fc.4'})],
)
def test_perceptrons_have_the_names_of_a_sequential(tmp_path, projection, modules):
    """They are Linear, ReLU, Linear; or Linear, BatchNorm1d, ReLU, Linear, BatchNorm1d without scale and bias."""
    run = random_run(tmp_path, f'model.projection={projection}')
    tensors = safetensors.numpy.load(Path(written(tmp_path, run, 'torchvision', projection=True)).read_bytes())
    assert {name.rpartition('.')[0] for name in tensors if name.startswith('fc.')} == modules
    assert 'fc.4.weight' not in tensors


def test_only_the_chosen_output_is_written(tmp_path):
    run = random_run(tmp_path, 'model.predictor=mlp2')
    plain = safetensors.numpy.load(Path(written(tmp_path, run, 'safetensors')).read_bytes())
    assert {name.split('.')[1] for name in plain} == {'backbone'}
    headed = safetensors.numpy.load(Path(written(tmp_path, run, 'safetensors', projection=True)).read_bytes())
    assert {name.split('.')[1] for name in headed} == {'backbone', 'projection'}


def test_no_path_is_in_the_file(whole):
    for content in whole.values():
        assert str(REPOSITORY).encode() not in content


def test_the_description_is_in_the_file(tmp_path):
    run = random_run(tmp_path, SMALL)
    content = Path(written(tmp_path, run, 'safetensors')).read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])['__metadata__']
    assert json.loads(metadata['mean']) == [0.4] * 3
    assert json.loads(metadata['image_size']) == 16
    assert json.loads(metadata['architecture'])['name'] == 'tiny'
    provenance = json.loads(metadata['provenance'])
    assert (provenance['step'], provenance['data_fingerprint']) == (STEP, run.data_fingerprint)
    assert provenance['config']['loss']['temperature'] == run.config.loss.temperature
    assert str(tmp_path) not in content.decode('latin1')  # it contains no path of the machine


@pytest.mark.parametrize('model', [SMALL, 'model.name=vit_tiny'])
def test_gray_images(tmp_path, model):
    run = random_run(tmp_path, model, channels=1)
    loaded = load_encoder(written(tmp_path, run, 'safetensors'))
    assert loaded(IMAGES[..., :1]).shape == (5, loaded.description.features)
    with pytest.raises(UserError, match=r'shape \(5, 16, 16, 3\).*\[N, 16, 16, 1\]'):
        loaded(IMAGES)


@pytest.mark.parametrize('form', ['safetensors', 'stablehlo'])
def test_wrong_images_are_refused(tmp_path, form):
    loaded = load_encoder(written(tmp_path, random_run(tmp_path, SMALL), form))
    for images in (np.zeros((2, 32, 32, 3), np.uint8), IMAGES[0], IMAGES[..., :1]):
        with pytest.raises(UserError, match=r'takes \[N, 16, 16, 3\]'):
            loaded(images)
    with pytest.raises(UserError, match='int32: use uint8'):
        loaded(IMAGES.astype(np.int32))


def test_torchvision_has_no_such_network(tmp_path):
    run = random_run(tmp_path, 'model.name=vit_tiny')
    with pytest.raises(UserError, match='--format=torchvision: torchvision has no vit_tiny; use safetensors'):
        written(tmp_path, run, 'torchvision')


def test_torchvision_has_no_such_projection(tmp_path):
    run = random_run(tmp_path, 'model.projection=tanh')
    with pytest.raises(UserError, match='--format=torchvision: its fc cannot compute the projection tanh; leave --pro'):
        written(tmp_path, run, 'torchvision', projection=True)
    written(tmp_path, run, 'torchvision')


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp('whole')
    run = random_run(folder, SMALL)
    return {form: Path(written(folder, run, form)).read_bytes() for form in ('safetensors', 'stablehlo')}


@pytest.mark.parametrize('form', ['safetensors', 'stablehlo'])
@given(place=st.integers(0, 10**9))
@settings(max_examples=40)
def test_a_truncated_file_is_one_error(tmp_path_factory, whole, form, place):
    path = tmp_path_factory.getbasetemp() / 'cut'
    path.write_bytes(whole[form][: place % len(whole[form])])
    with pytest.raises(UserError, match='cut: not a complete export'):
        load_encoder(str(path))


@pytest.mark.parametrize('form', ['safetensors', 'stablehlo'])
@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
@settings(max_examples=40)
def test_a_flipped_bit_is_one_error(tmp_path_factory, whole, form, place, bit):
    """A flipped bit is detected in weights, program and description, such as the mean."""
    content = bytearray(whole[form])
    content[place % len(content)] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / 'flipped'
    path.write_bytes(content)
    with pytest.raises(UserError, match='flipped: not a complete export'):
        load_encoder(str(path))


@pytest.mark.parametrize('form', ['safetensors', 'stablehlo'])
def test_another_mean_is_refused(tmp_path, whole, form):
    mean = b'[0.4, 0.4, 0.4]'
    assert mean in whole[form]
    (tmp_path / 'other').write_bytes(whole[form].replace(mean, b'[0.5, 0.4, 0.4]'))
    with pytest.raises(UserError, match=r'description .* written'):
        load_encoder(str(tmp_path / 'other'))


def test_other_files_are_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.write_text, (tmp_path / 'sprung', '')

    (tmp_path / 'pickle').write_bytes(pickle.dumps(Trap()))
    foreign = safetensors.numpy.save({'a': np.zeros(3, np.float32)})
    (tmp_path / 'foreign').write_bytes(foreign)
    (tmp_path / 'empty').write_bytes(b'')
    for name in ('pickle', 'foreign', 'empty'):
        with pytest.raises(UserError, match=f'{name}: not a complete export'):
            load_encoder(str(tmp_path / name))
    assert not (tmp_path / 'sprung').exists()
    for name, message in (('missing', 'cannot be read'), ('.', 'no run with a checkpoint')):
        with pytest.raises(UserError, match=message):
            load_encoder(str(tmp_path / name))


@pytest.mark.parametrize(
    ('field', 'value', 'said'),
    [
        ('mean', None, 'mean must be numbers'),
        ('std', [0.0], 'mean and std do not fit'),
        ('mean', [float('nan')], 'mean must be finite'),
        ('value_range', ['a'], 'value_range must be numbers'),
        ('features', 9, 'features does not equal the length of its output'),
        ('image_size', 4 * 10**9, None),  # must not compute positions of so many patches
        ('image_size', 17, 'must be a multiple of 4'),
        ('architecture', {'name': 'vit_tiny'}, 'its architecture cannot be built'),
        ('architecture', [], 'must have fields'),
        ('provenance', {}, 'its provenance has no step'),
    ],
)
def test_an_impossible_description(tmp_path, field, value, said):
    """Someone else may write such a file with a valid checksum."""
    path = Path(written(tmp_path, random_run(tmp_path, 'model.name=vit_tiny'), 'safetensors'))
    length = 8 + int.from_bytes(path.read_bytes()[:8], 'little')
    metadata = json.loads(path.read_bytes()[8:length])['__metadata__'] | {field: json.dumps(value)}
    tensors = safetensors.numpy.load(path.read_bytes())
    del metadata['sha256']
    metadata['sha256'] = weights.digest(tensors, metadata)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    if said is None:
        assert getattr(load_encoder(str(path)).description, field) == value
        return
    with pytest.raises(UserError, match=f'not a complete export of an encoder .*{said}'):
        load_encoder(str(path))


def test_a_program_for_other_images(tmp_path, monkeypatch):
    """The checksum matches the description, but the description does not match the program."""
    monkeypatch.setattr(stablehlo, 'digest', lambda program, metadata: '')
    path = Path(written(tmp_path, random_run(tmp_path, SMALL), 'stablehlo'))
    path.write_bytes(path.read_bytes().replace(b'"image_size": "16"', b'"image_size": "17"'))
    with pytest.raises(UserError, match='its program cannot be used'):
        load_encoder(str(path))


def test_importing_the_package_starts_nothing():
    code = "import sys, dualcl_jax; dualcl_jax.load_encoder; assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'stem', 'projection'),
    [('resnet18', 'cifar', 'mlp'), ('resnet18', 'imagenet', 'linear'), ('resnet50', 'imagenet', 'mlp2_bn')],
)
def test_pytorch_computes_the_same(tmp_path, name, stem, projection):
    torch = pytest.importorskip('torch', reason='PyTorch is not installed: pip install torch torchvision')
    torchvision = pytest.importorskip('torchvision', reason='torchvision is not installed')
    import safetensors.torch
    from torch import nn

    fields = (f'model.name={name}', f'model.stem={stem}', f'model.projection={projection}', 'model.width=64')
    run = random_run(tmp_path, *fields, 'model.dim=32', 'model.head_width=48')
    path = written(tmp_path, run, 'torchvision', projection=True)
    model = getattr(torchvision.models, name)()
    width = model.fc.in_features
    if stem == 'cifar':
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    model.fc = {
        'linear': nn.Linear(width, 32),
        'mlp': nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 32)),
        'mlp2_bn': nn.Sequential(
            nn.Linear(width, 48, bias=False),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.Linear(48, 32, bias=False),
            nn.BatchNorm1d(32, affine=False),
        ),
    }[projection]
    model.load_state_dict(safetensors.torch.load_file(path))
    loaded = load_encoder(path)
    described = loaded.description
    mean, std = (np.asarray(values, np.float32) for values in (described.mean, described.std))
    pixels = torch.from_numpy((IMAGES / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        want = model.eval()(pixels).numpy()
    np.testing.assert_allclose(loaded(IMAGES), want, atol=1e-4 * max(1, np.abs(want).max()))
