"""Progress on stderr: bars with the rate and the time left, and lines about finished steps.

Where stderr is no terminal, such as a log file, a bar is a line a minute.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)

_SECONDS = 60.0  # between two lines of a log file
_displays: list[Progress] = []  # at most one: a bar within another one is a second row of its display


class Bar:
    """The steps of a work; call it after each of them."""

    def __init__(self, display: Progress, task: TaskID, prints_lines: bool) -> None:
        self._display, self._task, self._prints_lines = display, task, prints_lines
        self._due = time.monotonic() + _SECONDS

    def __call__(self) -> None:
        self._display.advance(self._task)
        if self._prints_lines and time.monotonic() >= self._due:
            self._due = time.monotonic() + _SECONDS
            [task] = (task for task in self._display.tasks if task.id == self._task)
            done = f"{task.description} {task.completed:,.0f} of {task.total:,.0f}"
            print_line(f"{done}, {_rate(task)}, {_time_left(task)} left")

    def rename(self, label: str) -> None:
        """Change what stands before the steps."""
        self._display.update(self._task, description=label)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task))


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_time_left(task))


def _rate(task: Task) -> str:
    """Return the steps per second of the last minute."""
    return f"{task.speed:.1f}/s" if task.speed else "-/s"


def _time_left(task: Task) -> str:
    """Estimate the time left from all the time so far: it counts what happens between steps, such as a validation."""
    steps = task.completed - task.fields["done"]
    if not (steps and task.remaining is not None and task.elapsed is not None):
        return "-:--:--"
    return str(timedelta(seconds=round(task.elapsed / steps * task.remaining)))


@contextmanager
def bar(label: str, total: int, shown: bool = True, done: int = 0) -> Iterator[Bar]:
    """Show a bar of `total` steps, of which some may be `done` before; yield it, to be called after each other one."""
    is_terminal = console.is_terminal and not console.is_dumb_terminal
    with _display(shown and is_terminal) as display:
        task = display.add_task(label, total=total, completed=done, done=done)
        try:
            yield Bar(display, task, shown and not is_terminal)
        finally:
            display.remove_task(task)


@contextmanager
def _display(shown: bool) -> Iterator[Progress]:
    """Yield the display of the bar around this one, or a new one."""
    if _displays:
        yield _displays[0]
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), _TimeLeft())
    display = Progress(
        *columns,
        console=console,
        disable=not shown,
        transient=True,
        speed_estimate_period=_SECONDS,
        get_time=lambda: time.monotonic(),  # looked up at each call
    )
    with display:
        _displays.append(display)
        try:
            yield display
        finally:
            _displays.clear()


def print_line(line: str) -> None:
    """Print a line to stderr."""
    console.print(line, markup=False)
