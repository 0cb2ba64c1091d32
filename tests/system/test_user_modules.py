"""A network and a selector of the user's own: trained, exported, embedded, and never imported by a stored run.

model.name=MODULE:CLASS and negatives.selector=MODULE:FUNCTION.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from configs import default
from dualcl_jax import embed, export, load_encoder, main
from dualcl_jax.method.negatives.selectors import build_selector, find_selector
from dualcl_jax.method.validation import validate
from dualcl_jax.models.encoder import find_model
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.user_modules import import_own, own_modules
from tests.support.runs import REPOSITORY, write_npz

NET = """
import flax.linen as nn

from dualcl_jax.contrastive import Selection, SelectorSpec, select_threshold, select_top_k


class Net(nn.Module):
    norm: object
    stem: str
    width: int
    dtype: object

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.width, (3, 3), 2, name='conv1')(images)
        return nn.relu(self.norm(name='bn1')(x, train=train)).mean(axis=(1, 2))


class WithRemat(Net):
    remat: bool = False


class WithDepth(Net):
    depth: int


class WithoutStem(nn.Module):
    norm: object
    width: int
    dtype: object

    @nn.compact
    def __call__(self, images, *, train):
        return images.mean(axis=(1, 2))


class WithoutTrain(Net):
    def __call__(self, images):
        return images.mean(axis=(1, 2))


def function():
    pass


def pick(similarities, k, rngs=None):
    return select_top_k(similarities, k, rngs)


def without_keys(similarities, k):
    return select_top_k(similarities, k)


def a_mask(similarities, k, rngs=None):
    return similarities > 0.5


def transposed(similarities, k, rngs=None):
    return Selection(similarities.T, None)


def of_one_anchor(similarities, k, rngs=None):
    return Selection(*(part[:1] for part in select_top_k(similarities, k)))


def of_integers(similarities, k, rngs=None):
    return Selection(similarities.astype('int32'), None)


def of_one_row(similarities, k, rngs=None):
    return Selection(similarities[0], similarities[0].astype('int32'))


def of_nothing(similarities, k, rngs=None):
    return Selection(None, None)


def of_pairs(similarities, k, rngs=None):
    return Selection((similarities, similarities), None)


def with_margin(similarities, k, rngs=None, *, margin):
    return select_top_k(similarities - margin, k)


of_unknown_fields = SelectorSpec(with_margin, fields=('margin',))
anywhere = SelectorSpec(pick, sharded=select_threshold, counted=True)
on_one_device = SelectorSpec(pick, sharded=pick)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in a folder on Python's path."""
    (tmp_path / 'own_nets_for_test.py').write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    yield 'own_nets_for_test'
    sys.modules.pop('own_nets_for_test', None)


