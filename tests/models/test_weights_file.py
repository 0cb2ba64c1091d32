"""Starting from files of weights: features equal those of PyTorch, and errors name what does not fit."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import default
from dualcl_jax.models.convnext import ConvNeXt
from dualcl_jax.models.encoder import MODELS, Encoder, build_encoder
from dualcl_jax.models.weights_file import Taken, check_name, take
from dualcl_jax.system.errors import UserError
from tests.support.named_weights import images, weights

REFERENCE = np.load(Path(__file__).with_name('torch_features.npz'))
SHAPES = json.loads(str(REFERENCE['shapes']))
FLAG = '--init_from=FILE'


pytestmark = pytest.mark.usefixtures('small_convnext')


def encoder(name: str, **fields: Any) -> Encoder:
    config = default.get_config().model
    config.update(name=name, stem='imagenet', **fields)
    return build_encoder(config)


def template(made: Encoder, size: int, channels: int = 3) -> dict[str, Any]:
    blank = jnp.zeros((1, size, size, channels))
    shapes = jax.eval_shape(lambda key: made.init(key, blank, train=False), jax.random.key(0))
    return {'params': shapes['params'], 'batch_stats': shapes.get('batch_stats', {})}


def taken(path: Path, made: Encoder, size: int, patch: int = 4) -> Taken:
    grid = (size // patch, size // patch)
    learned = made.positions == 'learned'
    return take(str(path), template(made, size), made.model, grid, learned=learned, flag=FLAG)


def written(
    folder: Path, name: str, prefix: str = '', drop: str = 'none', replaced: dict[str, np.ndarray] | None = None
) -> Path:
    tensors = {f'{prefix}{key}': value for key, value in weights(SHAPES[name]).items() if key != drop}
    tensors |= replaced or {}
    path = folder / 'weights.safetensors'
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ('network', 'model', 'size', 'fields', 'reference'),
    [
        ('resnet18 of torchvision', 'resnet18', 32, {}, ''),
        ('resnet50 of timm', 'resnet50', 32, {}, ''),
        ('ViT of timm', 'vit_tiny', 16, {'positions': 'learned'}, ''),
        ('ViT of timm', 'vit_tiny', 24, {'positions': 'learned'}, 'ViT of timm, larger'),
        ('ConvNeXt of timm', 'convnext_t', 48, {}, ''),
    ],
)
def test_features_equal_those_of_pytorch(
    network: str, model: str, size: int, fields: dict[str, Any], reference: str, tmp_path: Path
) -> None:
    prefix = '' if reference else 'module.encoder_q.'
    made = encoder(model, **fields)
    found = taken(written(tmp_path, network, prefix), made, size)
    assert found.skipped == ()
    assert ('interpolated' in found.describe()) == bool(reference)
    variables = {name: tree['backbone'] for name, tree in found.variables.items() if tree}
    features = jax.jit(partial(made.make_backbone().apply, train=False))(variables, images(size))
    expected = REFERENCE[reference or network]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ('network', 'model', 'size', 'fields', 'said'),
    [
        ('resnet18 of torchvision', 'resnet50', 32, {}, ['no tensor layer1.0.', 'resnet50', 'model.name']),
        ('resnet18 of torchvision', 'resnet34', 32, {}, ['no tensor layer1.2', 'resnet34']),
        ('resnet18 of torchvision', 'resnet18', 32, {'width': 32}, ['(64,)', '(32,)', 'width']),
        ('ViT of timm', 'vit_tiny', 16, {}, ['positions are learned', 'model.positions=learned']),
        ('ViT of timm', 'resnet18', 16, {}, ['no tensor', 'resnet18 needs']),
        ('ConvNeXt of timm', 'vit_tiny', 16, {}, ['no tensor', 'vit_tiny needs']),
    ],
)
def test_wrong_architecture(
    network: str, model: str, size: int, fields: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        taken(written(tmp_path, network), encoder(model, **fields), size)
    message = str(error.value)
    assert message.startswith(FLAG)
    assert '\n' not in message
    assert all(word in message for word in said), message


@pytest.mark.parametrize(
    ('network', 'model', 'first'),
    [
        ('resnet18 of torchvision', 'resnet18', 'conv1'),
        ('ViT of timm', 'vit_tiny', 'patch_embed'),
        ('ConvNeXt of timm', 'convnext_t', 'stem_0'),
    ],
)
def test_other_channels_leave_the_first_layer_fresh(network: str, model: str, first: str, tmp_path: Path) -> None:
    made = encoder(model, **({'positions': 'learned'} if model == 'vit_tiny' else {}))
    path, expected = written(tmp_path, network), template(made, 32, channels=5)
    found = take(str(path), expected, model, (8, 8), learned=model == 'vit_tiny', flag=FLAG)
    assert 'is newly initialised: 3 channels in the file and 5 in the images' in found.describe()
    backbone, whole = found.variables['params']['backbone'], expected['params']['backbone']
    assert 'kernel' not in backbone.get(first, {})
    rest = {name for name in whole if name != first}
    assert rest <= backbone.keys()


@pytest.mark.parametrize(
    ('network', 'model', 'first', 'shape', 'said'),
    [
        ('ViT of timm', 'vit_tiny', 'patch_embed.proj.weight', (3, 8, 8), '8×8 pixels, and those of vit_tiny have 4×4'),
        ('ViT of timm', 'vit_tiny', 'patch_embed.proj.weight', (3, 2, 2), '2×2 pixels'),
        ('ViT of timm', 'vit_tiny', 'patch_embed.proj.weight', (3, 8, 2), '8×2 pixels'),
        ('ViT of timm', 'vit_tiny', 'patch_embed.proj.weight', (12, 2, 2), '2×2 pixels'),
        ('ConvNeXt of timm', 'convnext_t', 'stem.0.weight', (3, 2, 2), '2×2 pixels, and those of convnext_t have 4×4'),
        ('resnet18 of torchvision', 'resnet18', 'conv1.weight', (3, 3, 3), 'needs (64, 3, 7, 7)'),
        ('resnet18 of torchvision', 'resnet18', 'conv1.weight', (1, 3, 3), 'needs (64, 3, 7, 7)'),
    ],
)
def test_other_patches_or_kernels(
    network: str, model: str, first: str, shape: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    """They are not taken for other channels, even where the kernel has as many values."""
    tensor = np.zeros((SHAPES[network][first][0], *shape), np.float32)
    made = encoder(model, **({'positions': 'learned'} if model == 'vit_tiny' else {}))
    with pytest.raises(UserError) as error:
        taken(written(tmp_path, network, replaced={first: tensor}), made, 32)
    assert str(error.value).startswith(f'{FLAG}: {first} is')
    assert said in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('rows', 'fresh'), [(16 * 5, True), (16 * 5 + 4, False)])
def test_patches_of_an_export(rows: int, fresh: bool, tmp_path: Path) -> None:
    """The rows of a kernel in our layout are the values of a patch; they must be those of whole channels."""
    made = encoder('vit_tiny')
    whole = flax.traverse_util.flatten_dict(template(made, 32), sep='.')
    tensors = {name: np.zeros(leaf.shape, np.float32) for name, leaf in whole.items()}
    name = 'params.backbone.patch_embed.kernel'
    tensors[name] = np.zeros((rows, whole[name].shape[1]), np.float32)
    np.savez(tmp_path / 'w.npz', **tensors)
    if fresh:
        said = taken(tmp_path / 'w.npz', made, 32).describe()
        assert 'is newly initialised: 5 channels in the file and 3 in the images' in said
    else:
        with pytest.raises(UserError, match=r'patch_embed\.kernel is \(84, '):
            taken(tmp_path / 'w.npz', made, 32)


def test_an_encoder_of_equal_shapes(tmp_path: Path) -> None:
    """The shapes of a ViT do not depend on its heads; an export names its model. One's own network may be renamed."""
    made = encoder('vit_tiny')
    whole = flax.traverse_util.flatten_dict(template(made, 32), sep='.')
    tensors = {name: np.zeros(leaf.shape, np.float32) for name, leaf in whole.items()}
    for name, refused in (('vit_s16_h6', True), ('vit_tiny', False), ('old:Net', False)):
        described = {'architecture': json.dumps({'name': name})}
        safetensors.numpy.save_file(tensors, tmp_path / 'w.safetensors', described)
        if refused:
            with pytest.raises(UserError, match=f'{FLAG}: is a vit_s16_h6, not a vit_tiny; use the model.name of its'):
                taken(tmp_path / 'w.safetensors', made, 32)
        else:
            assert taken(tmp_path / 'w.safetensors', made, 32).source == 'an export of dualcl_jax'
    with pytest.raises(UserError, match='is a vit_s16, not a vit_s16_h6'):
        check_name('vit_s16', 'vit_s16_h6', FLAG)


