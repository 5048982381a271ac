"""Read a pickle of plain data without running anything in it.

A pickle is a program: it may import any function and call it. The annotations of the `refer` layout are pickles that
users fetch from mirrors, so only the opcodes for plain containers, strings and numbers are admitted here.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from risbench.errors import InputError


class _Plain(pickle.Unpickler):
    """An unpickler that imports nothing, so that nothing can be called."""

    def find_class(self, module: str, name: str) -> Any:
        raise InputError(f"it wants to import {module}.{name}, which plain annotations never need. Nothing was run")

    def persistent_load(self, pid: Any) -> Any:
        raise InputError("it refers to objects outside the file, which plain annotations never do")


def load(path: Path) -> Any:
    """Read plain containers, strings and numbers; Python 2 byte strings become str (UTF-8, else latin-1)."""
    data = path.read_bytes()
    try:
        return _decoded(_Plain(io.BytesIO(data), encoding="bytes").load(), {})
    except InputError as refusal:
        reason = str(refusal)
    except Exception as error:  # the pickle module promises no fixed set of exceptions for a damaged file
        reason = f"it is damaged or no pickle ({type(error).__name__}: {error})"
    raise InputError(f"{path} was refused: {reason}. Fetch the file again from a source that you trust.")


def _decoded(value: Any, done: dict[int, Any]) -> Any:
    """Copy `value` with every byte string decoded; containers that occur twice stay shared."""
    if isinstance(value, bytes):
        return _text(value)
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return value
    if id(value) not in done:
        done[id(value)] = None  # a container that holds itself ends here
        if isinstance(value, dict):
            done[id(value)] = {_decoded(k, done): _decoded(v, done) for k, v in value.items()}
        else:
            done[id(value)] = type(value)(_decoded(item, done) for item in value)
    return done[id(value)]


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
