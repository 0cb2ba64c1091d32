"""Fuzzes every reader of files and texts from outside with damaged and invalid inputs.

A reader must return a value or raise a `UserError` of at most three lines (for images: `UnusableError`).
"""

import contextlib
import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
import tifffile
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import default
from dualcl_jax.data.images import npz, stored
from dualcl_jax.data.images.decode import Box, UnusableError, cut, examine
from dualcl_jax.data.images.index_cache import _load
from dualcl_jax.data.images.table import Names, match, read_table
from dualcl_jax.main import parse
from dualcl_jax.method.validation import validate
from dualcl_jax.models.exports import FORMATS, Description, load, stablehlo, weights
from dualcl_jax.system.config import flatten, override, to_json
from dualcl_jax.system.errors import UserError, ending
from dualcl_jax.workdir.folder import check_same_run, read_summary, stored_config
from dualcl_jax.workdir.metrics import MetricsLog, read_records
from tests.support.bad_files import encode, photo
from tests.support.config_parts import data_config


class Reader(NamedTuple):
    """The inputs of a reader, and the reader, which also gets a folder of its own."""

    inputs: st.SearchStrategy
    read: Callable[[Path, Any], Any]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A valid file, changed as a bad disk, a bad copy or a person might change it."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        how = draw(st.sampled_from(['flip', 'set', 'cut', 'insert', 'drop', 'repeat']))
        if how == 'flip' and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == 'set':
            content[place : place + 4] = draw(st.binary(min_size=4, max_size=4))
        elif how == 'cut':
            del content[place:]
        elif how == 'insert':
            content[place:place] = draw(st.binary(max_size=16))
        elif how == 'drop':
            del content[place : place + draw(st.integers(1, 200))]
        else:
            content[place:place] = content[place : place + draw(st.integers(1, 200))]
    return bytes(content)


def one_of(*files: bytes) -> st.SearchStrategy:
    """One of several files, damaged, or random bytes."""
    return st.one_of(*map(damaged, files), st.binary(max_size=300))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
"""Values that JSON can represent, including NaN."""
JSON = VALUES.map(json.dumps) | st.text(max_size=9)
ODD = VALUES | st.sampled_from([0, 1, -1, 10**9, 10**30, True, 'resnet50', 'vit_tiny', 'bfloat16', 'mlp'])


def archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def read_npz(folder: Path, content: bytes) -> Any:
    path = str(written(folder, 'set.npz', content))
    return npz.load(data_config(path=path, memory_bytes=2**24))


def read_image(folder: Path, content: bytes) -> Any:
    facts = examine(content)
    return cut(content, lambda height, width: [Box(0, 0, height, width)], 8), facts


def read_stored(folder: Path, content: bytes) -> Any:
    facts = stored.examine(content, 3)
    return stored.cut(content, lambda height, width: [Box(0, 0, height, width)], 8, 3), facts


def plain_files() -> list[bytes]:
    """Files of three channels that are read as they are stored."""
    values = photo(1, 24, 24).astype(np.uint16) << 4
    planes, file = np.ascontiguousarray(values.transpose(2, 0, 1)), io.BytesIO()
    np.save(file, values.astype(np.float32))
    found = [file.getvalue(), encode(photo(1, 24, 24), 'PNG')]
    for pixels, options in (
        (planes, {}),
        (planes, {'planarconfig': 'separate'}),
        (values, {'planarconfig': 'contig', 'compression': 'zlib', 'predictor': True}),
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric='minisblack', **options)
        found.append(file.getvalue())
    return found


def read_csv(folder: Path, content: bytes) -> Any:
    table = read_table(str(written(folder, 'labels.csv', content)))
    return match(table, Names({0: 'ant/0.png', 1: 'bee/1.png'}), '', '', '')


def read_config(folder: Path, content: bytes) -> Any:
    written(folder, 'config.json', content)
    return check_same_run(epath.Path(folder), stored_config(epath.Path(folder)), CONFIG)


def read_metrics(folder: Path, content: bytes) -> Any:
    path = epath.Path(written(folder, 'metrics.jsonl', content))
    records = read_records(path)
    log = MetricsLog(epath.Path(folder), 5)
    log.close()
    assert log.records == [record for record in records if record['step'] <= 5]
    return records


def read_export(folder: Path, content: bytes) -> Any:
    loaded = load(str(written(folder, 'encoder', content)))
    about = loaded.description
    pixels = jax.ShapeDtypeStruct((3, about.image_size, about.image_size, about.channels), np.float32)
    if about.image_size <= 64:
        assert jax.eval_shape(loaded.function, pixels).shape == (3, about.features)
    return loaded.description.step


def set_fields(folder: Path, assignments: list[str]) -> Any:
    config = default.get_config()
    override(config, assignments)
    return validate(config)


def architecture(form: str) -> dict[str, Any]:
    """The architecture for a format: torchvision has only ResNets; the others use the smallest network."""
    return ARCHITECTURE | {'name': 'resnet18' if form == 'torchvision' else 'tiny'}


@functools.cache
def exported(form: str) -> bytes:
    """A small encoder exported to a file."""
    encoder = dataclasses.replace(ENCODER, architecture=architecture(form))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), encoder.shapes())
    return FORMATS[form](encoder, variables)


