"""Opens an index of a million files from its cache: python million.py FOLDER; prints CPU seconds and MB of memory."""

import os
import sys
import time
from pathlib import Path

import numpy as np

FOLDERS, EACH = 1000, 1000


def write_cache(folder: Path) -> None:
    """Writes the cache of a set of FOLDERS × EACH files. It creates the folders, but not the files."""
    from dualcl_jax.data.images import index, index_cache

    count = FOLDERS * EACH
    names = [f'n{number // EACH:08d}_{number % EACH:05d}.JPEG'.encode() for number in range(count)]
    folders = ['', *(f'n{number:08d}' for number in range(FOLDERS))]
    for name in folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.utime(folder / name, (1, 1))
    os.utime(folder, (1, 1))
    rng = np.random.default_rng(0)
    made = index.Index(
        str(folder),
        tuple(folders),
        np.full(len(folders), 10**9, np.int64),
        (1 + np.arange(count) // EACH).astype(np.int32),
        np.frombuffer(b''.join(names), np.uint8),
        np.cumsum([len(name) for name in names]),
        rng.integers(10_000, 200_000, count),
        rng.integers(10**18, 2 * 10**18, count),
        np.full((count, 2), 400, np.int32),
        np.zeros(count, np.uint8),
        np.zeros(count, np.uint16),
        rng.integers(0, 256, (count, 16), np.uint8),
        {},
    )
    cache = index_cache.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    index_cache._save(made, index_cache._cache_file(str(folder), 0))


def main(folder: Path) -> None:
    pid = os.fork()  # so that the memory for writing does not count
    if not pid:
        write_cache(folder)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    began = time.process_time()
    from configs import default
    from dualcl_jax import data

    config = default.get_config().data
    config.update(
        name='folder',
        path=str(folder),
        image_size=224,
        num_examples=FOLDERS * EACH,
        test_fraction=0.0,
        memory_bytes=2**30,
    )
    train, _ = data.load(config)
    seconds = time.process_time() - began
    assert len(train.class_names or ()) == FOLDERS
    status = Path('/proc/self/status').read_text()  # getrusage would also count the process that started this one
    megabytes = int(status.split('VmHWM:')[1].split()[0]) / 1024
    print(f'{seconds:.2f} {megabytes:.0f}')


if __name__ == '__main__':
    main(Path(sys.argv[1]) / 'images')