def test_run_export_and_embed(nets: str, in_process, tmp_path: Path) -> None:
    data = write_npz(tmp_path / 'data.npz')
    fields = [f'data.path={data}', f'model.name={nets}:Net', 'model.norm=sync', 'train.steps=2', 'data.image_size=8']
    fields += ['data.name=npz', 'train.batch_size=16', 'model.width=8', 'queue.size=32', 'monitor.every_epochs=0']
    fields += ['log.pictures=false', 'model.dim=8', f'negatives.selector={nets}:pick']
    flags = ['--config=default', *(f'--config.{field}' for field in fields)]
    done = in_process(main.main, f'--workdir={tmp_path}/run', *flags)
    assert done.status == 0, done
    assert done.out.count(f'dualcl embed --workdir={tmp_path}/run --import={nets} --output') == 1
    done = in_process(main.main, f'--workdir={tmp_path}/run', *flags, '--config.negatives.selector=top_k')
    assert done.status == 2
    assert f"negatives.selector ('{nets}:pick', now 'top_k')" in done.err
    output = tmp_path / 'e.safetensors'
    assert (
        in_process(export.main, f'--workdir={tmp_path}/run', '--format=safetensors', f'--output={output}').status == 0
    )
    sys.modules.pop(nets)
    with pytest.raises(UserError, match=f'{nets} is not imported'):
        load_encoder(str(output))
    source = [f'--workdir={tmp_path}/run', f'--output={tmp_path}/f.npz']
    done = in_process(embed.main, *source)
    assert done.status == 2
    assert f'--import={nets}' in done.err
    assert nets not in sys.modules
    assert in_process(embed.main, *source, f'--import={nets}').status == 0
    assert load_encoder(str(output)).description.features == 8


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('nets_that_are_missing:Net', 'is not imported; add --import=nets_that_are_missing'),
        ('sys:exit', 'sys has no Flax module exit'),
        ('os:nothing', 'os has no Flax module nothing'),
        ('resnet19', 'choose one of resnet18'),
    ],
)
def test_no_such_model(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_model(name)


@pytest.mark.parametrize(
    ('network', 'said'),
    [('WithDepth', "argument: 'depth'"), ('WithoutStem', "argument 'stem'"), ('WithoutTrain', "argument 'train'")],
)
def test_a_network_that_is_made_otherwise(nets: str, network: str, said: str) -> None:
    import_own([nets])
    with pytest.raises(UserError, match=f'{nets}:{network}.*: must be made from norm, stem, .*{said}'):
        find_model(f'{nets}:{network}')


def test_recomputing_needs_a_field(nets: str) -> None:
    import_own([nets])
    config = default.get_config()
    config.model.name, config.model.remat = f'{nets}:WithRemat', True
    validate(config)
    config.model.name = f'{nets}:Net'
    with pytest.raises(UserError, match=f'config.model.remat=True: {nets}:Net has no field remat'):
        validate(config)


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('picks_that_are_missing:pick', 'is not imported; add --import=picks_that_are_missing'),
        ('sys:path', 'sys has no selector path'),
        ('hardest', 'choose one of all, top_k, .*, or MODULE:FUNCTION of your own'),
    ],
)
def test_no_such_selector(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_selector(name)


@pytest.mark.parametrize(
    ('name', 'said'), [('without_keys', 'too many positional'), ('on_one_device', "argument 'axis_name'")]
)
def test_a_selector_that_is_called_otherwise(nets: str, name: str, said: str) -> None:
    import_own([nets])
    with pytest.raises(UserError, match=f'{nets}:{name}.*: must be called with similarities, k and rngs .*{said}'):
        find_selector(f'{nets}:{name}')


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('own_nets_for_test:a_mask', 'must return a Selection, not an array'),
        (
            'own_nets_for_test:transposed',
            r'similarities float32 \[4, 2\] and slots None; must be float32 \[2, K',
        ),
        ('own_nets_for_test:of_one_anchor', r'returns similarities float32 \[1, 1\] and slots int32 \[1, 1\]; must be'),
        ('own_nets_for_test:of_integers', r'returns similarities int32 \[2, 4\] and slots None; must be'),
        ('own_nets_for_test:of_one_row', r'returns similarities float32 \[4\] and slots int32 \[4\]; must be'),
        ('own_nets_for_test:of_nothing', 'returns similarities None and slots None; must be'),
        ('own_nets_for_test:of_pairs', 'returns similarities tuple and slots None; must be'),
        ('own_nets_for_test:of_unknown_fields', 'its SelectorSpec names unknown fields: margin'),
        ('numpy:argmax', 'NotImplementedError'),
        ('builtins:max', 'must be called with similarities, k and rngs'),
    ],
)
def test_a_selector_that_does_something_else(nets: str, name: str, said: str) -> None:
    import_own([nets])
    with pytest.raises(UserError, match=f'negatives.selector={name!r}: .*{said}'):
        build_selector(name, default.get_config().negatives)


def test_a_stored_run_does_not_need_its_selector() -> None:
    """Only a call of the selector does."""
    select = build_selector('picks_that_are_missing:pick', {})
    with pytest.raises(UserError, match='add --import=picks_that_are_missing'):
        select(jnp.zeros((2, 4)), 1)


def test_what_a_selector_can_do(nets: str) -> None:
    """A function has a constant k and a whole queue; a `SelectorSpec` may allow more."""
    import_own([nets])
    config = default.get_config()
    config.queue.sharded, config.negatives.schedule = True, 'linear'
    config.negatives.selector = f'{nets}:anywhere'
    validate(config)
    config.negatives.selector = f'{nets}:pick'
    with pytest.raises(UserError, match=r'needs a negatives\.selector that takes a count: threshold, ring, random'):
        validate(config)
    config.negatives.schedule = 'constant'
    with pytest.raises(UserError, match='cannot select from a sharded queue; choose one of all, top_k, threshold, ri'):
        validate(config)
    config.queue.sharded = False
    validate(config)


def test_a_selector_of_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example in docs/python.md selects the hardest below 0.9, wherever the queue is."""
    (block,) = re.findall(
        r'```python\n([^`]*\ndef below.*?)```', (REPOSITORY / 'docs/python.md').read_text(), re.DOTALL
    )
    (tmp_path / 'picks_of_a_document.py').write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    import_own(own_modules({'negatives.selector': 'picks_of_a_document:below'}))
    similarities = jnp.array([[0.95, 0.5, -jnp.inf, 0.1, 0.8]])
    for name in ('below', 'below_anywhere'):
        found = build_selector(f'picks_of_a_document:{name}', {})(similarities, 2)
        assert found.chosen.tolist() == [[False, True, False, False, True]]
    assert find_selector('picks_of_a_document:below_anywhere').counted
    del sys.modules['picks_of_a_document']


def test_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'broken_nets_for_test.py').write_text('raise ValueError("mine")\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if entry])
    with pytest.raises(UserError, match='--import=broken_nets_for_test: ValueError: mine'):
        import_own(['broken_nets_for_test'])
