"""The processes of a run watch each other through the supervisor (`supervisor.py`): none waits for one that is lost.

JAX alone aborts them after 100 s with a stack trace, or lets them wait for ever for a process that hangs.
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

REMEDY = 'run the same command in all processes again: they go on from the last checkpoint'


class Heartbeat:
    """A context around the work of one process of a run. Alone it does nothing.

    When another process is lost, this one ends at once with exit status 2 and a line that names it, wherever it is.
    When this one fails, the others are told why.

    Args:
      config: `parallel.silence_s` is how long a process may not be heard of, `parallel.stall_s` how long it may stay
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
            raise UserError(f'process 0 did not begin to work within {timeout_s:g} s; {REMEDY}') from error
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
        """Tells the others that this process has come to a step."""
        self._step = step

    def _send(self, message: dict) -> None:
        assert self._socket is not None
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b'\n')

    def _beat(self) -> None:
        """Until the process ends, or the supervisor does, which `_listen` notices."""
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
        except (OSError, ValueError):  # silence, or an end
            problem = f'the supervisor of the run, beside process 0 at {self._host}, has not been heard of'
        with self._lock:
            self._problem, leaving = problem, self._leaving
            self._lost.set()
        if not leaving:  # the main thread may wait for ever
            self._end(UserError(f'{problem}\n{REMEDY}'))

    def _end(self, error: BaseException) -> None:
        """Without JAX's goodbyes, which wait for the others."""
        self._ending.acquire()  # the other thread may have the same to say
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
        if not ours and self._lost.wait(self._parallel.silence_s + 2 * PERIOD):  # what JAX makes of a lost process
            self._end(UserError(f'{self._problem}\n{REMEDY}'))
        text = str(error).strip()
        with contextlib.suppress(OSError):  # without the supervisor the others know by that
            self._send({'ended': text.splitlines()[0] if text else type(error).__name__})
        self._end(error)
