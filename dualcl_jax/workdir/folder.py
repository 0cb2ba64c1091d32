"""The folder of a run: its files, its lock, and whether a config may resume the run in it."""

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from etils import epath
from ml_collections import ConfigDict

from dualcl_jax.data import Source, Splits, example_spec
from dualcl_jax.data.images.source import KIND as IMAGES
from dualcl_jax.data.source import count_classes
from dualcl_jax.data.tree import Tree, describe, parse
from dualcl_jax.system.config import differing_fields, flatten, from_json, to_json
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import check_writable, reachable, write_json, write_text


def open_workdir(path: str, flag: str = '--workdir') -> epath.Path:
    """Opens the folder of a run and creates it if missing.

    Raises:
      UserError: the path is empty, or the folder cannot be created or written. The message names the path as `flag`.
    """
    workdir = _path(path, flag)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_writable(workdir)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f'{flag}={path}: cannot be written ({reason}); choose another folder') from error
    return workdir


def _path(path: str, flag: str = '--workdir') -> epath.Path:
    """The path of a workdir.

    Raises:
      UserError: the path is empty, or remote and cannot be reached.
    """
    if not path:
        raise UserError(f'{flag} is empty: name a folder')
    return reachable(path, f'{flag}={path}')


def lock(workdir: epath.Path) -> None:
    """Locks a folder so that no other process trains in it until this process ends, in whatever way.

    In a run of several processes, one of them locks for all. Remote folders such as gs:// cannot be locked.

    Raises:
      UserError: another process holds the lock.
    """
    if '://' in str(workdir):
        return
    path = os.path.join(os.path.realpath(workdir), '.lock')
    if path in _locks and os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(_locks[path].fileno())):
        return
    file = open(path, 'w')  # noqa: SIM115 - it stays open until the process ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f'--workdir={workdir}: {_holder(path)} trains in it; wait until it ends, stop it, or use another folder'
        ) from None
    except OSError as error:
        print(f'note: {workdir} cannot be locked ({error.strerror}): make sure that nothing else trains in it')
    _locks[path] = file


_locks: dict[str, IO[str]] = {}


def _holder(path: str) -> str:
    """The process that holds a lock, according to Linux's table of locks."""
    with contextlib.suppress(OSError, IndexError):
        for line in Path('/proc/locks').read_text().splitlines():
            fields = line.split()
            if fields[1] == 'FLOCK' and int(fields[5].split(':')[2]) == os.stat(path).st_ino:
                return f'another process ({fields[4]})'
    return 'another process'


def existing_or_new(path: str) -> epath.Path:
    """Opens the folder of a run, which may be missing, without changing anything.

    Raises:
      UserError: the path is empty, or a part of it exists and is not a folder.
    """
    workdir = _path(path)
    for folder in (workdir, *workdir.parents):
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f'--workdir={path}: cannot be written (Not a directory); choose another folder')
            break
    return workdir


def stored_config(workdir: epath.Path) -> ConfigDict | None:
    """Reads the resolved config of the run in a folder; None if there is none.

    Raises:
      UserError: the file holds no valid config.
    """
    stored = workdir / 'config.json'
    if not stored.exists():
        return None
    try:
        return from_json(stored.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{stored}: not a valid config ({error}); start in a new --workdir') from error


def check_same_run(workdir: epath.Path, stored: ConfigDict | None, config: ConfigDict) -> None:
    """Checks that a resolved config is that of the run in the folder, but for operational fields.

    Args:
      workdir: named in the error.
      stored: the config in it (`stored_config`); None where there is no run.
      config: what the folder is to be trained with.

    Raises:
      UserError: the method or the data differ; it names the fields.
    """
    fields = differing_fields(stored, config) if stored is not None else []
    unknown = (
        sorted(dict(flatten(stored)).keys() - dict(flatten(config)).keys()) if fields and stored is not None else []
    )
    if unknown:
        raise UserError(
            f'--workdir={workdir}: holds a run with {", ".join(unknown)}, unknown to this version and config; '
            'use the version that wrote it, or a new --workdir'
        )
    if fields:
        measured = all(field.startswith(('data.mean ', 'data.std ')) for field in fields)
        raise UserError(
            f'--workdir={workdir}: holds a run with a different {", ".join(fields)}\n'
            f'use a new --workdir, or the {"images" if measured else "config"} of that run'
        )


def write_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Stores the resolved config."""
    write_text(workdir / 'config.json', to_json(config))


def write_data_report(workdir: epath.Path, splits: Splits) -> None:
    """Stores which data the run uses: sizes, classes and fingerprints; what was taken for the splits and the classes
    and what was left out; and, for a folder, the outcome for each file that was not used as it is."""

    def report_of(source: Source | None) -> dict[str, Any] | None:
        if source is None:
            return None
        return {
            'name': source.name,
            'kind': source.kind,
            'examples': len(source),
            'image_shape' if source.kind == IMAGES else 'example_shape': describe(example_spec(source)),
            'labelled': int((source.labels >= 0).sum()),
            'class_names': list(source.class_names) if source.class_names else None,
            'fingerprint': source.fingerprint,
        }

    report: dict[str, Any] = {'train': report_of(splits.train), 'test': report_of(splits.test)}
    labels = {name: source.labels for name, source in splits._asdict().items() if source is not None}
    report |= {'splits': _plain_splits(splits), 'labels': None, 'left_out': {}}
    report['classes'] = count_classes(labels, splits.train.class_names)
    about = dict(splits.train.report or {})
    report |= {name: about.pop(name) for name in ('splits', 'labels', 'left_out') if name in about}
    if about:
        report['files'] = about
    write_json(workdir / 'data_report.json', report)


def _plain_splits(splits: Splits) -> dict[str, Any]:
    """The splits of a set that does not say what it took for them."""
    named = {name: source for name, source in splits._asdict().items() if source is not None}
    return {
        name: {'folder': None, 'images': len(source), 'labelled': int((source.labels >= 0).sum())}
        for name, source in named.items()
    } | {'left_out': []}


def read_examples(workdir: epath.Path) -> tuple[str, Tree] | None:
    """Kind, and shapes and dtypes of one example, of the training split that `data_report.json` describes.

    None where there is no such file, or one of an earlier version or damaged.
    """
    try:
        train = json.loads((workdir / 'data_report.json').read_bytes())['train']
        return str(train['kind']), parse(train['image_shape' if train['kind'] == IMAGES else 'example_shape'])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def read_summary(workdir: epath.Path) -> dict[str, Any] | None:
    """Reads `summary.json`; None before the run has ended."""
    path = workdir / 'summary.json'
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        if not {'step', 'loss', 'knn_top1', 'wall_time_s', 'state_sha256'} <= found.keys():
            raise ValueError('fields are missing')
    except (ValueError, RecursionError, AttributeError) as error:
        print(f'note: {path} is damaged ({error}) and will be rewritten')
        return None
    return found
