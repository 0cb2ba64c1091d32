"""Layer decay in fine-tuning follows the order of a network's layers, and learned positions do not decay."""

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from dualcl_jax.evaluators.measures.layer_rates import has_known_blocks, layer_rates
from dualcl_jax.method.optim import build_optimizer, decay_mask
from dualcl_jax.models.encoder import build_encoder


def backbone(name: str, **fields: Any) -> Any:
    """The shapes of a backbone's parameters for images of 32 pixels a side."""
    config = default.get_config().model
    config.update(name=name, **fields)
    backbone = build_encoder(config).make_backbone()
    blank = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda key: backbone.init(key, blank, train=False), jax.random.key(0))['params']


def powers(params: Any) -> dict[str, int]:
    """The power of the decay for each layer, by the layer's name, which all its parameters must share."""
    found: dict[str, set[int]] = {}
    for path, rate in flax.traverse_util.flatten_dict(layer_rates(params, 0.5)).items():
        found.setdefault(path[0], set()).add(round(-np.log2(rate)))
    assert all(len(of) == 1 for of in found.values())
    return {name: next(iter(of)) for name, of in found.items()}


def test_convnext() -> None:
    depths = (3, 3, 9, 3)
    order = [[f'stages_{stage}_blocks_{at}'] for stage, depth in enumerate(depths) for at in range(depth)]
    for stage in (1, 2, 3):
        first = order.index([f'stages_{stage}_blocks_0'])
        order[first] += [f'stages_{stage}_downsample_0', f'stages_{stage}_downsample_1']
    order = [['stem_0', 'stem_1'], *order, ['head_norm']]
    params = backbone('convnext_t')
    assert has_known_blocks(params)
    assert powers(params) == {name: 19 - layer for layer, names in enumerate(order) for name in names}


@pytest.mark.parametrize('positions', ['learned', 'sine_cosine'])
def test_vit(positions: str) -> None:
    first = dict.fromkeys(['patch_embed', 'cls_token'] + (['pos_embed'] if positions == 'learned' else []), 3)
    assert powers(backbone('vit_tiny', positions=positions)) == first | {'blocks_0': 2, 'blocks_1': 1, 'norm': 0}


def test_resnet() -> None:
    blocks = {f'layer{stage + 1}_{at}': 8 - 2 * stage - at for stage in range(4) for at in range(2)}
    assert powers(backbone('resnet18')) == {'conv1': 9, 'bn1': 9} | blocks


def test_unknown_blocks() -> None:
    """Without known blocks, conv1 may be anywhere, as in `Bottleneck_1/conv1`: all rates are equal."""
    params = {'Bottleneck_0': {'conv1': {'kernel': 0}}, 'Bottleneck_1': {'conv1': {'kernel': 0}}, 'conv1': {'bias': 0}}
    assert not has_known_blocks(params)
    assert set(jax.tree.leaves(layer_rates(params, 0.5))) == {1.0}


@pytest.mark.parametrize('everything', [False, True])
def test_learned_positions_decay_only_where_everything_does(everything: bool) -> None:
    params = {'backbone': backbone('vit_tiny', positions='learned')}
    decays = decay_mask(decay_norm_and_bias=everything)(params)['backbone']
    assert decays['pos_embed'] == decays['cls_token'] == decays['norm']['scale'] == everything
    assert decays['blocks_0']['qkv']['kernel']
    params = {'pos_embed': jnp.ones((5, 4)), 'kernel': jnp.ones((5, 4))}
    optimizer = build_optimizer(
        'adamw', lambda step: jnp.float32(0.1), momentum=0.9, weight_decay=0.5, decay_norm_and_bias=everything
    )
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    changed = optax.apply_updates(params, updates)
    np.testing.assert_allclose(changed['kernel'], 0.95)
    np.testing.assert_allclose(changed['pos_embed'], 0.95 if everything else 1.0)
