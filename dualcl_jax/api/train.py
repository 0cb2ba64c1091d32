"""`dualcl_jax.train`: a training run from Python."""

import contextlib
import copy
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from dualcl_jax.api import inputs
from dualcl_jax.api.arguments import assignment, path_of
from dualcl_jax.api.session import using_jax
from dualcl_jax.system.config import LIMITS, add_absent_fields, flatten, load_config, override
from dualcl_jax.system.errors import RestartError, UserError
from dualcl_jax.system.user_modules import import_named

_training = threading.Lock()


def train(
    data: inputs.Data | None = None,
    *,
    workdir: str | os.PathLike[str],
    config: str | os.PathLike[str] | ConfigDict = 'folder',
    init_from: str | os.PathLike[str] = '',
    extend: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Trains a new run or resumes the one in `workdir`, as `dualcl train` does, and writes the same files.

    Interrupting the kernel, or Ctrl-C, saves after the current step and raises `RestartError`; the same call resumes.

    Args:
      data: a folder of images, an `.npz` file, images [N, H, W] or [N, H, W, C] of 8 or 16 bits or floating point,
        (images, labels [N]), or a mapping with the arrays of an `.npz` file (train_images, train_labels, test_images,
        test_labels). Arrays are stored in an .npz file in the workdir; `data.channels` is theirs unless they are uint8
        with C 1 or 3. Of labelled images without test images, `data.test_fraction` are held out, as of a folder. With
        a text config: a file or a folder of sentences, a list of sentences, or a list of pairs of them, which is stored
        in a .jsonl file. None: the data that the config names.
      workdir: folder of the run, local or remote.
      config: a name such as 'quickstart' or 'imagenet:moco_v3', the path of a configuration file, or a config.
      init_from: a workdir, a file of weights or, for text, a Hugging Face folder; start from its encoder.
      extend: whether the run in the workdir may become longer.
      **overrides: fields of the config: `epochs=20` where only one field has that last name, or with its section,
        `train__epochs=20` or `**{'train.epochs': 20}`. Several numbers are a sequence or an array.

    Returns:
      The content of `summary.json`.

    Raises:
      UserError: a mistake that the user can fix, with the line that the command would print.
      RestartError: the run was interrupted; the same call resumes it.
    """
    workdir = path_of('workdir', workdir)
    if not isinstance(config, ConfigDict):
        config = load_config(path_of('config', config, 'give the name or path of a config, or a ConfigDict'))
    chosen = ConfigDict(copy.deepcopy(config))
    add_absent_fields(chosen)
    no_limits = dict.fromkeys(LIMITS, 0)  # a hanging run does not end the user's own process
    override(chosen, assignments(chosen, no_limits | overrides))
    if init_from:
        chosen.init_from = path_of('init_from', init_from)
    with _alone(), using_jax(deterministic=chosen.parallel.deterministic):
        import_named(dict(flatten(chosen)))
        from dualcl_jax.method.validation import validate
        from dualcl_jax.training import loop
        from dualcl_jax.workdir.folder import open_workdir, read_summary, unlock

        held_out = inputs.HeldOut(chosen.data.test_fraction, chosen.data.hold_out)
        of_text = chosen.data.get('name') == 'text'
        found = inputs.Input() if data is None else inputs.describe(data, workdir, of_text=of_text, held_out=held_out)
        override(chosen, [f'{field}={value}' for field, value in found.fields.items()])
        if found.channels and not chosen.data.channels:
            override(chosen, [f'data.channels={found.channels}'])
            print(f'data.channels={found.channels}, the number of channels of the images')
        validate(chosen)  # before the data are stored
        try:
            with inputs.stored(found, workdir):
                complete = loop.train(chosen, workdir, extend=extend, ends_process=False)
            summary = read_summary(open_workdir(workdir)) if complete else None
        finally:
            unlock(workdir)
    if summary is None:
        raise RestartError(f'{workdir}: stopped and saved; call train again with the same arguments to resume')
    return summary


def assignments(config: ConfigDict, overrides: Mapping[str, Any]) -> list[str]:
    """The overrides as 'section.field=value', see `train`. Raises UserError if a name is unknown or ambiguous."""
    fields = list(dict(flatten(config)))
    found = []
    for name, value in overrides.items():
        field = name.replace('__', '.')
        if field not in fields and '.' not in field:
            same = [known for known in fields if known.rpartition('.')[2] == field]
            if len(same) > 1:
                named = ', '.join(known.replace('.', '__') for known in same)
                raise UserError(f'{name}: several fields have this name; choose from {named}')
            field = same[0] if same else field
        found.append(assignment(field, value))
    return found


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A context for one thread at a time. Raises UserError if another thread is in it."""
    if not _training.acquire(blocking=False):
        raise UserError('another call of train is running in this process; wait until it ends')
    try:
        yield
    finally:
        _training.release()
