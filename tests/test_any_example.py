"""A kind of example other than images, added only through the tables: masked vectors, their views and a network."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from dualcl_jax import data, evaluate, export, report
from dualcl_jax.data.source import ArraySource, Splits
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.method.views import VIEWS
from dualcl_jax.models.encoder import MODELS
from dualcl_jax.reports.view_sheet import show_views
from dualcl_jax.system.devices import device_mesh
from dualcl_jax.system.errors import UserError
from dualcl_jax.training.loop import train
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.runs import checkpoints, died_after, records, summary, write_npz

LENGTH, CLASSES = 12, 4
Tree = Any


def load_vectors(config: ConfigDict) -> Splits:
    """Vectors in clusters, each with a mask of the entries that are known."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, LENGTH))

    def part(count: int) -> ArraySource:
        labels = np.arange(count, dtype=np.int32) % CLASSES
        vectors = (centres[labels] + 0.3 * rng.normal(size=(count, LENGTH))).astype(np.float32)
        arrays = {'vector': vectors, 'known': rng.random((count, LENGTH)) < 0.9}
        return ArraySource('vectors', arrays, labels, tuple('abcd'), kind='vectors')

    return Splits(part(128), part(48))


@dataclasses.dataclass(frozen=True)
class VectorViews:
    """A view is the vector with noise, and a mask that hides a quarter of the known entries."""

    length: int
    noise: float

    @property
    def host_recipe(self) -> None:
        return None

    def make(self, keys: jax.Array, examples: Tree) -> Tree:
        def one(view: jax.Array, key: jax.Array, example: Tree) -> Tree:
            noise_key, mask_key = jax.random.split(jax.random.fold_in(key, view))
            noise = self.noise * jax.random.normal(noise_key, (self.length,))
            kept = jax.random.bernoulli(mask_key, 0.75, (self.length,))
            return {'vector': example['vector'] + noise, 'known': example['known'] & kept}

        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))(jnp.arange(2), keys, examples)

    def plain(self, examples: Tree) -> Tree:
        return examples

    def raw(self, examples: Tree) -> jax.Array:
        return jnp.where(examples['known'], examples['vector'], 0.0)

    def blank(self) -> Tree:
        return {'vector': jnp.zeros((1, self.length)), 'known': jnp.ones((1, self.length), bool)}


class Perceptron(nn.Module):
    """Masked vectors to features [N, 2 * width]."""

    norm: Callable[..., nn.Module]
    stem: str
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, examples: Tree, *, train: bool) -> jax.Array:
        x = jnp.where(examples['known'], examples['vector'], 0.0)
        x = jnp.tanh(self.norm(name='bn1')(nn.Dense(self.width)(x), train=train))
        return jnp.tanh(nn.Dense(2 * self.width)(x))


def vector_views(config: ConfigDict, examples: Tree) -> VectorViews:
    return VectorViews(examples['vector'].shape[-1], noise=0.2)


@pytest.fixture(scope='module', autouse=True)
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SOURCES, 'vectors', load_vectors)
        patch.setitem(VIEWS, 'vectors', vector_views)
        patch.setitem(MODELS, 'perceptron', Perceptron)
        yield


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'vectors'
    config.model.name, config.model.width, config.model.dim = 'perceptron', 16, 8
    config.model.projection, config.model.norm = 'linear', 'sync'
    config.queue.size, config.train.batch_size, config.train.steps = 64, 16, 12
    config.log.every_steps, config.checkpoint.every_steps, config.checkpoint.keep = 1, 6, 2
    config.monitor.every_epochs, config.monitor.k = 1, 5
    return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('vectors') / 'run'
    assert train(get_config(), str(folder))
    return folder


def test_a_run_trains_and_is_monitored(workdir):
    found = summary(workdir)
    assert np.isfinite(found['loss'])
    assert found['knn_top1'] > 0.9
    assert found['knn_top1_raw_pixels'] > 0.9
    described = json.loads((workdir / 'data_report.json').read_text())['train']
    assert described['kind'] == 'vectors'
    assert described['example_shape'] == {
        'known': {'shape': [LENGTH], 'dtype': 'bool'},
        'vector': {'shape': [LENGTH], 'dtype': 'float32'},
    }


