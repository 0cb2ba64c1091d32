"""Terminal output of a run: a header, a live progress line with the time left, and notes."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 10.0
"""Without a terminal, progress lines are printed at most this often."""


class Console:
    """Prints from one process and stays silent in the others.

    Args:
      silent: print nothing.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        # Without Jupyter's display a notebook gets plain lines, too, from any thread.
        self._rich = RichConsole(quiet=silent, highlight=False, markup=False, soft_wrap=True, force_jupyter=False)
        self._total = 0
        self._printed = time.monotonic()
        self._progress: Progress | None = None

    def facts(self, facts: Mapping[str, str]) -> None:
        """Prints each fact on a line of its own."""
        indent = max(map(len, facts)) + 2
        for name, value in facts.items():
            self._rich.print(f'{name:<{indent}}{value}')

    def start(self, total_steps: int, start_step: int) -> None:
        """Starts the progress bar of a run of `total_steps` steps that starts or resumes after `start_step`."""
        self._total = total_steps
        self._printed = time.monotonic()
        if is_terminal() and not self._silent:
            self._progress = Progress(
                TextColumn('step'),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn('{task.fields[status]}', markup=False),
                TimeElapsedColumn(),
                console=self._rich,
                refresh_per_second=4,
            )
            self._task = self._progress.add_task('', total=total_steps, completed=start_step, status='compiling')
            self._progress.start()

    def step(self, step: int) -> None:
        """Moves the bar to a completed step."""
        if self._progress:
            self._progress.update(self._task, completed=step)

    def status(self, step: int, text: str, seconds_per_step: float | None) -> None:
        """Shows the status of a step and the time left beside the bar; without a terminal, prints it periodically."""
        if seconds_per_step is not None:
            text += f'  {duration(seconds_per_step * (self._total - step))} left'
        if self._progress:
            self._progress.update(self._task, status=text)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS or step == self._total:
            self._printed = time.monotonic()
            self._rich.print(f'step {step}/{self._total}  {text}')

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self._rich.print(text)

    def warn(self, problem: str | None) -> None:
        """Prints a warning, if there is one."""
        if problem:
            self.note(f'warning: {problem}')

    def close(self) -> None:
        """Stops the bar where it is."""
        if self._progress:
            self._progress.stop()
            self._progress = None


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def print_json(value: Any, *, always: bool) -> None:
    """Prints a value as a line of JSON for other programs; in a terminal, only if `always`."""
    if always or not is_terminal():
        print(json.dumps(value, allow_nan=False))


def duration(seconds: float) -> str:
    """Formats a time as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f'{whole} s'
    if whole < 3600:
        return f'{whole // 60} min {whole % 60:02d} s'
    return f'{whole // 3600} h {whole % 3600 // 60:02d} min'


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Shows the progress of a task of `total` parts, once it takes more than a few seconds.

    Yields a function to call after each part.
    """
    shown = _Parts(total, what)
    try:
        yield shown.advance
    finally:
        shown.stop()


class _Parts:
    """The finished parts of a task: a bar on a terminal, or else a line every `PLAIN_SECONDS`.

    Args:
      total: the number of parts.
      what: the name of the task.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._done = total, what, 0
        self._began = self._printed = time.monotonic()
        self._bar: Progress | None = None

    def advance(self) -> None:
        """Counts a finished part."""
        self._done += 1
        now = time.monotonic()
        if self._bar is None and is_terminal() and now - self._began > 1:
            self._bar = self._started_bar()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            left = (now - self._began) / self._done * (self._total - self._done)
            print(f'{self._what}: {self._done:,} of {self._total:,}, {duration(left)} left')

    def stop(self) -> None:
        """Stops the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()

    def _started_bar(self) -> Progress:
        bar = Progress(
            TextColumn(self._what, markup=False),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(),
        )
        bar.start()
        bar.add_task('', total=self._total)
        return bar


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discards what the whole process, native code included, writes to its standard error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
