"""Progress on stderr: bars with the rate and the time left, and lines about finished steps."""

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
    """Show a bar if stderr is a terminal; yield a function to call after each of `total` steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    disable = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=disable, transient=True, speed_estimate_period=60) as display:
        task = display.add_task(label, total=total)
        yield lambda: display.advance(task)


def print_line(line: str) -> None:
    """Print a line to stderr."""
    console.print(line, markup=False)
