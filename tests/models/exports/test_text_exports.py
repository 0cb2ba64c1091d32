"""Exported encoders of sentences compute what the run's encoder computes, here and in sentence-transformers."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from etils import epath

from configs import default
from dualcl_jax import load_encoder
from dualcl_jax.method.build import build_method
from dualcl_jax.method.resolve import resolve
from dualcl_jax.method.state import create_train_state
from dualcl_jax.method.views import VIEWS
from dualcl_jax.models.exports import FORMATS
from dualcl_jax.models.exports.huggingface import special_tokens, write_folder
from dualcl_jax.system.config import from_json, override, to_json
from dualcl_jax.system.devices import device_mesh, replicate
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import check_output_folder, write_output_folder
from dualcl_jax.workdir.export import describe
from dualcl_jax.workdir.huggingface import find_pretrained
from dualcl_jax.workdir.model_card import model_card
from dualcl_jax.workdir.saved_run import SavedRun
from tests.support.runs import REPOSITORY

MODELS = REPOSITORY / 'tests/data/huggingface'
SENTENCES = ['a cat sleeps', '', 'Dogs and two old cats, the sun and the moon and the sun and the moon', 'the red dog.']
LENGTH = 10
ROBERTA = ('model.position_offset=2', 'model.token_types=1')


def text_run(folder, *fields, tokenizer='bert'):
    """A run without checkpoints whose parameters are all random."""
    (folder / 'tokenizer.json').write_bytes((MODELS / tokenizer / 'tokenizer.json').read_bytes())
    (folder / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": 1.5}\n')
    config = default.get_config()
    size = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json')).get_vocab_size()
    small = f'width=8 dim=6 layers=1 heads=2 mlp_width=12 max_positions=16 projection=mlp vocabulary={size}'.split()
    override(config, ['data.name=text', f'text.length={LENGTH}', 'views.preset=simcse', 'queue.size=8'])
    override(config, [*(f'model.{field}' for field in small), 'train.batch_size=8', *fields])
    config = from_json(to_json(resolve(config, platform='cpu', num_devices=1)))
    shapes = {'tokens': np.empty((0, 1, LENGTH), np.int32), 'length': np.empty((0, 1), np.int32)}
    views = VIEWS['text'](config, shapes)
    method = build_method(config, views, total_steps=2, steps_per_epoch=2, num_devices=1)
    state, rng = jax.jit(lambda: create_train_state(method))(), np.random.default_rng(0)
    params = {
        name: jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 2, getattr(state, name))
        for name in ('params', 'momentum_params')
    }
    state = replicate(state.replace(step=np.int32(1), **params), device_mesh())
    return SavedRun(epath.Path(folder), config, 'text', method, device_mesh(), 1, state, 'a' * 64)


def expected(run, sentences, variables, output):
    encoder = tokenizers.Tokenizer.from_file(str(run.folder / 'tokenizer.json'))
    encoder.enable_truncation(LENGTH)
    tokens = np.full((len(sentences), LENGTH), 4, np.int32)
    length = np.zeros(len(sentences), np.int32)
    for row, sentence in enumerate(sentences):
        ids = encoder.encode(sentence).ids
        tokens[row, : len(ids)], length[row] = ids, len(ids)
    batch = {'tokens': tokens, 'length': length}
    encoded = jax.jit(lambda v, b: run.method.encoder.apply(v, b, train=False))(variables, batch)
    return np.asarray(getattr(encoded, output))


def folder_of(run, path, **options):
    """Writes the folder of a run's encoder."""
    description, variables = describe(run, **{'encoder': 'query', 'projection': False, **options})
    files = write_folder(description, variables, model_card(run, description))
    write_output_folder(str(path), files)
    return path


