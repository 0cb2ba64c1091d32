"""What a run tells its terminal: a header, a live line of progress with the time left, notes."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Without a terminal a line of progress is printed at most this often."""


class Console:
    """Prints from one process; silent in the others.

    Args:
      total_steps: length of the run.
      start_step: where it begins or goes on.
      silent: print nothing.
    """

    def __init__(self, total_steps: int, start_step: int, *, silent: bool = False) -> None:
        self._rich = RichConsole(quiet=silent, highlight=False, soft_wrap=True)
        self._total, self._start, self._step = total_steps, start_step, start_step
        self._began = self._printed = time.monotonic()
        self._progress: Progress | None = None
        if sys.stdout.isatty() and not silent:
            self._progress = Progress(
                TextColumn('step'),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn('{task.fields[status]}'),
                TimeElapsedColumn(),
                TextColumn('left'),
                TimeRemainingColumn(elapsed_when_finished=False, compact=False),
                console=self._rich,
                refresh_per_second=4,
            )
            self._task = self._progress.add_task('', total=total_steps, completed=start_step, status='compiling')

    def header(self, facts: Mapping[str, str]) -> None:
        """Prints what will happen, a line a fact, then starts the progress bar."""
        indent = max(map(len, facts)) + 2
        for name, value in facts.items():
            self._rich.print(f'{name:<{indent}}{value}')
        if self._progress:
            self._progress.start()

    def step(self, step: int) -> None:
        """Moves the bar to a finished step."""
        self._step = step
        if self._progress:
            self._progress.update(self._task, completed=step)

    def status(self, text: str) -> None:
        """Shows text beside the bar; without a terminal prints it now and then, with the time left."""
        if self._progress:
            self._progress.update(self._task, status=text)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS or self._step == self._total:
            self._printed = time.monotonic()
            done = self._step - self._start
            left = (self._printed - self._began) / max(done, 1) * (self._total - self._step)
            self._rich.print(f'step {self._step}/{self._total}  {text}  {duration(left)} left')

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        self._rich.print(text)

    def close(self) -> None:
        """Ends the bar where it is."""
        if self._progress:
            self._progress.stop()


def duration(seconds: float) -> str:
    """A time as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f'{whole} s'
    if whole < 3600:
        return f'{whole // 60} min {whole % 60:02d} s'
    return f'{whole // 3600} h {whole % 3600 // 60:02d} min'
