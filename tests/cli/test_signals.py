"""Signals stop a process in good order: in Python, where the error is swallowed, and while it is imported."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

START = "import os, signal, sys, time; from risbench.cli import signals; signals.install(); "
ASLEEP = "print('ready', flush=True); time.sleep(60)"


def with_default_signals() -> None:
    """Undo what a shell does for a background job, or nohup: they have its processes ignore signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def stop(program: str, number: int, *more: int) -> tuple[int, str]:
    """Start a Python program, wait for its first line, and send it signals; return its exit code and its errors."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=with_default_signals,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    children = psutil.Process(process.pid).children()
    for each in (number, *more):
        process.send_signal(each)
    errors = process.communicate(timeout=30)[1]
    assert line == "ready\n" and psutil.wait_procs(children, timeout=10)[1] == []
    return process.returncode, errors


AT_THE_END = "\nfinally:\n    signals.end()"


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_a_signal_ends_the_process_and_says_how_to_go_on(number: int, code: int, name: str) -> None:
    propose = "signals.propose(['risbench', 'run', '--resume', 'my runs/1'], ', then x')"
    program = f"{START}{propose}\ntry:\n    {ASLEEP}{AT_THE_END}"
    expected = f"Stopped by {name}. Go on with: risbench run --resume 'my runs/1', then x\n"
    assert stop(program, number) == (code, expected)


def test_further_signals_change_nothing() -> None:
    """The system may deliver signals in another order than they were sent in."""
    program = f"{START}\ntry:\n    {ASLEEP}{AT_THE_END}"
    code, errors = stop(program, signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    ends = {130: "Stopped by Ctrl-C. Repeat the same command.\n", 143: "Stopped by SIGTERM. Repeat the same command.\n"}
    assert errors == ends[code]


def test_a_stop_that_is_swallowed_still_ends_the_process() -> None:
    program = f"{START}\ntry:\n    {ASLEEP}\nexcept KeyboardInterrupt:\n    time.sleep(60)"
    assert stop(program, signal.SIGTERM) == (143, "Stopped by SIGTERM. Repeat the same command.\n")


def test_children_are_stopped_with_the_process() -> None:
    fork = (
        "import multiprocessing; multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)).start(); "
    )
    assert stop(f"{START}{fork}\ntry:\n    {ASLEEP}{AT_THE_END}", signal.SIGTERM)[0] == 143


def test_what_fails_after_a_stop_is_not_printed() -> None:
    failing = "class A:\n    def __del__(self): raise RuntimeError\n"
    program = f"{START}\n{failing}a = A()\ntry:\n    {ASLEEP}\nfinally:\n    del a\n    signals.end()"
    assert stop(program, signal.SIGINT)[1] == "Stopped by Ctrl-C. Repeat the same command.\n"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup, and for Ctrl-C in a job that a shell script runs in the background."""
    program = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {START}\ntry:\n    {ASLEEP}{AT_THE_END}"
    assert stop(program, signal.SIGHUP, signal.SIGTERM)[0] == 143


def test_a_later_process_of_several_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert stop(f"{START}\ntry:\n    {ASLEEP}{AT_THE_END}", signal.SIGTERM) == (143, "")


def test_ctrl_c_while_torch_is_imported_is_one_line() -> None:
    program = f"{START}\ntry:\n    print('ready', flush=True)\n    import torch, timm\n    time.sleep(60){AT_THE_END}"
    assert stop(program, signal.SIGINT) == (130, "Stopped by Ctrl-C. Repeat the same command.\n")
