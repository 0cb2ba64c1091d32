"""The cache in the workdir of a run: what it found out about its data, for later starts on machines without a cache.

The files are in the folder `FOLDER` of the workdir: the index of a folder of images, and the labels of a TFDS set whose
records stay encoded. Each is named after the place of the data and describes their state, which is compared before it
is used, as in the cache of a machine. The folder may be deleted at any time.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from dualcl_jax.system.errors import reason_of
from dualcl_jax.system.files import write_bytes
from dualcl_jax.system.processes.agreement import is_first

FOLDER = 'data_cache'


class RunCache(NamedTuple):
    """The cache of a run.

    Attributes:
      workdir: the folder of the run; empty: there is no cache.
      trains: whether the run is training. Process 0 then writes the cache, and every process must load the data.
    """

    workdir: str = ''
    trains: bool = False

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none, or it cannot be read."""
        if self.workdir:
            with contextlib.suppress(OSError):
                return self._file(name).read_bytes()
        return None

    def save(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        """Replaces a file atomically, in process 0 of a run that trains. A note says if that fails.

        `write` writes the content.
        """
        if not self.trains or not is_first():
            return
        file, content = self._file(name), io.BytesIO()
        write(content)
        try:
            file.parent.mkdir(exist_ok=True)
            write_bytes(file, content.getvalue())
        except OSError as error:  # such as a full disk
            print(f'note: {file} cannot be written ({reason_of(error)}): each machine reads the data on its own')

    def _file(self, name: str) -> epath.Path:
        return epath.Path(self.workdir) / FOLDER / name


NO_CACHE = RunCache()


def run_cache_of(data: Any) -> RunCache:
    """The cache of the run whose data are loaded; see `dualcl_jax.data.load`."""
    shared = getattr(data, 'shared', '')
    return RunCache(shared or getattr(data, 'workdir', ''), trains=bool(shared))
