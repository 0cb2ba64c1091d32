"""Runs on images of five channels with 16 bits or floating point, and what is done with their encoders."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dualcl_jax
from dualcl_jax import embed, evaluate, export, main
from dualcl_jax.models.exports import load
from tests.support.evaluations import printed_records
from tests.support.runs import QUICK, Finished, died_after, summary
from tests.support.stored_images import scene, write_scenes

SMALL = (
    'model.name=tiny', 'train.batch_size=8', 'train.steps=4', 'checkpoint.every_steps=2', 'data.name=folder',
    'data.channels=5', 'data.stored_size=16',
    'parallel.workers=0',
)  # fmt: skip
Command = Callable[..., Finished]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))


def train(in_process: Command, workdir: Path, *fields: str, status: int = 0) -> Finished:
    flags = [field if field.startswith('--') else f'--config.{field}' for field in (*SMALL, *fields)]
    done = in_process(main.main, f'--config={QUICK}', f'--workdir={workdir}', *flags)
    assert done.status == status, done
    return done


@pytest.mark.slow
def test_pages_of_16_bits(in_process: Command, tmp_path: Path) -> None:
    images, run = write_scenes(tmp_path / 'images', '.tif'), tmp_path / 'run'
    fields = (f'data.path={images}', 'views.preset=moco_v2', 'monitor.every_epochs=1', 'monitor.k=5')
    done = train(in_process, run, *fields, 'log.pictures=True')
    said = ' '.join(done.out.split())
    assert 'as stored, 5 channels of uint16' in said
    assert 'saturation, hue, grayscale skipped: they need red, green and blue' in said
    assert 'become 0 to 1; mean 0.' in said
    assert 'pictures show the first three channels, each stretched to its own range' in said
    config = json.loads((run / 'config.json').read_text())['data']
    assert (config['channels'], len(config['mean']), len(config['std'])) == (5, 5, 5)
    values = [scene(seed) for seed in range(24)]
    assert min(map(np.min, values)) <= config['value_range'][0] < 100
    assert 4000 < config['value_range'][1] <= max(map(np.max, values))
    report = json.loads((run / 'data_report.json').read_text())
    assert report['train']['image_shape'] == {'shape': [16, 16, 5], 'dtype': 'uint16'}
    assert report['pixels'] == 'as stored, 5 channels of uint16'
    assert (run / 'report.html').exists()
    assert (run / 'figures' / 'views.png').exists()
    assert summary(run)['knn_top1_raw_pixels'] == 1.0  # the classes differ in their channels

    half = died_after(run, 2, tmp_path / 'half')
    train(in_process, half, *fields)
    assert summary(half)['resumed_from_step'] == 2
    assert summary(half)['state_sha256'] == summary(run)['state_sha256']

    found = printed_records(
        in_process(evaluate.main, f'--workdir={run}', '--protocols=knn,structure', '--config.knn.k=5')
    )
    assert {record['protocol'] for record in found} == {'knn', 'structure'}
    refused = in_process(evaluate.main, f'--workdir={run}', '--protocols=robustness')
    assert refused.status == 2
    assert 'robustness corrupts images of 8 bits with 1 or 3 channels, but these have 5 of uint16' in refused.err

    for kind in ('safetensors', 'stablehlo'):
        file, table = tmp_path / f'encoder.{kind}', tmp_path / f'{kind}.npz'
        done = in_process(export.main, f'--workdir={run}', f'--format={kind}', f'--output={file}')
        assert done.status == 0, done
        done = in_process(embed.main, f'--encoder={file}', f'--data={images}', f'--output={table}', '--near_duplicates')
        assert done.status == 0, done
    tables = [np.load(tmp_path / f'{kind}.npz')['features'] for kind in ('safetensors', 'stablehlo')]
    np.testing.assert_allclose(*tables, atol=1e-5)
    done = in_process(embed.main, f'--workdir={run}', f'--data={images}', f'--output={tmp_path}/run.npz')
    assert done.status == 0, done
    np.testing.assert_allclose(np.load(tmp_path / 'run.npz')['features'], tables[0], atol=1e-5)

    encoder = load(str(file))
    assert encoder.description.value_range == tuple(config['value_range'])
    pixels = np.stack([scene(seed, side=8) for seed in range(3)])
    low, high = config['value_range']
    scaled = np.clip((pixels.astype(np.float32) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(encoder(pixels), encoder.function(scaled), atol=1e-6)
    with pytest.raises(dualcl_jax.UserError, match='uint8: this encoder takes values of'):
        encoder(pixels.astype(np.uint8))
    eight = write_scenes(tmp_path / 'eight', '.npy', 4, dtype='uint8')
    refused = in_process(embed.main, f'--encoder={file}', f'--data={eight}', f'--output={tmp_path}/eight.npz')
    assert refused.status == 2
    assert 'images are uint8, but the encoder of' in refused.err


def test_floats_that_are_not_in_memory(in_process: Command, tmp_path: Path) -> None:
    images, run = write_scenes(tmp_path / 'images', '.npy', dtype='float32'), tmp_path / 'run'
    fields = (f'data.path={images}', 'data.memory_bytes=0', 'data.value_range=-30,10')
    done = train(in_process, run, *fields)
    assert '-30 to 10 become 0 to 1' in ' '.join(done.out.split())
    half = died_after(run, 2, tmp_path / 'half')
    train(in_process, half, *fields)
    assert summary(half)['state_sha256'] == summary(run)['state_sha256']
    file, table = tmp_path / 'encoder.safetensors', tmp_path / 'features.npz'
    done = in_process(export.main, f'--workdir={run}', '--format=safetensors', f'--output={file}')
    assert done.status == 0, done
    done = in_process(embed.main, f'--encoder={file}', f'--data={images}', f'--output={table}')
    assert done.status == 0, done
    encoder, features = load(str(file)), np.load(table)
    assert encoder.description.value_range == (-30, 10)
    assert features['features'].shape == (24, encoder.description.features)

    died_after(half, 2)
    refused = train(in_process, half, *fields[:-1], 'data.value_range=-30,20', status=2)
    assert 'different data.mean' in refused.err
    assert 'data.value_range ((-30.0, 10.0), now (-30.0, 20.0))' in refused.err


def test_mistakes_before_training(in_process: Command, tmp_path: Path) -> None:
    images = write_scenes(tmp_path / 'images', '.npy', 8)
    for fields, words in (
        (('data.channels=-1',), 'config.data.channels=-1: must be between 0 and 1024'),
        (('data.value_range=5,1',), 'config.data.value_range=(5.0, 1.0): must be empty (measured) or two numbers'),
        (('data.channels=4',), 'no image of at least 8 pixels a side'),
        (('data.mean=0.5,0.5', 'data.std=0.2,0.2'), '2 numbers, but the images of folder have 5 channels'),
    ):
        refused = train(in_process, tmp_path / 'run', f'data.path={images}', *fields, status=2)
        assert words in refused.err
        assert len(refused.err.splitlines()) <= 3


@pytest.mark.slow
def test_arrays_from_python(in_process: Command, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr('dualcl_jax.api.session.start', lambda *_, **__: None)
    images = np.stack([scene(seed, 2, 'float64', 16) for seed in range(32)])
    fields = {'model__name': 'tiny', 'steps': 2, 'batch_size': 8, 'data__image_size': 16}
    found = dualcl_jax.train(images, workdir=tmp_path / 'run', config=QUICK, **fields)
    assert found['config']['data']['channels'] == 2
    said = ' '.join(capsys.readouterr().out.split())
    assert 'data.channels=2, the number of channels of the images' in said
    assert 'as stored, 2 channels of float32' in said
