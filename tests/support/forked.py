"""Runs of python -m dualcl_jax.main that start in milliseconds: forks of a process that has imported what they need.

Imports are half of the time of a short run. The server never starts JAX's devices and has one thread, so a fork is in
the state of a new process after its imports; it reads its flags, environment and devices itself, and ends as any
process does.
"""

import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

POSSIBLE = sys.platform == 'linux'
"""Elsewhere a process that has loaded the system's libraries must not fork."""
MODULE = 'dualcl_jax.main'
READ_BY_IMPORTS = ('JAX_', 'LANG', 'LC_', 'OMP_', 'OPENBLAS_', 'PYTHON', 'TF_')
"""The first letters of variables that are read before `main` begins."""


class Forked:
    """A process like `subprocess.Popen` with text pipes for its output; only the methods that tests of runs use."""

    def __init__(self, server: socket.socket, request: Mapping[str, object]) -> None:
        pipes = [os.pipe() for _ in range(3)]
        message = json.dumps(request).encode() + b'\n'
        sent = socket.send_fds(server, [message], [write for _, write in pipes])
        server.sendall(message[sent:])
        for _, write in pipes:
            os.close(write)
        self.stdout, self.stderr, self._status = (os.fdopen(read, encoding='utf-8') for read, _ in pipes)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None
        self._ended = threading.Thread(target=self._read_status, daemon=True)
        self._ended.start()

    def _read_status(self) -> None:
        self.returncode = int(self._status.readline())

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._ended.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(MODULE, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Reads what is left of both outputs, waits for the end, and closes the pipes."""
        if self.stdout.closed:
            return '', ''
        found = {}
        readers = [
            threading.Thread(target=lambda name=name: found.update({name: getattr(self, name).read()}), daemon=True)
            for name in ('stdout', 'stderr')
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(MODULE, timeout or 0)
        self.wait(timeout)
        for file in (self.stdout, self.stderr, self._status):
            file.close()
        return found['stdout'], found['stderr']


class Server:
    """The process that forks; it ends with this object."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.environment, self.lock = environment, threading.Lock()
        self.socket, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, '-m', 'tests.support.forked', str(theirs.fileno())],
                cwd=folder,
                env={**environment, 'TF_CPP_MIN_LOG_LEVEL': '3'},  # a run sets it before it imports JAX
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,  # pipes, as the outputs of a run, which replace them
                stderr=subprocess.PIPE,
            )
        weakref.finalize(self, _end, self.socket, process)

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether a run with these variables finds what it would find had it imported everything itself."""
        changed = {name for name, _ in environment.items() ^ self.environment.items()}
        return not any(name.startswith(READ_BY_IMPORTS) for name in changed)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Forked:
        """Starts python -m dualcl_jax.main in a folder."""
        request = {'arguments': list(arguments), 'environment': dict(environment), 'folder': str(folder)}
        with self.lock:
            return Forked(self.socket, request)


def _end(requests: socket.socket, process: subprocess.Popen[bytes]) -> None:
    requests.close()
    process.communicate()


def serve(requests: socket.socket) -> list[str]:
    """Forks for each request, and returns in the fork, with the arguments. Exits when nobody can ask any more."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 65_536, 3)
        while message and not message.endswith(b'\n'):
            message += requests.recv(65_536)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    requests.close()
    out, err, status = descriptors
    child = os.fork()
    if child:  # waits for the run, and says how it ended
        os.close(out)
        os.close(err)
        os.write(status, b'%d\n' % child)
        _, code = os.waitpid(child, 0)
        os.write(status, b'%d\n' % os.waitstatus_to_exitcode(code))
        os._exit(0)
    os.close(status)
    for descriptor, number in ((out, 1), (err, 2)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    request = json.loads(message)
    os.environ.clear()
    os.environ.update(request['environment'])
    os.chdir(request['folder'])
    return request['arguments']


def main() -> None:
    import dualcl_jax.training.dry_run
    import dualcl_jax.training.loop  # noqa: F401

    assert len(os.listdir('/proc/self/task')) == 1, 'a process with threads must not fork'
    gc.freeze()
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = [MODULE, *arguments]
    runpy.run_module(MODULE, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()
