"""Signals that stop a command: Ctrl-C, SIGTERM (Slurm, docker stop) and SIGHUP (a terminal that was closed).

The first one raises KeyboardInterrupt, so that temporary files are removed and locks are released; later ones change
nothing. A thread ends the process where that takes longer, for example within a long call of C code. This module
imports the standard library only: it is at work while everything else is imported.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from risbench.cli import processes

SECONDS = 1.2  # until a process that does not end by itself is ended

_NAMES = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}
_STOPS = {number: _NAMES[number.name] for number in signal.Signals if number.name in _NAMES}

_received: int | None = None
_next_step = "Repeat the same command."
_ending = threading.Lock()


def install() -> None:
    """Let signals stop this process in good order; one that is ignored, as under nohup, stays ignored."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_inheritable(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    os.register_at_fork(after_in_child=_leave_to_parent)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals").start()


def received() -> bool:
    """Whether a signal has asked this process to stop."""
    return _received is not None


def propose(command: Sequence[str], then: str = "") -> None:
    """Set the command that goes on with the work; it is printed when a signal stops this process."""
    global _next_step
    _next_step = f"Go on with: {shlex.join(command)}{then}"


def end() -> NoReturn:
    """Say how to go on, and end this process with its children; its exit code is 128 + the signal's number."""
    _ending.acquire()  # never released: this thread ends the process
    number = _received or signal.SIGTERM
    if processes.is_main() and not processes.have_failed():
        with suppress(OSError):
            os.write(2, f"Stopped by {_STOPS[signal.Signals(number)]}. {_next_step}\n".encode(errors="replace"))
    leave(128 + number)


def leave(code: int) -> NoReturn:
    """End this process and its children at once, without what Python and libraries do at their end."""
    with suppress(Exception):  # whatever happens here, the process ends
        import psutil

        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    if threading.current_thread() is threading.main_thread():  # who may hold the locks of the streams
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a pipe that nobody reads any more
                stream.flush()
    os._exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is None:
        _received = number
        sys.unraisablehook = lambda _: None  # errors from here on follow from the stop
        if hasattr(signal, "SIGCHLD"):  # torch raises an error when a loader process ends
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt


def _leave_to_parent() -> None:
    """In a forked process: the parent, which the same Ctrl-C has reached, stops its children."""
    signal.set_wakeup_fd(-1)
    for number, name in _STOPS.items():
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL if name == "SIGTERM" else signal.SIG_IGN)


def _watch(reader: int) -> None:
    """Wait for a signal, and then for the end of the process: this thread runs even if the main thread is in C code."""
    global _received
    while (number := os.read(reader, 1)[0]) not in _STOPS:
        pass
    ended = threading.Event()
    ended.wait(SECONDS)
    _received = _received or number
    if _ending.locked():  # the main thread is at it
        ended.wait(0.3)
        os._exit(128 + number)
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\r\x1b[2K\x1b[?25h")  # remove the bar, show the cursor
    end()