def test_a_run_resumes_to_the_same_state(workdir, tmp_path):
    assert checkpoints(workdir) == [6, 12]
    assert train(get_config(), str(died_after(workdir, 6, tmp_path / 'run')))
    ours, theirs = summary(tmp_path / 'run'), summary(workdir)
    assert ours['resumed_from_step'] == 6
    assert ours['state_sha256'] == theirs['state_sha256']
    assert records(tmp_path / 'run') == records(workdir)


def test_gradient_accumulation_and_shuffled_keys(tmp_path):
    config = get_config()
    config.train.accumulate_steps, config.loss.shuffle_keys, config.model.norm = 2, True, 'local'
    config.train.steps, config.log.pictures, config.monitor.every_epochs = 3, False, 0
    assert train(config, str(tmp_path / 'run'))
    assert np.isfinite(summary(tmp_path / 'run')['loss'])


def test_a_saved_run_is_embedded(workdir):
    run = open_saved_run(str(workdir))
    assert (run.kind, run.method.views) == ('vectors', VectorViews(LENGTH, 0.2))
    source = load_vectors(run.config).train
    features = Embedder(run.method, device_mesh())(run.state.variables, source, np.array([5, 0, 7]))
    expected = run.method.encoder.apply(run.state.variables, source.examples(np.array([5, 0, 7])), train=False)
    np.testing.assert_allclose(features.backbone, expected.backbone, atol=1e-5)
    np.testing.assert_allclose(features.projection, expected.projection, atol=1e-5)


def test_a_saved_run_is_evaluated(in_process, workdir, tmp_path):
    flags = f'--workdir={workdir}', f'--output={tmp_path}'
    assert in_process(evaluate.main, *flags, '--protocols=knn,structure,few_shot').status == 0
    knn = json.loads((tmp_path / 'knn.json').read_text())['records']
    assert max(record['value'] for record in knn) > 0.9
    structure = json.loads((tmp_path / 'structure.json').read_text())['records']
    assert 0 < next(record['value'] for record in structure if record['metric'] == 'alignment') < 1
    for protocol in ('robustness', 'finetune', 'semi'):
        refused = in_process(evaluate.main, *flags, f'--protocols={protocol}')
        assert refused.status == 2
        assert refused.err == f'error: --protocols: {protocol} is for images, not for vectors; leave it out\n'


def test_an_encoder_takes_only_its_own_kind(in_process, workdir, tmp_path):
    images = f'--config.data.name=npz --config.data.path={write_npz(tmp_path / "data.npz")}'.split()
    refused = in_process(evaluate.main, f'--workdir={workdir}', '--protocols=knn', f'--output={tmp_path}', *images)
    assert refused.status == 2
    assert 'npz: holds images, but the encoder of' in refused.err
    assert 'takes vectors' in refused.err


def test_an_encoder_of_vectors_is_not_exported(in_process, workdir, tmp_path):
    flags = f'--workdir={workdir}', '--format=safetensors', f'--output={tmp_path / "file"}'
    refused = in_process(export.main, *flags)
    assert refused.status == 2
    assert 'its encoder takes vectors; only encoders of images and text are exported' in refused.err


def test_pictures_are_left_out_of_the_report(in_process, workdir, tmp_path):
    assert {path.name for path in (workdir / 'figures').iterdir()} == {'curves.png', 'embedding.png'}
    output = tmp_path / 'report.html'
    assert in_process(report.main, f'--workdir={workdir}', f'--output={output}').status == 0
    for page in (output.read_text(), (workdir / 'report.html').read_text()):
        assert page.count('Examples are vectors, which have no pictures.') == 2
        assert '128 vectors 12, 12, 4 classes' in page
        assert 'held-out vectors' in page
        assert 'Confusion matrix' in page


def test_no_views_of_vectors_are_drawn(tmp_path):
    with pytest.raises(UserError, match=r'--show_views=.*: vectors holds vectors; only views of images can be drawn'):
        show_views(get_config(), str(tmp_path / 'views.png'))
