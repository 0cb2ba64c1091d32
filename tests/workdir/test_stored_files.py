"""Files of earlier versions still open: runs of `tests/support/quick_config.py` with the model `tiny`, and exports.

`tests/data/golden/` holds them, with the features that the version which wrote them gave for eight images: those of
0.1.0, and in `3a120fc.tar.gz` those of that earlier commit, whose run has a checkpoint of its 10th step and the records
of all 20.
"""

import hashlib
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dualcl_jax import evaluate, export, load_encoder, report
from dualcl_jax.data.images.source import image_source
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.system.config import ADDED, accepted_sha256, add_absent_fields, flatten, from_json, method_sha256
from dualcl_jax.system.errors import UserError
from dualcl_jax.workdir.folder import read_summary
from dualcl_jax.workdir.metrics import read_records
from dualcl_jax.workdir.saved_run import open_saved_run
from tests.support.runs import QUICK, REPOSITORY, Finished, Trainer, contents, finish, killed_at_last, write_npz

GOLDEN = REPOSITORY / 'tests/data/golden'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('stored')
    with tarfile.open(GOLDEN / 'run.tar.gz') as archive:
        archive.extractall(folder, filter='data')
    return folder / 'run'


@pytest.fixture(scope='module')
def stored() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / 'embeddings.npz') as arrays:
        return dict(arrays)


