"""Times the training step of any config on the available devices, with its views and with unaugmented examples."""

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from dualcl_jax.data import Batch
from dualcl_jax.method.build import build_method
from dualcl_jax.method.resolve import resolve
from dualcl_jax.method.state import create_train_state, state_specs
from dualcl_jax.method.validation import validate, validate_devices
from dualcl_jax.method.views import VIEWS, Views
from dualcl_jax.step import train_step
from dualcl_jax.system.config import load_config, override
from dualcl_jax.system.devices import AXIS, MAPPERS, ShardMapMapper, device_mesh, place, shapes
from dualcl_jax.training import cost
from dualcl_jax.training.ahead_of_time import ASSUMED_MEAN, ASSUMED_STD, CROPPED_FROM

Cases = list[dict[str, Any]]
Compare = Callable[[Mapping[str, Callable[[], Any]], int], dict[str, tuple[float, float, float]]]


@dataclasses.dataclass(frozen=True)
class NoAugmentation:
    """Views without augmentation: both are the plain example, or the plain crops if the host makes crops.

    Attributes:
      views: the views of the method.
    """

    views: Views
    host_recipe: None = None

    def make(self, keys: jax.Array, examples: jax.Array) -> jax.Array:
        del keys
        first, second = (examples[:, 0], examples[:, 1]) if examples.ndim == 5 else (examples, examples)
        return jnp.stack([self.views.plain(first), self.views.plain(second)])

    def plain(self, examples: Any) -> Any:
        return self.views.plain(examples)

    def raw(self, examples: Any) -> Any:
        return self.views.raw(examples)

    def blank(self) -> Any:
        return self.views.blank()


class Stepper:
    """A compiled step with its state and one batch on all devices. Each call runs `steps` steps."""

    def __init__(self, config: ConfigDict, views: Views, examples: np.ndarray, steps: int) -> None:
        mesh = device_mesh()
        method = build_method(config, views, total_steps=1000, steps_per_epoch=100, num_devices=mesh.size)
        specs, step = state_specs(method), partial(train_step, method)
        mapper = MAPPERS[config.parallel.mapper](mesh, specs)
        index = np.arange(len(examples), dtype=np.int32)
        batch, state = Batch(examples, index, index % 10, index), jax.jit(partial(create_train_state, method))()
        described = shapes(state, mesh, specs), shapes(batch, mesh, PartitionSpec(AXIS))
        traced = ShardMapMapper(mesh, specs).map(step).trace(*described)
        self.flops = cost.count(traced.jaxpr, mesh.devices.flat[0].platform).flops
        began = time.perf_counter()
        self.compiled = mapper.lower(step, state, batch).compile()
        self.compile_seconds = time.perf_counter() - began
        self._state, self._batch = mapper.put_state(place(state, mesh, specs)), mapper.put_batch(batch)
        self._steps = steps

    def __call__(self) -> Any:
        for _ in range(self._steps):
            self._state, metrics = self.compiled(self._state, self._batch)
        return metrics


def config_step(flags: argparse.Namespace, fields: Sequence[str], compare: Compare) -> Cases:
    """Times the step of each --config on random images on the device, with its views, without augmentation, or both.

    Images of at least 128 pixels a side are assumed to be crops made by the host, as with encoded sets.
    """
    steppers: dict[str, Stepper] = {}
    batch_sizes: dict[str, int] = {}
    mesh = device_mesh()
    for path in flags.config:
        config = load_config(path)
        override(config, fields)
        if flags.batch:
            config.train.batch_size = flags.batch
        validate(config)
        resolved = resolve(
            config,
            platform=mesh.devices.flat[0].platform,
            num_devices=mesh.size,
            statistics=(ASSUMED_MEAN, ASSUMED_STD),
        )
        validate(resolved)
        validate_devices(resolved, mesh.size)
        size, count = resolved.data.image_size, resolved.train.batch_size
        of_views = (2,) if size >= CROPPED_FROM else ()
        images = np.random.default_rng(0).integers(0, 256, (count, *of_views, size, size, 3), np.uint8)
        views = VIEWS['images'](resolved, images)
        cases = {'with': (path, views), 'without': (f'{path}, no views', NoAugmentation(views))}
        for name, made in [case for of, case in cases.items() if flags.views in (of, 'both')]:
            steppers[name] = Stepper(resolved, made, images, flags.steps)
            batch_sizes[name] = count
    timings = compare(steppers, flags.rounds)
    return [_case(name, stepper, batch_sizes[name], timings[name], flags) for name, stepper in steppers.items()]


def _case(
    name: str, stepper: Stepper, batch: int, timing: tuple[float, float, float], flags: argparse.Namespace
) -> dict[str, Any]:
    median, smallest, largest = (seconds / flags.steps for seconds in timing)
    used: Any = stepper.compiled.memory_analysis()
    accessed = (stepper.compiled.cost_analysis() or {}).get('bytes accessed')
    return {
        'config': name,
        'batch': batch,
        'images_per_second': batch / median,
        'smallest': batch / largest,
        'largest': batch / smallest,
        'seconds': median,
        'tflops_per_device': stepper.flops / median / 1e12,
        'share_of_peak': stepper.flops / median / 1e12 / flags.peak_tflops if flags.peak_tflops else None,
        'gb_accessed': None if accessed is None else accessed / 1e9,
        'gb_temporary': used.temp_size_in_bytes / 1e9,
        'compile_seconds': stepper.compile_seconds,
    }
