"""Heartbeats of the processes of a run, sent to the supervisor (`supervisor.py`): no process waits for a lost one.

JAX alone aborts the processes after 100 s with a stack trace, or lets them wait forever for a process that hangs.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import traceback
from types import TracebackType

from ml_collections import ConfigDict

from dualcl_jax.system.errors import UserError, ending
from dualcl_jax.system.processes.supervisor import PERIOD, Supervised

REMEDY = 'run the same command in all processes again: they resume from the last checkpoint'


class Heartbeat:
    """A context around the work of one process of a run. With a single process it does nothing.

    When another process is lost, this one exits at once, whatever it is doing, with exit status 2 and a line that names
    the lost process. When this one fails, it reports the reason to the others.

    Args:
      config: `parallel.silence_s` is how long a process may send no heartbeat, `parallel.stall_s` how long it may stay
        behind the others, `parallel.timeout_s` how long to wait for the supervisor.
    """

    def __init__(self, config: ConfigDict) -> None:
        self._parallel = config.parallel
        self._step = 0
        self._socket: socket.socket | None = None
        self._lock, self._lost, self._leaving = threading.Lock(), threading.Event(), False
        self._problem, self._ending = '', threading.Lock()

    def __enter__(self) -> 'Heartbeat':
        from jax._src import distributed

        state = distributed.global_state
        if state.client is None or not state.num_processes or state.num_processes == 1:
            return self
        if isinstance(state.service, Supervised):
            state.client.key_value_set('dualcl/supervisor', str(state.service.port))
        timeout_s = self._parallel.timeout_s
        try:
            port = int(state.client.blocking_key_value_get('dualcl/supervisor', int(1000 * timeout_s)))
        except RuntimeError as error:
            raise UserError(f'process 0 did not start within {timeout_s:g} s; {REMEDY}') from error
        host = str(state.coordinator_address).rpartition(':')[0].strip('[]')
        hello = {'index': state.process_id, 'host': socket.gethostname()}
        try:
            self._socket = socket.create_connection((host, port), timeout=self._parallel.silence_s)
            self._send(hello | {'silence_s': self._parallel.silence_s, 'stall_s': self._parallel.stall_s})
        except OSError as error:
            raise UserError(f'{host}:{port}: no answer from the supervisor of the run ({error}); {REMEDY}') from error
        self._host = host
        for work in (self._beat, self._listen):
            threading.Thread(target=work, name='dualcl-peers', daemon=True).start()
        return self

    def at(self, step: int) -> None:
        """Reports the current step of this process to the supervisor."""
        self._step = step

    def _send(self, message: dict) -> None:
        assert self._socket is not None
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b'\n')

    def _beat(self) -> None:
        """Sends heartbeats until this process or the supervisor ends; `_listen` detects the latter."""
        try:
            while not self._lost.wait(PERIOD):
                self._send({'step': self._step})
        except OSError:
            return

    def _listen(self) -> None:
        assert self._socket is not None
        problem = ''
        try:
            with self._socket.makefile('rb') as lines:
                while not problem:
                    problem = json.loads(lines.readline())['lost']
        except (OSError, ValueError):  # a timeout or a closed connection
            problem = f'lost contact with the supervisor of the run, which runs beside process 0 at {self._host}'
        with self._lock:
            self._problem, leaving = problem, self._leaving
            self._lost.set()
        if not leaving:  # the main thread may wait forever
            self._end(UserError(f'{problem}\n{REMEDY}'))

    def _end(self, error: BaseException) -> None:
        """Exits without JAX's shutdown, which waits for the other processes."""
        self._ending.acquire()  # so that only one thread reports and exits
        status, text = ending(error) or (1, ''.join(traceback.format_exception(error)).rstrip())
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
        os._exit(status)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is None:
            return
        with self._lock:
            self._leaving = True
        if error is None:
            self._send({'ended': ''})
            return
        ours = isinstance(error, UserError) or not isinstance(error, Exception)
        if not ours and self._lost.wait(self._parallel.silence_s + 2 * PERIOD):  # JAX raised because a process was lost
            self._end(UserError(f'{self._problem}\n{REMEDY}'))
        text = str(error).strip()
        with contextlib.suppress(OSError):  # if the supervisor is gone, the others have already noticed
            self._send({'ended': text.splitlines()[0] if text else type(error).__name__})
        self._end(error)
