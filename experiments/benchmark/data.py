"""Benchmarks of the image input: decoders, the loader compared with its decoder, operations of views."""

import importlib.util
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import default
from dualcl_jax.data import Loader
from dualcl_jax.data.images import folder, photo_patches
from dualcl_jax.data.images.crops import CropRecipe
from dualcl_jax.data.images.encoded import Crops, EncodedSource
from dualcl_jax.method.views import image_ops
from dualcl_jax.method.views.image_draws import CROP_DRAWS, JITTER_DRAWS, draw_crop, draw_jitter
from dualcl_jax.method.views.images import ViewSpec
from dualcl_jax.system.machine import available_cores
from experiments.benchmark.workers import cpu_seconds, descendants

Cases = list[dict[str, Any]]
Compare = Callable[[dict[str, Callable[[], Any]], int], dict[str, tuple[float, float, float]]]
RECIPE = CropRecipe(((0.2, 1.0),) * 2, ((3 / 4, 4 / 3),) * 2, 224)
BATCH, BATCHES = 64, 8


def operations(rounds: int, compare: Compare) -> Cases:
    """Times each operation of a view alone, compiled, on 256 images 32×32 and on 16 images 224×224."""
    cases: Cases = []
    spec = ViewSpec()
    for size, count in ((32, 256), (224, 16)):
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.random((count, size, size, 3), np.float32))
        draws = jnp.asarray(rng.random((count, max(CROP_DRAWS, JITTER_DRAWS)), np.float32))

        def crop(image: jax.Array, draw: jax.Array, size: int = size) -> jax.Array:
            box = draw_crop(draw[:CROP_DRAWS], size, size, spec.crop_scale, spec.crop_ratio)
            return image_ops.crop_and_resize(image, *box, size)

        def jitter(image: jax.Array, draw: jax.Array) -> jax.Array:
            drawn = draw_jitter(draw[:JITTER_DRAWS], 0.4, 0.4, 0.4, 0.1)
            return jnp.stack(image_ops.color_jitter(tuple(jnp.moveaxis(image, -1, 0)), drawn, True), axis=-1)

        functions: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
            'crop': crop,
            'jitter': jitter,
            'blur': lambda image, draw: image_ops.gaussian_blur(image, 0.1 + 1.9 * draw[0]),
            'solarize': lambda image, draw: image_ops.solarize(image, 0.5),
            'flip': lambda image, draw: image_ops.flip(image),
        }
        compiled = {name: jax.jit(jax.vmap(function)) for name, function in functions.items()}
        timings = compare({name: partial(f, images, draws) for name, f in compiled.items()}, rounds)
        cases += [
            {'size': size, 'images': count, 'operation': name, 'seconds': median, 'smallest': low, 'largest': high}
            for name, (median, low, high) in timings.items()
        ]
    return cases