def test_smaller_network_than_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, 'convnext_t', partial(ConvNeXt, (1, 1, 1, 1), (8, 16, 24, 32)))
    with pytest.raises(UserError, match=r'has stages\.2\.blocks\.1'):
        taken(written(tmp_path, 'ConvNeXt of timm'), encoder('convnext_t'), 48)


def test_without_positions(tmp_path: Path) -> None:
    path = written(tmp_path, 'ViT of timm', drop='pos_embed')
    with pytest.raises(UserError, match='no learned positions'):
        taken(path, encoder('vit_tiny', positions='learned'), 16)
    assert 'pos_embed' not in taken(path, encoder('vit_tiny'), 16).variables['params']['backbone']


@pytest.mark.parametrize(
    ('name', 'content', 'said'),
    [
        ('w.pth', b'', ['pickled weights are not read', 'save_file']),
        ('w.safetensors', b'nothing', ['cannot be read']),
        ('w.npz', b'nothing', ['cannot be read']),
        ('missing.npz', None, ['cannot be read']),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes | None, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        taken(path, encoder('resnet18'), 32)
    assert all(word in str(error.value) for word in said)


def test_unknown_and_ambiguous_names(tmp_path: Path) -> None:
    path = tmp_path / 'w.npz'
    np.savez(path, a=np.zeros(3))
    with pytest.raises(UserError, match='match no known network'):
        taken(path, encoder('resnet18'), 32)
    np.savez(path, **{'encoder_q.conv1.weight': np.zeros(3), 'encoder_k.conv1.weight': np.zeros(3)})
    with pytest.raises(UserError, match=r'several networks, encoder_k\., encoder_q\.'):
        taken(path, encoder('resnet18'), 32)
