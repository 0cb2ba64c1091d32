"""The folder of a run: its files, its lock, and whether a config may resume the run in it."""

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from etils import epath
from ml_collections import ConfigDict

from dualcl_jax.data import Source, Splits, example_spec
from dualcl_jax.data.images.left_out import unread
from dualcl_jax.data.source import count_classes, described_split
from dualcl_jax.data.tree import describe, parse
from dualcl_jax.system.config import LENGTH, PATHS, differing_fields, flatten, from_json, to_json
from dualcl_jax.system.errors import RestartError, UserError, reason_of
from dualcl_jax.system.files import absolute, check_writable, reachable, write_json, write_text
from dualcl_jax.system.kinds import IMAGES
from dualcl_jax.system.tree import Tree

UNSTORABLE = re.compile(r'\[[^/]+\]|\\')
"""What Orbax and TensorStore do not take literally in the path of a local folder."""


def open_workdir(path: str) -> epath.Path:
    """Opens the folder of a run and creates it if missing.

    Raises:
      UserError: the path is empty, the folder cannot be created or written, or checkpoints cannot be stored in it.
    """
    check_storable(path)
    return open_folder(path, '--workdir')


def check_storable(path: str) -> None:
    """Raises UserError if Orbax would write checkpoints below a local path that nothing can read.

    It takes [...] for a pattern, finds no file and reports no error; TensorStore takes a backslash for a slash.
    """
    if '://' not in path and (found := UNSTORABLE.search(str(absolute(_path(path))))):
        raise UserError(
            f'--workdir={path}: checkpoints cannot be stored below a folder with {found[0]} in its name; choose another'
        )


def open_folder(path: str, flag: str) -> epath.Path:
    """Opens a folder for files and creates it if missing.

    Raises:
      UserError: the path is empty, or the folder cannot be created or written. The message names the path as `flag`.
    """
    workdir = _path(path, flag)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        check_writable(workdir)
    except OSError as error:
        reason = reason_of(error)
        raise UserError(f'{flag}={path}: cannot be written ({reason}); choose another folder') from error
    return workdir


def _path(path: str, flag: str = '--workdir') -> epath.Path:
    """The path of a workdir.

    Raises:
      UserError: the path is empty, or remote and cannot be reached.
    """
    if not path:
        raise UserError(f'{flag} is empty: name a folder')
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f'{flag}={path}: not UTF-8, as paths of checkpoints must be; choose another folder') from error
    return reachable(path, f'{flag}={path}')


@contextlib.contextmanager
def missing_is_away(workdir: epath.Path) -> Iterator[None]:
    """A context in which a workdir that existed and cannot be found is assumed to be temporarily unavailable.

    Raises:
      RestartError: in place of an `OSError` about a missing file, if the folder is missing.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not workdir.is_dir():
            raise RestartError(
                f'{workdir}: {reason_of(error)}; run the same command when it is back, to resume from a checkpoint'
            ) from error
        raise


def lock(workdir: epath.Path) -> None:
    """Locks a folder so that no other process trains in it until this process ends, however it ends.

    In a run of several processes, one of them locks for all. Remote folders such as gs:// cannot be locked.

    Raises:
      UserError: another process of this machine holds the lock.
      RestartError: a process of another machine does; it may be the last attempt of this run, which is still ending.
    """
    if '://' in str(workdir):
        return
    path = os.path.join(os.path.realpath(workdir), '.lock')
    if path in _locks and os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(_locks[path].fileno())):
        return
    file = open(path, 'w')  # noqa: SIM115 - it stays open until the process ends
    end = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.1)
                continue
            file.close()
            holder = _holder(path)
            raise (UserError if holder else RestartError)(
                f'--workdir={workdir}: another process ({holder or "of another machine"}) trains in it; '
                'wait until it ends, stop it, or use another folder'
            ) from None
        except OSError as error:
            print(
                f'note: {workdir} cannot be locked ({reason_of(error)}): make sure that no other process trains in it'
            )
        break
    _locks[path] = file


def unlock(workdir: str) -> None:
    """Releases the lock of a folder, if this process holds it."""
    file = _locks.pop(os.path.join(os.path.realpath(os.path.expanduser(workdir)), '.lock'), None)
    if file is not None:
        file.close()


LOCK_S = 5.0
"""How long a process that holds the lock has to end: one that was killed may still be ending."""
_locks: dict[str, IO[str]] = {}


def _holder(path: str) -> str:
    """The process of this machine that holds a lock, according to Linux's table of locks; empty if it names none."""
    with contextlib.suppress(OSError, IndexError):
        for line in Path('/proc/locks').read_text().splitlines():
            fields = line.split()
            if fields[1] == 'FLOCK' and int(fields[5].split(':')[2]) == os.stat(path).st_ino:
                return fields[4]
    return ''


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