def decode(rounds: int, compare: Compare) -> Cases:
    """JPEG decoders on one core, 500×375; then two crops at 224 by the loader, and by its decoder alone on all cores.

    The decoder's own rate is that of the same function in equally many processes, without the loader. Each round times
    one after the other. The ratios are medians over rounds: `ratio` of the loader's rate to the decoder's, `cpu_ratio`
    of the decoder's CPU time per image to the loader's, which other programs on the machine disturb less.
    """
    files = _photographs(32)
    decoders: dict[str, Callable[[bytes], Any]] = {'pillow': lambda data: np.asarray(Image.open(io.BytesIO(data)))}
    import simplejpeg

    decoders['simplejpeg'] = lambda data: simplejpeg.decode_jpeg(data, 'RGB')
    if importlib.util.find_spec('cv2'):
        import cv2  # type: ignore[import-not-found,unused-ignore]

        cv2.setNumThreads(1)
        decoders['opencv'] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    timings = compare({name: partial(_all, d, files) for name, d in decoders.items()}, rounds)
    cases: Cases = [
        {'case': name, 'cores': 1, 'images_per_second': len(files) / median}
        | {'smallest': len(files) / high, 'largest': len(files) / low}
        for name, (median, low, high) in timings.items()
    ]
    cores = available_cores()
    with tempfile.TemporaryDirectory() as path:
        os.environ['XDG_CACHE_HOME'] = path
        (Path(path) / 'images').mkdir()
        for number, data in enumerate(_photographs(BATCH * BATCHES)):
            (Path(path) / 'images' / f'{number:05d}.jpg').write_bytes(data)
        config = default.get_config().data
        config.update(path=f'{path}/images', labels='none', test_fraction=0.0, max_skipped=0.0, stored_size=256)
        source, _ = folder.load_encoded(config)
        found: dict[str, list[tuple[float, float]]] = {'decoder alone': [], 'loader': []}
        with multiprocessing.get_context('spawn').Pool(cores, _keep, (source,)) as pool:
            pool.map(_crop, range(cores * 2))
            for _ in range(rounds):
                began, used = time.perf_counter(), _cpu_seconds()
                pool.map(_crop, range(2 * BATCHES), chunksize=1)
                found['decoder alone'].append((time.perf_counter() - began, _cpu_seconds() - used))
                found['loader'].append(_load(source, cores))
    own, images = np.array(found['decoder alone']), 2 * BATCH * BATCHES
    for name, pairs in found.items():
        wall, cpu = np.median(own / np.array(pairs), axis=0)
        seconds = [wall_s for wall_s, _ in pairs]
        cases.append(
            {'case': name, 'cores': cores, 'images_per_second': images / float(np.median(seconds))}
            | {'smallest': images / max(seconds), 'largest': images / min(seconds)}
            | {'ratio': float(wall), 'cpu_ratio': float(cpu)}
        )
    return cases


def _cpu_seconds() -> float:
    """The CPU time of this process and of all its descendants so far (Linux)."""
    return time.process_time() + sum(map(cpu_seconds, descendants(os.getpid())))


def _all(decoder: Callable[[bytes], Any], files: list[bytes]) -> None:
    for file in files:
        decoder(file)


def _photographs(count: int) -> list[bytes]:
    """Makes different JPEG files of 500×375 from boxes of scikit-image's photographs."""
    rng = np.random.default_rng(0)
    photos = [photo_patches._read(photo_patches._photo_folder() / photo.file) for photo in photo_patches.PHOTOS]
    photos = [photo for photo in photos if min(photo.size) >= 300]
    files = []
    for number in range(count):
        photo = photos[number % len(photos)]
        left, top = int(rng.integers(0, photo.width - 240)), int(rng.integers(0, photo.height - 180))
        data = io.BytesIO()
        photo.resize((500, 375), box=(left, top, left + 240, top + 180)).save(data, 'JPEG', quality=90)
        files.append(data.getvalue())
    return files


def crop_loader(source: EncodedSource, batch_size: int, workers: int) -> Loader:
    """A loader of two crops per image for a million steps, without the transfer to devices."""
    return Loader(
        source,
        rows=np.arange(batch_size),
        seed=0,
        batch_size=batch_size,
        start_step=0,
        stop_step=10**6,
        place=lambda batch: batch,
        recipe=RECIPE,
        workers=workers,
    )


def _load(source: EncodedSource, workers: int) -> tuple[float, float]:
    """Wall and CPU seconds of 2 * BATCHES batches of two crops from the loader's running workers, without transfer."""
    warm = 4
    with crop_loader(source, BATCH, workers) as batches:
        for _ in range(warm):
            next(batches)
        began, used = time.perf_counter(), _cpu_seconds()
        for _ in range(2 * BATCHES):
            next(batches)
        return time.perf_counter() - began, _cpu_seconds() - used


def _keep(source: EncodedSource) -> None:
    global _source
    _source = source


def _crop(number: int) -> int:
    rows = np.arange(BATCH)
    ids = (number * BATCH + rows) % len(_source)
    crops = Crops(_source.files, RECIPE)
    crops.make(ids, rows, 0, number, crops.blank(BATCH))
    return BATCH


_source: EncodedSource