@st.composite
def resealed(draw: st.DrawFn, form: str) -> bytes:
    """Such a file with an invalid description or a changed program, and matching checksums."""
    changes = draw(st.dictionaries(st.sampled_from(sorted(ENCODER.to_metadata())), JSON, max_size=2))
    if draw(st.booleans()):
        part = draw(st.dictionaries(st.sampled_from(sorted(ARCHITECTURE)), ODD, min_size=1, max_size=2))
        changes['architecture'] = json.dumps(architecture(form) | part)
    content = exported(form)
    if form != 'stablehlo':
        length = 8 + int.from_bytes(content[:8], 'little')
        header = json.loads(content[8:length])
        metadata = header['__metadata__'] | changes
        del metadata['sha256']
        header['__metadata__'] = metadata | {'sha256': weights.digest(safetensors.numpy.load(content), metadata)}
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, 'little') + text + content[length:]
    content = content.removesuffix(stablehlo.END)
    content, length = content[:-8], int.from_bytes(content[-8:], 'little')
    program, metadata = content[:-length], json.loads(content[-length:])
    if not changes:
        program = draw(damaged(program))
    del metadata['sha256']
    metadata |= changes
    text = json.dumps(metadata | {'sha256': stablehlo.digest(program, metadata)}).encode()
    return program + text + len(text).to_bytes(8, 'little') + stablehlo.END


CONFIG = default.get_config()
IMAGES = np.arange(12 * 64, dtype=np.uint8).reshape(12, 8, 8)
SUMMARY = json.dumps({'step': 3, 'loss': 1.0, 'knn_top1': None, 'wall_time_s': 2.0, 'state_sha256': 'ab'}).encode()
RECORDS = b''.join(json.dumps({'step': n, 'wall_time_s': 0.5, 'train/loss': 1 / n}).encode() + b'\n' for n in (1, 2, 9))
ARCHITECTURE = {
    'name': 'tiny', 'stem': 'cifar', 'width': 1, 'projection': 'mlp2_bn', 'predictor': 'none', 'dim': 2,
    'head_width': 2, 'dtype': 'float32', 'remat': False, 'freeze_patches': True, 'positions': 'sine_cosine',
}  # fmt: skip
ENCODER = Description(
    architecture=ARCHITECTURE, encoder='query', output='projection', features=2, provenance={'step': 7},
    image_size=8, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3, value_range=(0.0, 9.0),
)  # fmt: skip
PICTURES = [encode(photo(1, 24, 24), kind) for kind in ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000')]
FIELDS = st.sampled_from([name for name, _ in flatten(CONFIG)]) | st.text(max_size=12)
WORDS = st.text(max_size=12) | st.from_regex(r'[-+(]?\d{0,30}[.,e]?\d{0,4}', fullmatch=True)
LABELS = b'path,label\na.png,cat\nb/c.png,dog\n'

READERS = {
    'npz': Reader(one_of(archive(images=IMAGES, labels=np.arange(12)), archive(train_images=IMAGES)), read_npz),
    'image': Reader(one_of(*PICTURES), read_image),
    'stored image': Reader(one_of(*plain_files()), read_stored),
    'CSV': Reader(
        one_of(LABELS) | st.text().map(lambda text: text.encode('utf-16')),
        read_csv,
    ),
    'folder index': Reader(
        one_of(archive(about=np.frombuffer(b'{"version": "1"}', np.uint8), sizes=np.arange(3))),
        lambda folder, content: _load(written(folder, 'index.npz', content), str(folder)),
    ),
    'metrics.jsonl': Reader(
        one_of(RECORDS) | st.lists(VALUES.map(json.dumps)).map('\n'.join).map(str.encode), read_metrics
    ),
    'summary.json': Reader(
        one_of(SUMMARY) | VALUES.map(json.dumps).map(str.encode),
        lambda folder, content: (written(folder, 'summary.json', content), read_summary(epath.Path(folder))),
    ),
    'config.json': Reader(one_of(to_json(CONFIG).encode()) | VALUES.map(json.dumps).map(str.encode), read_config),
    'export': Reader(
        st.sampled_from([form for form in FORMATS if form != 'onnx']).flatmap(
            lambda form: damaged(exported(form)) | resealed(form)
        ),
        read_export,
    ),
    'overrides': Reader(
        st.lists(st.tuples(FIELDS, WORDS).map('='.join) | st.text(max_size=20), max_size=3), set_fields
    ),
    'flags': Reader(
        st.lists(st.text(max_size=12) | FIELDS.map('--config.{}'.format) | FIELDS.map('--{}=1'.format), max_size=4),
        lambda folder, arguments: parse(['--config=x', '--workdir=y', *arguments]),
    ),
}


def fuzz(name: str, folder: Path, examples: int) -> tuple[int, int]:
    """Fuzzes a reader. Returns the numbers of inputs tried and rejected; fails on any other outcome."""
    reader, tried, refused = READERS[name], 0, 0

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(reader.inputs)
    def check(given: Any) -> None:
        nonlocal tried, refused
        tried += 1
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # notes
                reader.read(folder, given)
        except (UserError, UnusableError) as error:
            refused += 1
            text = str(error) if isinstance(error, UnusableError) else ending(error)[1]
        else:
            text = 'fine'
        assert 1 <= len(text.strip().splitlines()) <= 3

    check()
    return tried, refused
