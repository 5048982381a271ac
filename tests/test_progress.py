"""Bars and lines of progress, with a clock that the tests set."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from risbench import progress


class Clock:
    """A clock that stands still until it is moved."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], io.StringIO]:
    """Set what stderr is, a terminal or not, and return what is written to it."""

    def make(is_terminal: bool) -> io.StringIO:
        file = io.StringIO()
        monkeypatch.setattr(
            progress, "console", Console(file=file, force_terminal=is_terminal, width=100, highlight=False)
        )
        return file

    return make


def test_a_log_file_gets_a_line_a_minute(clock: Clock, stream: Callable[[bool], io.StringIO]) -> None:
    """Two steps a second, of a run of 18 epochs of 100 steps of which one is done."""
    file = stream(False)
    with progress.bar("", 1800, done=100) as bar:
        bar.rename("epoch 2/18, step")
        for _ in range(300):
            clock.now += 0.5
            bar()
    assert file.getvalue().splitlines() == [
        "epoch 2/18, step 220 of 1,800, 2.0/s, 0:13:10 left",
        "epoch 2/18, step 340 of 1,800, 2.0/s, 0:12:10 left",
    ]


def test_the_time_left_counts_what_happens_between_steps(clock: Clock, stream: Callable[[bool], io.StringIO]) -> None:
    """After 10 steps of 1 s and a validation of 30 s, the 30 other steps take three times 40 s."""
    file = stream(False)
    with progress.bar("epoch", 40) as bar:
        for _ in range(10):
            clock.now += 1
            bar()
        with progress.bar("val", 3) as step:
            for _ in range(3):
                clock.now += 10
                step()
        clock.now += 40
        bar()
    [line] = file.getvalue().splitlines()
    assert line.startswith("epoch 11 of 40,") and line.endswith(f", 0:03:{round(80 / 11 * 29) - 180:02d} left")


def test_a_work_of_less_than_a_minute_prints_no_line(clock: Clock, stream: Callable[[bool], io.StringIO]) -> None:
    file = stream(False)
    with progress.bar("val", 59) as bar:
        for _ in range(59):
            clock.now += 1
            bar()
    assert file.getvalue() == ""


def test_a_process_that_shows_nothing_prints_no_line(clock: Clock, stream: Callable[[bool], io.StringIO]) -> None:
    for is_terminal in (False, True):
        file = stream(is_terminal)
        with progress.bar("val", 9, shown=False) as bar:
            clock.now += 1000
            bar()
        assert file.getvalue() == ""


def test_a_terminal_has_one_row_for_each_bar_and_lines_above(
    clock: Clock, stream: Callable[[bool], io.StringIO]
) -> None:
    file = stream(True)
    with progress.bar("epoch 1/2, step", 40, done=20) as bar:
        for _ in range(5):
            clock.now += 60
            bar()
        with progress.bar("val", 3) as step:
            clock.now += 60
            step()
            progress.print_line("a line")
            progress._displays[0].refresh()
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).split("a line")[-1]
    outer, inner = shown.strip().splitlines()[-2:]
    assert re.search(r"^epoch 1/2, step .* 25/40 +0\.0/s +0:18:00$", outer.strip())
    assert re.search(r"^val .* 1/3 +-/s +0:02:00$", inner.strip())
    assert "left" not in file.getvalue()


def test_a_bar_after_a_failed_one_is_shown(clock: Clock, stream: Callable[[bool], io.StringIO]) -> None:
    stream(True)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), progress.bar("epoch", 2), progress.bar("val", 2):
            assert len(progress._displays) == 1
            raise KeyboardInterrupt
        assert progress._displays == []
