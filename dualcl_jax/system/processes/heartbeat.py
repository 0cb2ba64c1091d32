"""Heartbeats that the processes of a run send to the supervisor (`supervisor.py`), so that none waits for a lost one.

Without them, JAX aborts the processes after 100 s with a stack trace, or lets them wait forever for a process that
hangs. They begin as soon as JAX has joined the processes. In a run, each process also limits the time of its own
phases, which detects when all of them, or the only one, hang.
"""

import atexit
import contextlib
import dataclasses
import json
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

from ml_collections import ConfigDict

from dualcl_jax.system.errors import EXIT_RESTART, RestartError, UserError, ending, exit_at_once
from dualcl_jax.system.private_jax import distributed_state
from dualcl_jax.system.processes.agreement import from_all
from dualcl_jax.system.processes.supervisor import PERIOD, Supervised

REMEDY = 'run the same command in all processes again: they resume from the last checkpoint'
SILENCE_S = 120.0
"""How long a process may send no heartbeat before a run limits it: loading a driver may stop all of its threads."""
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


class Connection:
    """The connection of this process to the supervisor, from when JAX has joined the processes until this one ends.

    It sends a heartbeat every `PERIOD`. When another process is lost, this one exits at once, whatever it is doing,
    with a line that names the lost process. The exit status is 75, or 2 if the other one stopped because of a mistake.

    Args:
      token: the secret of the run's processes.
      timeout_s: how long to wait for the supervisor.

    Attributes:
      name: names this process.
      doing: what this process reports: its phase, and `started`, the last step that it started.
      left: whether this process has reported to the others that its work is done.

    Raises:
      RestartError: the supervisor does not answer.
    """

    def __init__(self, token: str, timeout_s: float) -> None:
        state = distributed_state()
        if isinstance(state.service, Supervised):
            state.client.key_value_set('dualcl/supervisor', str(state.service.port))
        try:
            port = int(state.client.blocking_key_value_get('dualcl/supervisor', int(1000 * timeout_s)))
        except RuntimeError as error:
            raise RestartError(f'process 0 did not start within {timeout_s:g} s; {REMEDY}') from error
        self._host = str(state.coordinator_address).rpartition(':')[0].strip('[]')
        self.name = f'process {state.process_id} on {socket.gethostname()}'
        self.doing, self.started = _Doing(START), 0
        self._silence_s = SILENCE_S
        self._lock, self._lost, self.left = threading.Lock(), threading.Event(), False
        self._problem = UserError()
        hello = {'token': token, 'index': state.process_id, 'host': socket.gethostname()}
        try:
            self._socket = socket.create_connection((self._host, port), timeout=SILENCE_S)
            self._send(hello | {'silence_s': SILENCE_S, 'stall_s': SILENCE_S})
        except OSError as error:
            raise RestartError(
                f'{self._host}:{port}: no answer from the supervisor of the run ({error}); {REMEDY}'
            ) from error
        self._start(self._listen)
        self._start(self._beat)

    def _start(self, function: Callable[[], None]) -> None:
        threading.Thread(target=function, name='dualcl-connection', daemon=True).start()

    def begin_run(self, silence_s: float, stall_s: float) -> None:
        """Begins a run with limits for a process that sends no heartbeat, and for one that lags behind the others."""
        self._silence_s = silence_s
        self._socket.settimeout(silence_s)
        with contextlib.suppress(OSError):  # `_listen` detects it
            self._send({'silence_s': silence_s, 'stall_s': stall_s, 'ended': None})
        if self.left:  # after an earlier run of this process
            self.left = False
            self._start(self._beat)

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(message).encode() + b'\n')

    def _beat(self) -> None:
        """Sends heartbeats until this process or the supervisor ends."""
        with contextlib.suppress(OSError):  # `_listen` detects it
            while not self._lost.wait(PERIOD) and not self.left:
                self._send({'step': self.started, 'phase': self.doing.phase})

    def _listen(self) -> None:
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
            self._problem, leaving = problem, self.left
            self._lost.set()
        if not leaving:  # the main thread may wait forever
            _end(problem)

    def report_end(self, text: str, *, restart: bool) -> None:
        """Reports to the other processes that this one ends, and why; an empty text if its work is done."""
        with contextlib.suppress(OSError):  # if the supervisor is gone, the others have already noticed
            self._send({'ended': text, 'restart': restart})

    def leave(self, error: BaseException | None) -> None:
        """Reports to the others that this process is done or has failed; then it exits at once, with its message."""
        with self._lock:
            self.left = True
        if error is None:
            self.report_end('', restart=True)
            return
        ours = isinstance(error, UserError) or not isinstance(error, Exception)
        if not ours and self._lost.wait(self._silence_s + 2 * PERIOD):  # JAX raised because a process was lost
            _end(self._problem)
        text = str(error).strip()
        restart = (ending(error) or (1, ''))[0] == EXIT_RESTART
        self.report_end(text.splitlines()[0] if text else type(error).__name__, restart=restart)
        _end(error)


