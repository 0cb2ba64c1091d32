"""--init_from=FILE: the run starts from the encoder in the file, says what it took, and resumes without it."""

from pathlib import Path

import numpy as np
import pytest

from dualcl_jax import main
from dualcl_jax.models.exports import FORMATS
from dualcl_jax.system.devices import to_host
from dualcl_jax.workdir.export import describe
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.random_run import random_run
from tests.support.runs import Finished, contents, write_npz

SMALL = ('model.name=tiny', 'optimizer.learning_rate=0', 'optimizer.weight_decay=0', 'ema.momentum=1')


@pytest.fixture
def start(in_process, tmp_path: Path):
    def run(file: Path, *fields: str) -> Finished:
        given = [
            'data.name=npz', f'data.path={tmp_path}/data.npz', 'data.image_size=16', 'model.width=4', 'model.dim=8',
            'model.norm=sync', 'queue.size=64', 'train.batch_size=16', 'train.steps=2', 'monitor.every_epochs=0',
            'log.pictures=false', *SMALL, *fields,
        ]  # fmt: skip
        flags = [f'--config.{field}' for field in given]
        return in_process(main.main, '--config=default', f'--workdir={tmp_path}/new', f'--init_from={file}', *flags)

    return run


@pytest.mark.parametrize('projection', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_starts_from_an_export(projection: bool, start, tmp_path: Path) -> None:
    run = random_run(tmp_path, 'model.name=tiny')
    file = tmp_path / 'encoder.safetensors'
    file.write_bytes(FORMATS['safetensors'](*describe(run, encoder='query', projection=projection)))
    done = start(file)
    assert done.status == 0, done
    assert 'tensors loaded (an export of dualcl_jax)' in done.out
    assert ('the projection is newly initialised' in done.out) != projection
    found, before = (to_host(state) for state in (open_saved_run(f'{tmp_path}/new').state, run.state))
    for params in (found.params, found.momentum_params):  # the learning rate is 0
        np.testing.assert_array_equal(
            params['backbone']['conv1']['kernel'], before.params['backbone']['conv1']['kernel']
        )
        same = np.array_equal(params['projection']['fc_0']['kernel'], before.params['projection']['fc_0']['kernel'])
        assert same == projection
    file.unlink()
    assert start(file).status == 0  # a finished run does not read it again


def test_starts_on_images_of_other_channels(start, tmp_path: Path) -> None:
    run = random_run(tmp_path, 'model.name=tiny', channels=1)
    file = tmp_path / 'encoder.safetensors'
    file.write_bytes(FORMATS['safetensors'](*describe(run, encoder='query', projection=False)))
    write_npz(tmp_path / 'data.npz')
    done = start(file)
    assert done.status == 0, done
    said = ' '.join(done.out.split())
    assert 'conv1.kernel is newly initialised: 1 channels in the file and 3 in the images' in said
    found, before = to_host(open_saved_run(f'{tmp_path}/new').state).params, to_host(run.state).params
    assert found['backbone']['conv1']['kernel'].shape[2] == 3
    np.testing.assert_array_equal(found['backbone']['conv2']['kernel'], before['backbone']['conv2']['kernel'])


def test_wrong_files(start, tmp_path: Path) -> None:
    run = random_run(tmp_path, 'model.name=tiny')
    file = tmp_path / 'encoder.safetensors'
    file.write_bytes(FORMATS['safetensors'](*describe(run, encoder='query', projection=False)))
    (tmp_path / 'encoder.torchvision').write_bytes(file.read_bytes())
    before = contents(tmp_path)
    for path, fields, said in (
        (file, ['model.width=8'], 'params.backbone.conv1.kernel is'),
        (file, ['model.name=resnet18'], 'is a tiny, not a resnet18; use the model.name of its run, tiny'),
        (tmp_path / 'weights.pth', [], 'pickled weights are not read'),
        (tmp_path / 'missing.npz', [], 'cannot be read'),
        (tmp_path / 'encoder.torchvision', [], 'must be in a file .safetensors or .npz; add the suffix'),
    ):
        done = start(path, *fields)
        assert (done.status, done.out) == (2, ''), done
        assert done.err.startswith(f'error: --init_from={path}: ')
        assert said in done.err
    assert contents(tmp_path).keys() - before.keys() <= {'new/.lock'}
