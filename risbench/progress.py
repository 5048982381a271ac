"""Progress on the terminal: bars with the rate and the time left, and lines about what was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


@contextmanager
def bar(label: str, total: int, shown: bool = True) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr while it is a terminal; call what it gives after each of `total` pieces."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    disable = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=disable, transient=True, speed_estimate_period=60) as drawn:
        task = drawn.add_task(label, total=total)
        yield lambda: drawn.advance(task)


def say(line: str) -> None:
    """Print a line to stderr."""
    console.print(line, markup=False)