@pytest.mark.parametrize('form', ['safetensors', 'stablehlo'])
@pytest.mark.parametrize('name', ['bag', 'transformer'])
def test_a_loaded_encoder_equals_that_of_the_run(tmp_path, form, name):
    run = text_run(tmp_path, f'model.name={name}')
    path = tmp_path / 'encoder'
    for encoder, projection in (('query', False), ('momentum', True)):
        path.write_bytes(FORMATS[form](*describe(run, encoder=encoder, projection=projection)))
        (tmp_path / 'tokenizer.json').rename(tmp_path / 'away.json')  # the file stands alone
        loaded = load_encoder(str(path))
        (tmp_path / 'away.json').rename(tmp_path / 'tokenizer.json')
        variables = run.state.variables if encoder == 'query' else run.state.momentum_variables
        want = expected(run, SENTENCES, variables, 'projection' if projection else 'backbone')
        np.testing.assert_allclose(loaded(SENTENCES), want, atol=1e-5)
        assert loaded.description.features == want.shape[1]
        np.testing.assert_allclose(loaded(SENTENCES[:1]), want[:1], atol=1e-5)
        assert loaded([]).shape == (0, want.shape[1])
    np.testing.assert_array_equal(loaded(iter(SENTENCES)), loaded(SENTENCES))
    for wrong in ('a cat', ['a cat', 1], 1):
        with pytest.raises(UserError, match='takes a list of sentences'):
            loaded(wrong)
    with pytest.raises(UserError, match=r"^sentences\[1\]: its character 2 is an unpaired surrogate, '.ud83d'"):
        loaded(['a cat', 'a \ud83d cat'])


def test_damaged_files_are_found(tmp_path):
    path = tmp_path / 'encoder'
    content = FORMATS['safetensors'](*describe(text_run(tmp_path, 'model.name=bag'), encoder='query', projection=False))
    path.write_bytes(content.replace(b'sleeps', b'sleepy'))
    with pytest.raises(UserError, match='their description have changed'):
        load_encoder(str(path))


def test_a_run_without_its_tokenizer_is_not_exported(tmp_path):
    run = text_run(tmp_path, 'model.name=bag')
    (tmp_path / 'tokenizer.json').unlink()
    with pytest.raises(UserError, match=r'tokenizer\.json: cannot be read'):
        describe(run, encoder='query', projection=False)