_ending = threading.Lock()
_connections: list[Connection] = []


def connect(token: str, timeout_s: float) -> None:
    """Opens the `Connection` of this process, which JAX has just joined with the others; it ends with the process."""
    try:
        connection = Connection(token, timeout_s)
    except RestartError as error:
        _end(error)
    _connections[:] = [connection]
    atexit.register(connection.leave, None)


def end_others(text: str) -> None:
    """Ends the other processes, if there are any, with status 75, because this one ends for the reason `text`."""
    for connection in _connections:
        connection.report_end(text, restart=True)


def leave(error: BaseException) -> NoReturn:
    """Ends this process at once for an error, which it reports to the other processes first."""
    for connection in _connections:
        connection.leave(error)
    _end(error)


@contextlib.contextmanager
def sharing_errors() -> Iterator[None]:
    """A context in which an error of this process ends all processes of the run, if there are others.

    They would otherwise wait for this one, and it for them, until JAX aborts them with a stack trace.
    """
    try:
        yield
    except BaseException as error:
        if _connections:
            leave(error)
        raise


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """The context `sharing_errors`, which no process leaves before all have come to its end."""
    with sharing_errors():
        yield
        if _connections and not _connections[0].left:
            from_all('done', '')


def _end(error: BaseException) -> NoReturn:
    """Exits without JAX's shutdown, which waits for the other processes."""
    _ending.acquire()  # so that only one thread reports and exits
    exit_at_once(*(ending(error) or (1, ''.join(traceback.format_exception(error)).rstrip())))


class Heartbeat:
    """A context around the work of one process of a run, which begins with the phase `START`.

    When a phase exceeds its limit, this process exits at once, whatever it is doing, with status 75 and a line that
    names the phase and the step. If there are other processes, the `Connection` of this one reports the phases to them,
    and the reason if this process fails.

    Args:
      config: `parallel.silence_s` is how long a process may send no heartbeat, `parallel.stall_s` how long it may stay
        behind the others; for the other limits see `PHASES`.
    """

    def __init__(self, config: ConfigDict) -> None:
        self._parallel = config.parallel
        self._doing = _Doing(START)  # replaced as a whole, because a thread reads it
        self._connection = _connections[0] if _connections else None
        self._leaving = threading.Event()

    def __enter__(self) -> 'Heartbeat':
        if self._connection is not None:
            self._connection.doing = self._doing
            self._connection.begin_run(self._parallel.silence_s, self._parallel.stall_s)
        try:
            threading.Thread(target=self._watch, name='dualcl-heartbeat', daemon=True).start()
        except BaseException:  # such as Ctrl-C: then `__exit__` is not called
            self._leaving.set()
            raise
        return self

    def enter(self, phase: str, step: int = 0, *, settled: int = 0) -> None:
        """Reports a new phase.

        Args:
          phase: one of `PHASES`.
          step: the step that it belongs to; 0 before training, when no phase is progress, because other processes may
            still examine their data.
          settled: the last step that the devices finished.
        """
        self._doing = _Doing(phase, step, settled)
        if self._connection is not None:
            self._connection.doing = self._doing
            if step and phase != 'input':
                self._connection.started = step

    def _watch(self) -> None:
        """Ends this process if its phase hangs."""
        last = time.monotonic()
        while not self._leaving.wait(PERIOD):
            now, doing = time.monotonic(), self._doing
            doing.seconds += min(now - last, 2 * PERIOD)  # more means that this process was suspended
            last = now
            limit = self._parallel[PHASES[doing.phase]]
            if limit and doing.seconds > limit:
                self._hang(doing, limit)

    def _hang(self, doing: _Doing, limit: float) -> None:
        of, done = (
            (f' of step {doing.step}', f'; the last step finished was {doing.settled}') if doing.step else ('', '')
        )
        name = 'this process' if self._connection is None else self._connection.name
        text = f'{name} hangs: {doing.phase}{of} takes longer than parallel.{PHASES[doing.phase]}={limit:g}{done}'
        leave(RestartError(f'{text}\n{REMEDY}'))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        if self._connection is not None:
            self._connection.leave(error)
