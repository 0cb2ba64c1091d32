"""An untrained run with random values everywhere, for the tests of reports and exports."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from configs import default
from dualcl_jax.data import Source, load
from dualcl_jax.evaluators.embed import Embedder
from dualcl_jax.method.build import Method
from dualcl_jax.method.negatives.queue import Queue
from dualcl_jax.method.resolve import resolve
from dualcl_jax.method.state import TrainState, create_train_state
from dualcl_jax.reports.samples import Samples, take_samples
from dualcl_jax.reports.subject import Subject
from dualcl_jax.system.config import from_json, override, to_json
from dualcl_jax.system.devices import device_mesh, replicate, to_host
from dualcl_jax.workdir.saved_run import SavedRun
from tests.support.methods import image_method
from tests.support.runs import write_npz

STEP = 24


def random_run(folder: Path, *fields: str, channels: int = 3, labels: bool = True) -> SavedRun:
    """A small run on four classes of 16×16 images; `fields` are 'field=value' of its config."""
    config = default.get_config()
    data = write_npz(folder / 'data.npz', channels=channels, labels=labels)
    small = ('model.width=4', 'model.dim=8', 'model.head_width=16', 'queue.size=64', 'train.batch_size=16')
    override(config, ['data.name=npz', f'data.path={data}', 'data.image_size=16', *small, 'train.steps=24', *fields])
    config.data.channels = 0 if channels in (1, 3) else channels
    train = load(config.data).train
    if not config.data.mean:
        config.data.mean, config.data.std = (0.4,) * channels, (0.3,) * channels
    config = from_json(to_json(resolve(config, platform='cpu', num_devices=1)))  # as if read from a workdir
    method = image_method(config, channels=channels, total_steps=STEP, steps_per_epoch=16, num_devices=1)
    mesh = device_mesh()
    state = replicate(random_state(method, train), mesh)
    return SavedRun(epath.Path(folder), config, train.kind, method, mesh, STEP, state, train.fingerprint)


def subject_of(run: SavedRun, *, records: list[dict[str, Any]] | None = None) -> Subject:
    """The run as the subject of a report."""
    state, records = to_host(run.state), [{'step': STEP, 'wall_time_s': 1.0}] if records is None else records
    return Subject(run.folder, run.config, run.method, load(run.config.data), STEP, 16, state, records, {})


def reported(run: SavedRun, *, records: list[dict[str, Any]] | None = None) -> tuple[Subject, Samples]:
    """The run as the subject of a report, and the report's images."""
    subject = subject_of(run, records=records)
    samples = take_samples(Embedder(run.method, run.mesh), run.state.variables, subject.splits)
    return subject, samples


def random_state(method: Method, train: Source) -> TrainState:
    """A state after `STEP` steps: no parameter, statistic or key has its initial value; half of the queue is filled."""
    rng = np.random.default_rng(0)

    def scramble(path: Any, leaf: jax.Array) -> np.ndarray:
        if jax.tree_util.keystr(path[-1:]) in ("['var']", "['scale']"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4
        return (rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    state = create_train_state(method)
    fields = {
        name: jax.tree_util.tree_map_with_path(scramble, getattr(state, name))
        for name in ('params', 'batch_stats', 'momentum_params', 'momentum_batch_stats')
    }
    return dataclasses.replace(state, step=np.int32(STEP), queue=random_queue(method, train, rng), **fields)


def random_queue(method: Method, train: Source, rng: np.random.Generator) -> Queue | None:
    """A queue whose first half contains keys of training images, two per step."""
    size, filled = method.queue_size, method.queue_size // 2
    if not size:
        return None
    keys = rng.normal(size=(size, method.dim)).astype(np.float32)
    ids = rng.integers(0, len(train), size).astype(np.int32)
    labels, written = train.labels[ids], (STEP - 1 - np.arange(size) // 2).astype(np.int32)
    of_image = np.arange(size) < filled
    return Queue(
        keys=keys / np.linalg.norm(keys, axis=1, keepdims=True),
        ids=np.where(of_image, ids, -1).astype(np.int32),
        labels=np.where(of_image, labels, -1).astype(np.int32),
        enqueued_at=np.where(of_image, written, -1).astype(np.int32),
        cursor=np.int32(filled),
        filled=np.int32(filled),
    )