def check_same_run(workdir: epath.Path, stored: ConfigDict | None, config: ConfigDict, *, extend: bool = False) -> None:
    """Checks that a resolved config is that of the run in the folder, except for operational fields and paths.

    Args:
      workdir: named in the error.
      stored: the config in the workdir (`stored_config`); None if there is no run.
      config: the config to train with.
      extend: whether the length may differ.

    Raises:
      UserError: the method or the data differ; it names the fields.
    """
    fields = {} if stored is None else differing_fields(stored, config)
    if extend:
        fields = {field: values for field, values in fields.items() if field not in LENGTH}
    unknown = [field for field in fields if field not in dict(flatten(config))]
    if unknown:
        raise UserError(
            f'--workdir={workdir}: holds a run with {", ".join(unknown)}, unknown to this version and config; '
            'use the version that wrote it, or a new --workdir'
        )
    if fields:
        remedy = 'use a new --workdir, or the config of that run'
        if fields.keys() <= {'data.mean', 'data.std'}:  # measured
            remedy = f'{location(config)} has other images: use a new --workdir, or the images of that run'
        elif fields.keys() <= set(LENGTH):
            remedy = (
                'add --extend to train that run longer, or use a new --workdir, '
                f'where --init_from={workdir} starts from its encoder'
            )
        named = ', '.join(f'{field} ({values})' for field, values in fields.items())
        raise UserError(f'--workdir={workdir}: holds a run with a different {named}\n{remedy}')


def location(config: ConfigDict) -> str:
    """Names the data of a config by the field that says where they are."""
    fields = dict(flatten(config))
    return next((f'{field}={fields[field]}' for field in PATHS if fields[field]), f'data.name={config.data.name}')


def check_same_images(workdir: epath.Path, config: ConfigDict, trained_on: str, fingerprint: str) -> None:
    """Checks that the data of a config are those that the run in the folder was trained on, by their fingerprints.

    Raises:
      UserError: they differ; it names the data.
    """
    if trained_on != fingerprint:
        raise UserError(
            f'{location(config)}: not the data that {workdir} was trained on\n'
            'restore the data, or start in a new --workdir'
        )


def check_read(workdir: epath.Path, config: ConfigDict, train: Source) -> None:
    """Checks that the data on which the run in the folder was trained do not differ by files left out for a while.

    Raises:
      RestartError: they differ, and a file could not be read for a while.
    """
    file, trained_on = unread(train.report), read_fingerprints(workdir)[0]
    if file and trained_on not in (None, train.fingerprint):
        raise RestartError(f'{location(config)}: {file}\nrun the same command again, to resume {workdir}')


def write_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Stores the resolved config."""
    write_text(workdir / 'config.json', to_json(config))


def write_data_report(workdir: epath.Path, splits: Splits) -> None:
    """Stores which data the run uses.

    The report has sizes, classes and fingerprints, what was used as the splits and the classes, and what was left out.
    For a folder, it also has the outcome for each file that was not used as it is.
    """

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
    report |= {name: about.pop(name) for name in ('splits', 'labels', 'left_out', 'tokens', 'pixels') if name in about}
    if about:
        report['files'] = about
    write_json(workdir / 'data_report.json', report)


def read_fingerprints(workdir: epath.Path) -> tuple[str | None, str | None]:
    """The fingerprints of the training and the test split in `data_report.json`; None for those that it lacks."""
    try:
        report = json.loads((workdir / 'data_report.json').read_bytes())
        train, test = (report[split]['fingerprint'] if report[split] else None for split in ('train', 'test'))
        return train, test
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None, None


def _plain_splits(splits: Splits) -> dict[str, Any]:
    """The splits of a set that does not report what it used as the splits."""
    named = {name: source for name, source in splits._asdict().items() if source is not None}
    return {name: described_split(None, source.labels) for name, source in named.items()} | {'left_out': []}


def read_examples(workdir: epath.Path) -> tuple[str, Tree] | None:
    """Kind, and shapes and dtypes of one example, of the training split that `data_report.json` describes.

    None if there is no such file, or if it is damaged or of an earlier version.
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