def test_a_stored_run_gives_the_features_it_gave(workdir, stored):
    run = open_saved_run(str(workdir))
    assert run.step == 20
    images = stored['images']
    source = image_source('stored', images, np.full(len(images), -1, np.int32), None, '')
    embed = Embedder(run.method, run.mesh)
    for name, variables in (('query', run.state.variables), ('momentum', run.state.momentum_variables)):
        features = embed(variables, source, np.arange(len(images)))
        np.testing.assert_allclose(features.backbone, stored[f'{name}_backbone'], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(features.projection, stored[f'{name}_projection'], rtol=1e-4, atol=1e-5)


def test_its_records_are_read(workdir):
    summary = read_summary(workdir)
    assert summary is not None
    assert summary['step'] == 20
    records = read_records(workdir / 'metrics.jsonl')
    assert [record['step'] for record in records if 'train/loss' in record] == list(range(1, 21))


def is_older_than(version: str) -> bool:
    """Whether the installed jax is older."""
    return tuple(map(int, jax.__version__.split('.')[:3])) < tuple(map(int, version.split('.')[:3]))


WRITER = '0.12.0.1'
"""The jax that wrote the stored programs. An older jax may not know their operations."""
PROGRAM = pytest.param(
    'encoder.stablehlo',
    marks=pytest.mark.skipif(
        is_older_than(WRITER), reason=f'its program is of jax {WRITER}; here is {jax.__version__}'
    ),
)


@pytest.mark.parametrize('file', ['encoder.safetensors', PROGRAM, 'momentum.safetensors'])
def test_a_stored_export_gives_the_features_it_gave(stored, file):
    encoder = load_encoder(str(GOLDEN / file))
    assert encoder.description.step == 20
    np.testing.assert_allclose(encoder(stored['images']), stored[file], rtol=1e-4, atol=1e-5)


def test_a_stored_run_is_evaluated_as_it_was(in_process, workdir, tmp_path):
    before = contents(workdir)
    data = write_npz(tmp_path / 'data.npz')
    flags = (f'--workdir={workdir}', '--protocols=knn', f'--config.data.path={data}', f'--output={tmp_path}')
    done = in_process(evaluate.main, *flags)
    assert done.status == 0, done
    found = {
        (record['layer'], record['k'], record['tau']): record['value']
        for record in json.loads((tmp_path / 'knn.json').read_text())['records']
    }
    expected = {
        (record['layer'], record['k'], record['tau']): record['value']
        for record in json.loads((workdir / 'evaluation/knn.json').read_text())['records']
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=2 / 64), key  # rounding may change a vote
    assert contents(workdir) == before


def train(trainer: Trainer, folder: Path, *fields: str, status: int = 0) -> Finished:
    """Runs the command that made the runs, in the parent of a run."""
    write_npz(folder / 'data.npz')  # the path in their configs
    chosen = ('data.path=data.npz', 'model.name=tiny', 'negatives.selector=top_k', 'checkpoint.every_steps=10', *fields)
    config = str(REPOSITORY / QUICK)
    with killed_at_last(trainer.start(Path('run'), *chosen, config=config, folder=folder)) as process:
        return finish(process, status)


def test_a_stored_run_is_complete(trainer: Trainer, workdir):
    """The command that made the run finds it finished, and changes no stored file."""
    before = contents(workdir)
    done = train(trainer, workdir.parent, 'checkpoint.keep=1')
    assert 'done: 20 steps' in done.out
    after = contents(workdir)
    for name in ('summary.json', 'metrics.jsonl', 'evaluation/knn.json'):
        assert after[name] == before[name]


@pytest.fixture
def earlier(tmp_path) -> Path:
    """The files of commit 3a120fc."""
    with tarfile.open(GOLDEN / '3a120fc.tar.gz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path


def test_a_run_of_an_earlier_commit_resumes(trainer: Trainer, earlier):
    def losses() -> list[float]:
        records = read_records(earlier / 'run/metrics.jsonl')
        return [record['train/loss'] for record in records if 'train/loss' in record]

    before = losses()
    done = train(trainer, earlier, 'log.every_steps=1', 'monitor.every_epochs=1', 'checkpoint.keep=2')
    assert 'resuming from step 10' in done.out
    assert len(before) == 20
    np.testing.assert_allclose(losses(), before, rtol=1e-4)
    assert (earlier / 'run/checkpoints/00000020').is_dir()
    train(trainer, earlier, 'log.every_steps=1', 'monitor.every_epochs=1', 'checkpoint.keep=2')


def test_a_run_of_an_earlier_commit_is_evaluated_exported_and_reported(in_process, monkeypatch, earlier):
    monkeypatch.chdir(earlier)  # where the path in its config leads
    here, data = f'--workdir={earlier}/run', write_npz(earlier / 'data.npz')
    before = contents(earlier / 'run')
    done = in_process(evaluate.main, here, '--protocols=knn', f'--config.data.path={data}', f'--output={earlier}/found')
    assert done.status == 0, done
    for form in ('safetensors', 'stablehlo'):
        assert in_process(export.main, here, f'--format={form}', f'--output={earlier}/new.{form}').status == 0
        assert load_encoder(f'{earlier}/new.{form}').description.step == 10
    assert in_process(report.main, here, f'--output={earlier}/report.html').status == 0
    assert contents(earlier / 'run') == before


@pytest.mark.parametrize('file', ['encoder.safetensors', PROGRAM])
def test_an_export_of_an_earlier_commit_gives_the_features_it_gave(earlier, file):
    with np.load(earlier / 'features.npz') as expected:
        found = load_encoder(str(earlier / file))(expected['images'])
        np.testing.assert_allclose(found, expected[file], rtol=1e-4, atol=1e-5)
    damaged = bytearray((earlier / file).read_bytes())
    damaged[-10 if file.endswith('safetensors') else 1000] ^= 1  # a weight; the description has no checksum
    (earlier / file).write_bytes(damaged)
    with pytest.raises(UserError):
        load_encoder(str(earlier / file))


def test_a_program_of_a_newer_jax_is_one_line(monkeypatch, capfd):
    """As on a machine with the oldest jax, whose compiler does not know all operations."""
    if not is_older_than(WRITER):
        monkeypatch.setattr(jax, '__version__', '0.10.0')

        def fail(exported):
            raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: Failed to deserialize StableHLO')

        monkeypatch.setattr(jax.export.Exported, 'call', property(fail))
    with pytest.raises(UserError, match=f'it needs jax {WRITER} or newer, and jax {jax.__version__} is installed') as e:
        load_encoder(str(GOLDEN / 'encoder.stablehlo'))
    assert len(str(e.value).splitlines()) == 1
    assert capfd.readouterr().err == ''


def without(config: ConfigDict, *fields: str) -> ConfigDict:
    """A copy of a config that lacks some fields."""
    made = from_json(config.to_json_best_effort())
    for field in fields:
        section, _, name = field.rpartition('.')
        del (made[section] if section else made)[name]
    return made


def test_fields_that_are_absent_mean_the_behaviour_of_before(earlier):
    """Every earlier config, from the first one, becomes this version's, with an accepted digest."""
    config = from_json((earlier / 'run/config.json').read_text())
    fields = list(ADDED)
    for count in range(len(fields) + 1):
        of_then = without(config, *fields[count:])
        stored = method_sha256_of_then(of_then)
        add_absent_fields(of_then)
        assert dict(flatten(of_then)) == dict(flatten(config))
        assert stored in accepted_sha256(of_then)
        changed = from_json(of_then.to_json_best_effort())
        changed.loss.temperature = 0.3
        assert stored not in accepted_sha256(changed)
        assert method_sha256(of_then) == method_sha256(config)


def method_sha256_of_then(config: ConfigDict) -> str:
    """What versions without a table of added fields stored in their checkpoints."""
    ignored = ('data.', 'checkpoint.', 'monitor.', 'log.', 'parallel.', 'queue.sharded', 'skip_nonfinite', 'sts.')
    fields = {field: value for field, value in flatten(config) if not field.startswith(ignored)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=list).encode()).hexdigest()


@pytest.mark.parametrize('field', ['model.activation', 'loss.margin'])
def test_fields_of_a_later_version_are_named(trainer: Trainer, in_process, earlier, field):
    path = earlier / 'run/config.json'
    config = json.loads(path.read_text())
    section, _, name = field.partition('.')
    config[section][name] = 'new'
    path.write_text(json.dumps(config))
    done = train(trainer, earlier, 'log.every_steps=1', 'monitor.every_epochs=1', 'checkpoint.keep=2', status=2)
    assert len(done.err.splitlines()) == 1
    assert f'holds a run with {field}, unknown to this version' in done.err
    done = in_process(export.main, f'--workdir={path.parent}', '--format=safetensors', f'--output={earlier}/x')
    assert f'this version does not know {field}' in done.err + done.out
    assert done.status == (2 if section == 'model' else 0)