@pytest.mark.parametrize('kind', ['bert', 'roberta'])
def test_a_folder_of_a_transformer_is_one_of_hugging_face(tmp_path, kind):
    fields = ('model.name=transformer', 'model.pooling=cls')
    fields += (*ROBERTA, 'model.projection=tanh') if kind == 'roberta' else ()
    layers = ('2_Dense',) if kind == 'roberta' else ('2_Dense', '3_Dense')
    run = text_run(tmp_path, *fields, tokenizer=kind)
    folder = folder_of(run, tmp_path / 'out', projection=True)
    found = find_pretrained(str(folder))
    assert (found.kind, found.fields['pooling'], found.left_out) == (kind, 'cls', ('Dense',) * len(layers))
    sizes = vars(run.method.encoder.text) | {'width': 8}
    assert found.fields == {name: sizes[name] for name in found.fields}
    params = jax.device_get(run.state.params['backbone'])
    for a, b in zip(jax.tree.leaves(found.load().params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    x = expected(run, SENTENCES, run.state.variables, 'backbone')
    for name in layers:
        layer = safetensors.numpy.load_file(folder / name / 'model.safetensors')
        x = x @ layer['linear.weight'].T + layer['linear.bias']
        activation = json.loads((folder / name / 'config.json').read_text())['activation_function'].rpartition('.')[2]
        x = {'ReLU': lambda x: np.maximum(x, 0), 'Tanh': np.tanh, 'Identity': lambda x: x}[activation](x)
    np.testing.assert_allclose(x, expected(run, SENTENCES, run.state.variables, 'projection'), atol=1e-4)
    about = json.loads((folder / 'tokenizer_config.json').read_text())
    assert about['model_max_length'] == (16 if kind == 'bert' else 14)
    assert about['pad_token'] == ('[PAD]' if kind == 'bert' else '<pad>')
    assert json.loads((folder / 'sentence_bert_config.json').read_text())['max_seq_length'] == LENGTH


def test_a_folder_of_a_bag_computes_the_same_means(tmp_path):
    """As StaticEmbedding does: the mean of the rows of the tokens, without special tokens; 0 for none."""
    run = text_run(tmp_path, 'model.name=bag')
    folder = folder_of(run, tmp_path / 'out') / '0_StaticEmbedding'
    table = safetensors.numpy.load_file(folder / 'model.safetensors')['embedding.weight']
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    rows = [encoding.ids for encoding in tokenizer.encode_batch(SENTENCES, add_special_tokens=False)]
    found = [table[ids].sum(axis=0) / max(len(ids), 1) for ids in rows]
    np.testing.assert_allclose(found, expected(run, SENTENCES, run.state.variables, 'backbone'), atol=1e-6)
    assert max(map(len, rows)) == LENGTH - 2


def test_the_card_says_how_the_encoder_was_trained(tmp_path):
    folder = folder_of(text_run(tmp_path, 'model.name=bag', 'data.path=/secret'), tmp_path / 'out')
    card = (folder / 'README.md').read_text()
    assert card.startswith('---\nlibrary_name: sentence-transformers\n')
    assert '| train/loss | 2.5 (step 1) |' in card  # the checkpoint is of step 1
    assert '| data | SHA-256 aaaa' in card
    assert '1 steps of 8 examples, seed 0' in card
    assert 'secret' not in card


def test_what_sentence_transformers_cannot_express_is_refused(tmp_path):
    run = text_run(tmp_path, 'model.name=transformer', 'model.position_offset=3')
    with pytest.raises(
        UserError, match='counts positions from 0 or, after the padding token 0, from 1, and not from 3'
    ):
        folder_of(run, tmp_path / 'out')
    run = text_run(tmp_path, 'model.name=bag', 'model.projection=mlp2_bn')
    with pytest.raises(UserError, match='has no projection mlp2_bn; leave --projection out'):
        folder_of(run, tmp_path / 'out', projection=True)


def test_special_tokens():
    names = special_tokens(tokenizers.Tokenizer.from_file(str(MODELS / 'roberta' / 'tokenizer.json')))
    assert names == {
        'cls_token': '<s>', 'sep_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>', 'mask_token': '<mask>',
    }  # fmt: skip


def test_an_output_folder_must_be_new(tmp_path):
    (tmp_path / 'new').mkdir()
    check_output_folder(str(tmp_path / 'new'))
    write_output_folder(str(tmp_path / 'new'), {'a/b': b'1'})
    assert (tmp_path / 'new/a/b').read_bytes() == b'1'
    with pytest.raises(UserError, match='is not empty; name a new folder'):
        check_output_folder(str(tmp_path / 'new'))
    with pytest.raises(UserError, match='cannot be written'):
        write_output_folder(str(tmp_path / 'new/a/b/c'), {'d': b'1'})
    assert [path.name for path in tmp_path.iterdir()] == ['new']


@pytest.mark.parametrize('name', ['bag', 'transformer'])
def test_sentence_transformers_computes_the_same(tmp_path, name):
    """Runs where it is installed, in a process of its own because PyTorch and it warn."""
    pytest.importorskip('sentence_transformers', reason='needs sentence-transformers')
    run = text_run(tmp_path, f'model.name={name}')
    folder = folder_of(run, tmp_path / 'out', projection=True)
    np.save(tmp_path / 'expected.npy', expected(run, SENTENCES, run.state.variables, 'projection'))
    code = f"""
import numpy, sentence_transformers
model = sentence_transformers.SentenceTransformer({str(folder)!r}, device='cpu')
found, expected = model.encode({SENTENCES!r}), numpy.load({str(tmp_path / 'expected.npy')!r})
numpy.testing.assert_allclose(found, expected, atol=1e-5)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
