"""A run with checkpoints, opened for reading: its config, its method and one of its states."""

import dataclasses
import json
import math
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dualcl_jax.data.tree import ArraySpec, batch_of, empty
from dualcl_jax.method.build import Method, build_method
from dualcl_jax.method.state import TrainState, create_train_state
from dualcl_jax.method.validation import unknown_fields
from dualcl_jax.method.views import VIEWS
from dualcl_jax.models.encoder import TEXT_MODELS, channels_of
from dualcl_jax.system.config import from_json
from dualcl_jax.system.devices import device_mesh
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import reachable
from dualcl_jax.system.kinds import IMAGES, TEXT
from dualcl_jax.system.tree import Tree
from dualcl_jax.workdir.checkpoint import Checkpoints
from dualcl_jax.workdir.folder import read_examples, read_fingerprints
from dualcl_jax.workdir.metrics import KNN, SCORES, STS, read_records

LATEST, BEST = 'latest', 'best'
TEST = 'test'
"""The examples of the test split, as `SavedRun.chosen_by` names them."""


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run as it was after one of its steps.

    Attributes:
      folder: the workdir.
      config: the stored, resolved config.
      kind: kind of its examples.
      method: the method of the config, built for one device and evaluation; its schedules are not those of the run.
      mesh: the devices that hold the state.
      step: step of the checkpoint.
      state: the global state, replicated.
      data_fingerprint: fingerprint of the training split.
      chosen_by: how 'best' chose the step: the `metric`, and the examples that it was measured `on`, which are test,
        validation or STS-B dev. None for a step that was not chosen by its score.
    """

    folder: epath.Path
    config: ConfigDict
    kind: str
    method: Method
    mesh: Mesh
    step: int
    state: TrainState
    data_fingerprint: str
    chosen_by: dict[str, str] | None = None

    @property
    def test_fingerprint(self) -> str | None:
        """Fingerprint of the test split, empty if there is none; None if it is not known.

        A run that holds out examples for validation was measured on those, and did not record its test split.
        """
        train, test = read_fingerprints(self.folder)
        return None if train is None or self.config.data.validation_fraction else test or ''


def saved_steps(folder: epath.Path) -> list[int]:
    """Sorted steps of the finished checkpoints of a workdir.

    A local checkpoint gets its name when it is finished. On gs://, which cannot rename folders, it has its name from
    the start, and Orbax marks it when it is finished.
    """
    parent = folder / 'checkpoints'
    if not parent.exists():
        return []
    paths = [path for path in parent.iterdir() if re.fullmatch(r'\d+', path.name)]
    return sorted(int(path.name) for path in paths if ocp.path.step.is_path_finalized(path))


def devices_of(folder: epath.Path, step: int) -> int | None:
    """The number of devices on which a checkpoint was saved, as Orbax recorded it; None if it is not recorded."""
    try:
        recorded = json.loads((folder / 'checkpoints' / f'{step:08d}' / 'state' / '_sharding').read_bytes())
        return math.prod(json.loads(next(iter(recorded.values())))['shape'])
    except (OSError, ValueError, TypeError, LookupError, AttributeError, StopIteration, RecursionError):
        return None


def find_run(workdir: str, *, flag: str = '--workdir') -> tuple[epath.Path, list[int]]:
    """The folder of a run and the steps of its finished checkpoints, at least one.

    Raises:
      UserError: there is no run with a finished checkpoint, or the path, named as `flag`, cannot be reached.
    """
    folder = reachable(workdir, f'{flag}={workdir}')
    steps = saved_steps(folder) if workdir else []
    if not steps or not (folder / 'config.json').exists():
        raise UserError(f'{flag}={workdir}: no run with a checkpoint; give the workdir of one')
    return folder, steps


def open_saved_run(workdir: str, step: str = LATEST, *, mesh: Mesh | None = None, flag: str = '--workdir') -> SavedRun:
    """Reads a run.

    Args:
      workdir: local or remote folder.
      step: 'latest', a number, or 'best' for the checkpoint with the highest score: the first of `SCORES` that the run
        has, kNN accuracy or else the correlation on STS-B dev. Each measurement in `metrics.jsonl` counts for the first
        checkpoint at or after its step, if no other measurement is between them; of equal scores, the latest is
        chosen. A note is printed if that was measured on the test examples, because the run held out none for
        validation.
      mesh: devices to put the state on; by default all.
      flag: name of the path in error messages.

    Raises:
      UserError: there is no run or no such step, or a file in the folder cannot be read.
    """
    folder, steps = find_run(workdir, flag=flag)
    chosen, metric = _choose(folder, steps, step)
    mesh = mesh or device_mesh()
    with Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
        try:
            config = from_json((folder / 'config.json').read_text())
            _check_known(folder / 'config.json', config)
            kind, example = read_examples(folder) or _assumed(checkpoints.saved_params(chosen), config)
            views = VIEWS[kind](config, empty(batch_of(example, 0)))
            method = build_method(config, views, total_steps=1, steps_per_epoch=1, num_devices=1)
        except (ValueError, AttributeError, KeyError) as error:
            raise UserError(f'{folder / "config.json"}: not a config of this version ({error})') from error
        chosen_by = None if metric is None else {'metric': metric, 'on': _measured_on(metric, config)}
        if chosen_by is not None and chosen_by['on'] == TEST:
            print(
                f'note: --step=best: step {chosen} was chosen by its kNN accuracy on the test examples of the run, so '
                'its results on them are too high; without data.validation_fraction, use latest'
            )
        state, record = checkpoints.restore(chosen, jax.eval_shape(lambda: create_train_state(method)), mesh)
    return SavedRun(folder, config, kind, method, mesh, chosen, state, record['data_fingerprint'], chosen_by)


def _check_known(path: epath.Path, config: ConfigDict) -> None:
    """Raises UserError if the encoder has fields unknown to this version; prints a note about other unknown ones."""
    unknown = unknown_fields(config)
    named = ', '.join(unknown)
    if any(field.startswith('model.') for field in unknown):
        raise UserError(f'{path}: this version does not know {named}; use the version that trained the run')
    if unknown:
        print(f'note: {path}: this version does not know {named}, and ignores it')


def sentences_of(config: ConfigDict) -> Tree:
    """Shapes and dtypes of an example of text that a config describes, one sentence or a pair."""
    whole, count = np.dtype(np.int32), len(config.data.columns.split(','))
    return {'tokens': ArraySpec((count, config.text.length), whole), 'length': ArraySpec((count,), whole)}


def _assumed(params: Any, config: ConfigDict) -> tuple[str, Tree]:
    """Kind and shape of the examples of a run without a readable data report.

    They are sentences, or images with the channels of its encoder.
    """
    if config.model.name in TEXT_MODELS:
        return TEXT, sentences_of(config)
    side, channels = config.data.image_size, channels_of(params, config.model.name)
    return IMAGES, ArraySpec((side, side, channels), np.dtype(np.uint8))


def _measured_on(metric: str, config: ConfigDict) -> str:
    """The examples on which the monitor of a run measures one of `SCORES`."""
    if metric == STS.backbone:
        return 'STS-B dev'
    return 'validation' if config.data.validation_fraction else TEST


def _choose(folder: epath.Path, steps: list[int], step: str) -> tuple[int, str | None]:
    """The step that the text `step` refers to, and the metric by which it was chosen, if there is one."""
    if step == LATEST:
        return steps[-1], None
    if step == BEST:
        records = read_records(folder / 'metrics.jsonl')
        has = next((score for score in SCORES if any(score in record for record in records)), KNN.backbone)
        scores = {record['step']: record[has] for record in records if has in record and record['step']}
        nearest: dict[int, int] = {}  # by the step of a measurement, the first checkpoint that has no later one
        for at in steps:
            nearest.setdefault(max((found for found in scores if found <= at), default=-1), at)
        ranked = [(scores[found], at) for found, at in nearest.items() if scores.get(found) is not None]
        if not ranked:
            raise UserError(
                f'--step=best: {folder} has no kNN accuracy after step 0 in its metrics.jsonl, nor STS-B dev; name a '
                'step or use latest'
            )
        return max(ranked)[1], has
    if not step.isdecimal() or int(step) not in steps:
        raise UserError(
            f'--step={step}: {folder} has checkpoints of {", ".join(map(str, steps))}; or use latest or best'
        )
    return int(step), None
