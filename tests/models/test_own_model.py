"""A network of the user's own, model.name=MODULE:CLASS: trained, evaluated, exported, and never imported by data."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import default
from dualcl_jax import embed, export, load_encoder, main
from dualcl_jax.method.validation import validate
from dualcl_jax.models.encoder import find_model
from dualcl_jax.system.command_line import import_own
from dualcl_jax.system.errors import UserError
from tests.support.runs import write_npz

NET = """
import flax.linen as nn


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
    fields += ['log.pictures=false', 'model.dim=8']
    flags = ['--config=default', *(f'--config.{field}' for field in fields)]
    done = in_process(main.main, f'--workdir={tmp_path}/run', *flags)
    assert done.status == 0, done
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
    import_own(nets)
    with pytest.raises(UserError, match=f'{nets}:{network}.*: must be made from norm, stem, .*{said}'):
        find_model(f'{nets}:{network}')


def test_recomputing_needs_a_field(nets: str) -> None:
    import_own(nets)
    config = default.get_config()
    config.model.name, config.model.remat = f'{nets}:WithRemat', True
    validate(config)
    config.model.name = f'{nets}:Net'
    with pytest.raises(UserError, match=f'config.model.remat=True: {nets}:Net has no field remat'):
        validate(config)


def test_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'broken_nets_for_test.py').write_text('raise ValueError("mine")\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if entry])
    with pytest.raises(UserError, match='--import=broken_nets_for_test: ValueError: mine'):
        import_own('broken_nets_for_test')
    import_own(None)
