"""Heartbeats that the processes of a run send to the supervisor (`supervisor.py`), so that none waits for a lost one.

Without them, JAX aborts the processes after 100 s with a stack trace, or lets them wait forever for a process that
hangs. Each process also limits the time of its own phases, which detects when all of them, or the only one, hang.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

from ml_collections import ConfigDict

from dualcl_jax.system.errors import EXIT_RESTART, RestartError, UserError, ending
from dualcl_jax.system.private_jax import distributed_state
from dualcl_jax.system.processes import start
from dualcl_jax.system.processes.supervisor import PERIOD, Supervised

REMEDY = 'run the same command in all processes again: they resume from the last checkpoint'
START, RESTORE, CREATE = 'start', 'restore', 'create'
"""Phases before the first step: examining the data, and restoring or creating the state."""
PHASES = {
    START: 'start_s',
    RESTORE: 'save_s',
    CREATE: 'compile_s',
    'compile': 'compile_s',
    'input': 'input_s',
    'step': 'step_s',
    'save': 'save_s',
    'evaluate': 'evaluate_s',
}
"""The phases of a run, and the fields of `parallel` that limit their time in seconds, 0 for no limit."""


@dataclasses.dataclass
class _Doing:
    """A phase, the step it belongs to (0 before training), the last step that the devices finished, and its time."""

    phase: str
    step: int = 0
    settled: int = 0
    seconds: float = 0.0


class Heartbeat:
    """A context around the work of one process of a run, which begins with the phase `START`.

    When another process is lost, or a phase of this one exceeds its limit, this process exits at once, whatever it is
    doing, with a line that names the lost process, or the phase and the step. The exit status is 75, or 2 if another
    process stopped because of a mistake. When this process fails, it reports the reason to the others.

    Args:
      config: `parallel.silence_s` is how long a process may send no heartbeat, `parallel.stall_s` how long it may stay
        behind the others, `parallel.timeout_s` how long to wait for the supervisor; for the other limits see `PHASES`.
    """

    def __init__(self, config: ConfigDict) -> None:
        self._parallel = config.parallel
        self._doing = _Doing(START)  # replaced as a whole, because a thread reads it
        self._started = 0
        self._socket: socket.socket | None = None
        self._name, self._host = 'this process', ''
        self._lock, self._lost, self._leaving = threading.Lock(), threading.Event(), False
        self._problem, self._ending = UserError(), threading.Lock()

    def __enter__(self) -> 'Heartbeat':
        state = distributed_state()
        work = [self._beat]
        if state.client is not None and state.num_processes and state.num_processes > 1:
            self._connect(state)
            work.append(self._listen)
        for function in work:
            threading.Thread(target=function, name='dualcl-heartbeat', daemon=True).start()
        return self

    def _connect(self, state: Any) -> None:
        """Connects to the supervisor of a run of several processes."""
        if isinstance(state.service, Supervised):
            state.client.key_value_set('dualcl/supervisor', str(state.service.port))
        timeout_s = self._parallel.timeout_s
        try:
            port = int(state.client.blocking_key_value_get('dualcl/supervisor', int(1000 * timeout_s)))
        except RuntimeError as error:
            raise RestartError(f'process 0 did not start within {timeout_s:g} s; {REMEDY}') from error
        self._host = str(state.coordinator_address).rpartition(':')[0].strip('[]')
        self._name = f'process {state.process_id} on {socket.gethostname()}'
        hello = {'token': start.token(), 'index': state.process_id, 'host': socket.gethostname()}
        limits = {'silence_s': self._parallel.silence_s, 'stall_s': self._parallel.stall_s}
        try:
            self._socket = socket.create_connection((self._host, port), timeout=self._parallel.silence_s)
            self._send(hello | limits)
        except OSError as error:
            raise RestartError(
                f'{self._host}:{port}: no answer from the supervisor of the run ({error}); {REMEDY}'
            ) from error

    def enter(self, phase: str, step: int, *, settled: int) -> None:
        """Reports a new phase of training, the step that it belongs to, and the last step that the devices finished."""
        self._doing = _Doing(phase, step, settled)
        if phase != 'input':
            self._started = step

    def prepare(self, phase: str) -> None:
        """Reports `RESTORE` or `CREATE`. Neither is progress: other processes may still examine their data."""
        self._doing = _Doing(phase)

    def _send(self, message: dict[str, Any]) -> None:
        if self._socket is not None:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b'\n')

    def _beat(self) -> None:
        """Sends heartbeats until this process or the supervisor ends, and ends this process if its phase hangs."""
        last = time.monotonic()
        try:
            while not self._lost.wait(PERIOD) and not self._leaving:
                now, doing = time.monotonic(), self._doing
                doing.seconds += min(now - last, 2 * PERIOD)  # more means that this process was suspended
                last = now
                self._send({'step': self._started, 'phase': doing.phase})
                limit = self._parallel[PHASES[doing.phase]]
                if limit and doing.seconds > limit:
                    self._hang(doing, limit)
        except OSError:  # `_listen` detects it
            return

    def _hang(self, doing: _Doing, limit: float) -> None:
        of, done = (
            (f' of step {doing.step}', f'; the last step finished was {doing.settled}') if doing.step else ('', '')
        )
        text = f'{self._name} hangs: {doing.phase}{of} takes longer than parallel.{PHASES[doing.phase]}={limit:g}{done}'
        with contextlib.suppress(OSError):
            self._send({'ended': text, 'restart': True})
        self._end(RestartError(f'{text}\n{REMEDY}'))

    def _listen(self) -> None:
        assert self._socket is not None
        problem: UserError | None = None
        try:
            with self._socket.makefile('rb') as lines:
                while problem is None:
                    verdict = json.loads(lines.readline())
                    if verdict['lost']:
                        kind = RestartError if verdict['restart'] else UserError
                        problem = kind(f'{verdict["lost"]}\n{REMEDY}')
        except (OSError, ValueError):  # a timeout or a closed connection
            problem = RestartError(
                f'lost contact with the supervisor of the run, which runs beside process 0 at {self._host}\n{REMEDY}'
            )
        with self._lock:
            self._problem, leaving = problem, self._leaving
            self._lost.set()
        if not leaving:  # the main thread may wait forever
            self._end(problem)

    def _end(self, error: BaseException) -> None:
        """Exits without JAX's shutdown, which waits for the other processes."""
        self._ending.acquire()  # so that only one thread reports and exits
        status, text = ending(error) or (1, ''.join(traceback.format_exception(error)).rstrip())
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the streams may be closed
            sys.stdout.flush()
            print(text, file=sys.stderr, flush=True)
        os._exit(status)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._leaving = True
        if self._socket is None:
            return
        if error is None:
            self._send({'ended': ''})
            return
        ours = isinstance(error, UserError) or not isinstance(error, Exception)
        if not ours and self._lost.wait(self._parallel.silence_s + 2 * PERIOD):  # JAX raised because a process was lost
            self._end(self._problem)
        text = str(error).strip()
        with contextlib.suppress(OSError):  # if the supervisor is gone, the others have already noticed
            restart = (ending(error) or (1, ''))[0] == EXIT_RESTART
            self._send({'ended': text.splitlines()[0] if text else type(error).__name__, 'restart': restart})
        self._end(error)
