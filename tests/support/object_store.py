"""Google Cloud Storage on this machine: python -m tests.support.object_store PORT FOLDER serves gs://bucket.

It is gcp-storage-emulator with three things that it lacks: requests in parallel, the last bytes of an object (Range:
bytes=-N, with which array_record opens a file) and the move of an object (with which gcsfs renames one).
"""

import contextlib
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.runs import REPOSITORY, free_port, wait_until

BUCKET = 'bucket'

Handler = Callable[[Any, Any, Any], None]
"""Answers a request: (request, response, storage)."""


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """Serves gs://bucket in a process; yields the variables with which gcsfs, tensorstore and array_record use it."""
    port = free_port()
    command = [sys.executable, '-m', 'tests.support.object_store', str(port), str(folder)]
    with (
        (folder.parent / 'server.log').open('w') as log,
        subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, text=True) as server,
    ):
        try:
            url = f'http://127.0.0.1:{port}'
            _wait_for(url, server)
            yield {
                'STORAGE_EMULATOR_HOST': url,
                'CLOUD_STORAGE_EMULATOR_ENDPOINT': url,
                'TENSORSTORE_GCS_HTTP_URL': url,
                'FSSPEC_GCS_TOKEN': 'anon',
                'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
                'GOOGLE_CLOUD_PROJECT': 'project',
                'no_proxy': '127.0.0.1',
            }
        finally:
            server.kill()


def stored(folder: Path) -> Path:
    """Where the objects of gs://bucket are, as files; `folder` is that of `object_store`."""
    return folder / '.cloudstorage' / BUCKET


def upload(folder: Path, to: str) -> None:
    """Copies all files of a folder to `to`, which begins with the name of the bucket, in a process of its own.

    The variables of `object_store` must be set.
    """
    program = (
        'import gcsfs, pathlib, sys; files = gcsfs.GCSFileSystem(); root = pathlib.Path(sys.argv[1])\n'
        'for path in filter(pathlib.Path.is_file, root.rglob("*")):\n'
        '    files.pipe(f"{sys.argv[2]}/{path.relative_to(root)}", path.read_bytes())\n'
    )
    subprocess.run([sys.executable, '-c', program, str(folder), to], check=True)


def _wait_for(url: str, server: subprocess.Popen[str]) -> None:
    def ready() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        return False

    wait_until(ready, server)


def _serve(port: int, folder: str) -> None:
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.handlers import buckets, objects
    from gcp_storage_emulator.storage import Storage

    def last_bytes(handle: Handler) -> Handler:
        def handler(request: Any, response: Any, storage: Any) -> None:
            given = request.get_header

            def get(key: str, default: Any = None) -> Any:
                value = given(key, default)
                last = re.fullmatch(r'bytes=-(\d+)', value or '') if key == 'range' else None
                if last is None:
                    return value
                size = len(storage.get_file(request.params['bucket_name'], request.params['object_id']))
                return f'bytes={max(size - int(last[1]), 0)}-'

            request.get_header = get
            handle(request, response, storage)

        return handler

    def move(request: Any, response: Any, storage: Any) -> None:
        request.params['dest_bucket_name'] = request.params['bucket_name']
        objects.copy(request, response, storage)
        storage.delete_file(request.params['bucket_name'], request.params['object_id'])

    lock = threading.Lock()

    def alone(handle: Handler) -> Handler:
        def handler(request: Any, response: Any, storage: Any) -> None:
            with lock:
                handle(request, response, storage)

        return handler

    path = r'^/storage/v1/b/(?P<bucket_name>[^/]+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$'
    emulator.HANDLERS = tuple(
        (path, {method: alone(last_bytes(handle)) for method, handle in handlers.items()})
        for path, handlers in ((path, {emulator.POST: move}), *emulator.HANDLERS)
    )
    storage = Storage(data_dir=folder)
    buckets.create_bucket(BUCKET, storage)
    ThreadingHTTPServer.request_queue_size = 128  # tensorstore opens many connections at once
    ThreadingHTTPServer(('127.0.0.1', port), partial(emulator.RequestHandler, storage)).serve_forever()


if __name__ == '__main__':
    _serve(int(sys.argv[1]), sys.argv[2])
