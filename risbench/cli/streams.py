"""Standard output and error: their encoding, and readers that go away."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress

READER_GONE = 128 + 13  # the exit code of a program that SIGPIPE has ended


def set_encodings() -> None:
    """Write UTF-8 to files and pipes; a terminal that lacks a character shows ?."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=stream.encoding if stream.isatty() else "utf-8", errors="replace")


def lost_reader() -> bool:
    """Whether nobody reads the pipe of standard output or error any more, as after `| head`."""
    if not hasattr(select, "poll"):  # Windows
        return False
    with suppress(OSError, ValueError):
        poll = select.poll()
        for stream in (1, 2):
            poll.register(stream, 0)  # errors only
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def silence() -> None:
    """Drop what is still to be written, so that Python does not fail at it when it ends."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
