"""For every source, batches depend only on (seed, step), not on processes, workers or where a run resumes."""

from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict

from dualcl_jax import data
from dualcl_jax.data import Batch
from dualcl_jax.data.images import folder, pack
from dualcl_jax.data.images.encoded import EncodedSource
from tests.support.bad_files import encode, photo
from tests.support.batches import STEPS, B, batches
from tests.support.config_parts import data_config
from tests.support.runs import REPOSITORY, write_npz

SHARED = REPOSITORY.parent / 'shared' / 'tfds'


def config(name: str, **fields) -> ConfigDict:
    return data_config(name=name, image_size=12, labels='none', test_fraction=0.0, max_skipped=0.0, **fields)


@pytest.fixture(scope='module')
def load(tmp_path_factory) -> Callable[[str], data.Source]:
    """The training split of a kind of source, with about 30 images."""
    root = tmp_path_factory.mktemp('sources')
    (root / 'images').mkdir()
    for i in range(30):
        kind = ('JPEG', 'PNG', 'WEBP')[i % 3]
        (root / 'images' / f'{i:02d}.{kind.lower()}').write_bytes(encode(photo(i, 20 + i, 70 - i), kind))
    write_npz(root / 'data.npz')
    patch = pytest.MonkeyPatch()
    patch.setenv('XDG_CACHE_HOME', str(root / 'cache'))
    images = config('folder', path=str(root / 'images'))
    pack.pack('packed', *folder.load_encoded(images), str(root))
    configs = {
        'npz': config('npz', path=str(root / 'data.npz'), limit=30),
        'photo_patches': config('photo_patches', limit=30),
        'tfds': config('cifar10', data_dir=str(SHARED), limit=30),
        'folder in memory': images,
        'folder': config('folder', path=str(root / 'images'), memory_bytes=0),
        'packed in memory': config('packed', data_dir=str(root)),
        'packed': config('packed', data_dir=str(root), memory_bytes=0),
    }
    yield lambda kind: data.load(configs[kind]).train
    patch.undo()


@pytest.mark.parametrize(
    'kind', ['npz', 'photo_patches', 'tfds', 'folder in memory', 'folder', 'packed in memory', 'packed']
)
def test_the_same_batches_for_any_layout(load, kind):
    if kind == 'tfds' and not SHARED.exists():
        pytest.skip(f'no {SHARED}')
    source = load(kind)
    assert isinstance(source, EncodedSource) == (kind in ('folder', 'packed'))
    expected = batches(source)
    assert len(expected) == STEPS
    if kind not in ('photo_patches', 'tfds'):  # these take seconds
        again = load(kind)
        assert again.fingerprint == source.fingerprint
        source = again
    for processes, workers, start in ((1, 1, 3), (2, 0, 0), (4, 0, 1)):
        shares = [batches(source, rows, start, workers) for rows in np.array_split(np.arange(B), processes)]
        for step, parts in enumerate(zip(*shares, strict=True), start):
            for name, column in zip(Batch._fields, zip(*parts, strict=True), strict=True):
                np.testing.assert_array_equal(np.concatenate(column), getattr(expected[step], name), err_msg=name)
