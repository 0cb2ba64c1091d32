"""Files of a folder that cannot be read for a while: the same command may be run again. Other data are a mistake."""

import errno
import os
import shutil

import pytest

from dualcl_jax import data
from dualcl_jax.data.images import scan
from dualcl_jax.data.images.left_out import unread
from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.processes import agreement
from dualcl_jax.training import plan
from dualcl_jax.workdir.folder import write_config, write_data_report
from tests.support import quick_config
from tests.support.image_folders import folder_config, write_classes

pytestmark = pytest.mark.usefixtures('cache')


@pytest.fixture
def broken(monkeypatch):
    """Lets reads of files with some part in their paths fail with an error number."""

    def break_reads(part: str, number: int) -> None:
        def fail(path, *rest):
            if part in str(path):
                raise OSError(number, os.strerror(number), path)
            return open(path, *rest)

        monkeypatch.setattr(scan, 'open', fail, raising=False)

    return break_reads


@pytest.mark.parametrize(
    ('number', 'kind'),
    [(errno.EIO, RestartError), (errno.ESTALE, RestartError), (errno.EMFILE, RestartError), (errno.EACCES, UserError)],
)
def test_a_run_resumes_where_its_folder_is_examined_again(images, cache, tmp_path, monkeypatch, broken, number, kind):
    """The machine has no cache, and a file that the run was trained on cannot be read."""
    write_classes(images, count=20)
    workdir = tmp_path / 'run'
    config = quick_config.get_config()
    config.data.update({'name': 'folder', 'path': str(images), 'test_fraction': 0.0})

    def make() -> plan.Plan:
        shutil.rmtree(cache, ignore_errors=True)
        return plan.make_plan(config, str(workdir), writes=False)

    first = make()
    workdir.mkdir()
    write_config(first.folder, first.config)
    write_data_report(first.folder, first.splits)
    monkeypatch.setattr(plan, 'saved_steps', lambda folder: [2])
    assert make().splits.train.fingerprint == first.splits.train.fingerprint
    broken('ant/7.png', number)
    with pytest.raises(UserError) as caught:
        make()
    assert type(caught.value) is kind
    if kind is RestartError:
        assert str(caught.value) == (
            f'data.path={images}: ant/7.png cannot be read: {os.strerror(number)}\n'
            f'run the same command again, to resume {workdir}'
        )


def test_a_run_that_was_trained_without_the_file(images, cache, tmp_path, monkeypatch, broken):
    """It resumes without it, however long it cannot be read."""
    write_classes(images, count=20)
    broken('ant/7.png', errno.EIO)
    config = quick_config.get_config()
    config.data.update({'name': 'folder', 'path': str(images), 'test_fraction': 0.0})
    first = plan.make_plan(config, str(tmp_path / 'run'), writes=False)
    (tmp_path / 'run').mkdir()
    write_config(first.folder, first.config)
    write_data_report(first.folder, first.splits)
    monkeypatch.setattr(plan, 'saved_steps', lambda folder: [2])
    assert len(plan.make_plan(config, str(tmp_path / 'run'), writes=False).splits.train) == 39


@pytest.mark.parametrize(('number', 'kind'), [(errno.EIO, RestartError), (errno.EACCES, UserError)])
@pytest.mark.parametrize('part', ['ant/', ''])
def test_too_many_files(images, broken, part, number, kind):
    write_classes(images)
    broken(part, number)
    with pytest.raises(UserError, match=rf'ant/0.png.*{os.strerror(number)}') as caught:
        data.load(folder_config(images))
    assert type(caught.value) is kind


@pytest.mark.parametrize(('number', 'kind'), [(errno.EIO, RestartError), (errno.EACCES, UserError)])
def test_processes_with_folders_of_their_own(images, broken, two_processes, number, kind):
    write_classes(images)
    splits = [data.load(folder_config(images, max_skipped=1.0))]
    broken('ant/7.png', number)
    shutil.rmtree(os.environ['XDG_CACHE_HOME'])
    splits.append(data.load(folder_config(images, max_skipped=1.0)))
    raised = []

    def check(index: int) -> None:
        train = splits[index].train
        try:
            agreement.check_same_data('folder', train.fingerprint, unread(train.report))
        except UserError as error:
            raised.append(type(error))
            raise

    said = two_processes(check)
    assert raised == [kind, kind]
    assert all('found different images' in text for text in said)
    if kind is RestartError:
        assert all('(process 1: ant/7.png cannot be read: Input/output error)' in text for text in said)
