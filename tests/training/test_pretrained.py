"""A run that starts from a transformer in a folder of Hugging Face, and stands alone afterwards."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from configs import default, simcse
from dualcl_jax import main
from dualcl_jax.models.huggingface import write_tensors
from dualcl_jax.system.config import to_json
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.huggingface import find_pretrained
from dualcl_jax.workdir.init_from import adopt_geometry
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.runs import REPOSITORY, died_after, summary

MODELS = REPOSITORY / 'tests/data/huggingface'
SENTENCES = ['a cat sleeps', 'the old dog runs', 'two cats and a dog', 'the red sun', 'the moon', 'a dog sleeps']
FIELDS = {
    'data.name': 'text', 'views.preset': 'simcse', 'text.length': 12, 'model.name': 'transformer', 'model.dim': 8,
    'model.projection': 'linear', 'model.norm': 'local', 'queue.size': 16, 'train.batch_size': 4, 'train.steps': 2,
    'optimizer.name': 'adamw', 'optimizer.learning_rate': 0.0, 'log.pictures': False, 'monitor.every_epochs': 0,
    'checkpoint.every_steps': 1, 'checkpoint.keep': 2,
}  # fmt: skip


@pytest.fixture
def run(in_process, tmp_path):
    """Trains on a few sentences from the encoder in a folder."""
    data = tmp_path / 'sentences.txt'
    data.write_text('\n'.join(SENTENCES) + '\n')

    def train(folder, *flags, status=0, workdir=tmp_path / 'run'):
        fields = [f'--config.{name}={value}' for name, value in FIELDS.items()] + [f'--config.data.path={data}']
        done = in_process(
            main.main, '--config=configs/default.py', f'--workdir={workdir}', f'--init_from={folder}', *fields, *flags
        )
        assert done.status == status, done
        return done

    return train


@pytest.mark.parametrize('name', ['bert', pytest.param('roberta', marks=pytest.mark.slow)])
def test_a_run_has_the_encoder_of_the_folder_and_stands_alone(run, tmp_path, name):
    folder, workdir = tmp_path / 'model', tmp_path / 'run'
    shutil.copytree(MODELS / name, folder)
    done = run(folder)
    left = 'pooler.dense.bias, pooler.dense.weight' if name == 'bert' else 'lm_head.bias'
    assert f'starts from       {name} of {folder}: 2 layers of 16, 4 heads' in done.out
    assert f'tensors loaded; left out: {left}' in done.out
    assert 'new: projection' in done.out
    config = json.loads((workdir / 'config.json').read_text())['model']
    assert (config['width'], config['layers'], config['position_offset']) == (16, 2, 0 if name == 'bert' else 2)
    assert config['pooling'] == ('cls' if name == 'bert' else 'mean')
    assert (workdir / 'tokenizer.json').exists()
    second = run(workdir, '--config.model.pooling=mean', '--dry_run', workdir=tmp_path / 'second').out
    assert f'starts from       the encoder of {workdir}: 2 layers of 16, 4 heads' in second
    assert f'width 16, 2 layers, pooling {config["pooling"]}, linear' in second

    stored = safetensors.numpy.load_file(folder / 'model.safetensors')
    shutil.rmtree(folder)
    saved = open_saved_run(str(workdir))  # its learning rate is 0
    encoder = saved.method.encoder
    for params in (saved.state.params, saved.state.momentum_params):
        written = write_tensors(jax.device_get(params['backbone']), encoder.text, encoder.width)
        for key, value in written.items():
            np.testing.assert_allclose(value, stored.get(key, stored.get(f'{name}.{key}')), rtol=1e-6)
    state = summary(workdir)['state_sha256']
    died_after(workdir, 1)
    assert 'resuming from step 1' in run(folder, '--dry_run').out
    if name == 'roberta':  # a whole run takes seconds; of bert, the plan is enough
        run(folder)
        assert summary(workdir)['state_sha256'] == state


def stored_run(folder, **model):
    """The config of a run with a checkpoint, in a folder without its state."""
    config = default.get_config()
    config.model.update(model)
    (folder / 'checkpoints' / '00000001').mkdir(parents=True)
    (folder / 'config.json').write_text(to_json(config))
    return config


def test_the_geometry_of_another_run(tmp_path):
    sizes = {'width': 32, 'layers': 3, 'heads': 2, 'position_offset': 2, 'norm_epsilon': 1e-5, 'pooling': 'cls'}
    stored_run(tmp_path / 'first', name='transformer', dropout=0.2, **sizes)
    config = simcse.get_config('mocose')
    config.init_from, config.model.dropout = str(tmp_path / 'first'), 0.3
    found = adopt_geometry(config, None).model
    assert {name: found[name] for name in sizes} == sizes
    assert (found.dim, found.head_width, found.dropout) == (32, 32, 0.3)
    config.model.dim = 7  # another length than the width is kept
    assert adopt_geometry(config, None).model.dim == 7
    config.model.name = 'bag'  # refused later: it is another network
    assert adopt_geometry(config, None) is config


def test_a_run_that_resumes_keeps_its_geometry(tmp_path):
    """Runs of earlier versions had the sizes of their own config, and `model.dim` did not follow the width."""
    stored_run(tmp_path / 'first', name='transformer', width=32, heads=2, pooling='cls')
    config = simcse.get_config()
    for source, width in ((tmp_path / 'first', 32), (MODELS / 'bert', 16), (tmp_path / 'gone', 8)):
        config.init_from = str(source)
        stored = ConfigDict(config.to_dict())
        stored.model.update(width=width, heads=4, pooling='mean', dim=384)
        found = adopt_geometry(config, stored).model
        assert (found.width, found.heads, found.dim) == (width, 4, 384)


def test_a_dry_run_checks_the_folder(run, tmp_path):
    workdir = tmp_path / 'run'
    assert 'starts from       bert of' in run(MODELS / 'bert', '--dry_run').out
    assert not workdir.exists()
    said = run(MODELS / 'bert', '--config.model.name=bag', '--config.model.width=8', status=2).err
    assert (
        said
        == f'error: --init_from={MODELS / "bert"}: holds a transformer; set --config.model.name=transformer, not bag\n'
    )
    said = run(MODELS / 'bert', '--config.text.length=17', status=2).err
    assert said == 'error: config.text.length=17: must be at most 16, the positions of the model\n'


def change_config(folder, **fields):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | fields))


DAMAGES = {
    'architecture': (lambda folder: change_config(folder, model_type='mpnet'), "model_type is 'mpnet'; only bert"),
    'sizes': (lambda folder: change_config(folder, intermediate_size=12), 'its config.json implies (12, 16)'),
    'no weights': (lambda folder: (folder / 'model.safetensors').unlink(), 'has no model.safetensors; save'),
    'pickle': (
        lambda folder: (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin'),
        'has no model.safetensors, only pytorch_model.bin, which can execute code; save',
    ),
    'cut': (
        lambda folder: (folder / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes()[:999]),
        'model.safetensors: ',
    ),
    'no tokenizer': (lambda folder: (folder / 'tokenizer.json').unlink(), 'has no tokenizer.json; save'),
    'images': (
        lambda folder: change_config(folder, model_type='vit', num_channels=3),
        "holds an encoder of images, and folders in Hugging Face's format are for text; name a file",
    ),
    'no config': (lambda folder: (folder / 'config.json').unlink(), 'model.safetensors without a config.json'),
    'no JSON': (lambda folder: (folder / 'config.json').write_text('{'), 'config.json cannot be read'),
    'pooling': (
        lambda folder: (folder / '1_Pooling/config.json').write_text('{"pooling_mode_max_tokens": true}'),
        "its pooling is 'max_tokens'; only mean, cls",
    ),
    'absent': (shutil.rmtree, 'no such folder, and models are not downloaded; name a workdir, or the local folder'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_folder_that_cannot_be_used_ends_in_one_line(run, tmp_path, damage):
    folder = tmp_path / 'model'
    shutil.copytree(MODELS / 'bert', folder)
    change, said = DAMAGES[damage]
    change(folder)
    done = run(folder, status=2)
    assert done.err.startswith(f'error: --init_from={folder}: ')
    assert said in done.err
    assert done.err.count('\n') == 1


def test_several_poolings_are_refused(tmp_path):
    folder = tmp_path / 'model'
    shutil.copytree(MODELS / 'bert', folder)
    (folder / '1_Pooling/config.json').write_text('{"pooling_mode": ["mean", "cls"]}')
    with pytest.raises(UserError, match=r"its pooling is \['mean', 'cls'\]; only mean, cls"):
        find_pretrained(str(folder))


def test_poolings_of_sentence_transformers(tmp_path):
    folder = tmp_path / 'model'
    shutil.copytree(MODELS / 'bert', folder)
    assert find_pretrained(str(folder)).fields['pooling'] == 'cls'
    (folder / '1_Pooling/config.json').write_text('{"pooling_mode": "mean"}')
    assert find_pretrained(str(folder)).fields['pooling'] == 'mean'
    modules = json.loads((folder / 'modules.json').read_text())
    modules.append({'idx': 3, 'path': '3_Dense', 'type': 'sentence_transformers.models.Dense'})
    (folder / 'modules.json').write_text(json.dumps(modules))
    assert find_pretrained(str(folder)).left_out == ('Dense',)
    (folder / 'modules.json').unlink()
    assert 'pooling' not in find_pretrained(str(folder)).fields
