"""Read a pickle of plain data without running anything in it.

A pickle is a program: it may import any function and call it. Users download the pickled annotations of the `refer`
layout from mirrors, so only plain containers, strings and numbers are accepted here.
"""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

from risbench.errors import InputError


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that refuses every import, so that the pickle cannot call a function."""

    def find_class(self, module: str, name: str) -> Any:
        raise InputError(f"it wants to import {module}.{name}, which plain annotations never need. Nothing was run")

    def persistent_load(self, pid: Any) -> Any:
        raise InputError("it refers to objects outside the file, which plain annotations never do")


def load(path: Path) -> Any:
    """Read plain containers, strings and numbers; byte strings of Python 2 are decoded as UTF-8, else as latin-1."""
    data = path.read_bytes()
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors=_latin1.__name__).load()
    except InputError as refusal:
        reason = str(refusal)
    except Exception as error:  # pickle documents no fixed set of exceptions for a damaged file
        reason = f"it is damaged or no pickle ({type(error).__name__}: {error})"
    raise InputError(f"{path} was refused: {reason}. Fetch the file again from a source that you trust.")


def _latin1(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are not UTF-8 as latin-1."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error(_latin1.__name__, _latin1)
