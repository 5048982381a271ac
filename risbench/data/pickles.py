"""Read a pickle of plain data without running anything in it.

A pickle is a program: it may import any function and call it. Users download the pickled annotations of the `refer`
layout from mirrors, so only lists, dictionaries, strings and numbers are accepted here. Tuples and sets are not: a
nested one that holds itself many times takes for ever to hash.
"""

from __future__ import annotations

import codecs
import io
import pickle
import pickletools
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from risbench import files
from risbench.errors import InputError

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_COUNTED = {  # opcodes whose argument begins with its length, of so many bytes
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_CURE = "Fetch the file again from a source that you trust."
_REFUSED = {
    **dict.fromkeys(("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), "a tuple"),
    **dict.fromkeys(("EMPTY_SET", "FROZENSET"), "a set"),
}
_REFUSED_BY_LOADER = {"GLOBAL", "INST", "STACK_GLOBAL", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that refuses every import, so that the pickle cannot call a function."""

    def find_class(self, module: str, name: str) -> Any:
        wants = f"it wants to import {module}.{name}, which plain annotations never need"
        raise InputError(f"{wants}. Nothing was run. {_CURE}")

    def persistent_load(self, pid: Any) -> Any:
        raise InputError(f"it refers to objects outside the file, which plain annotations never do. {_CURE}")


def load(path: Path) -> Any:
    """Read lists, dictionaries, strings and numbers; byte strings of Python 2 are decoded as UTF-8, else as latin-1."""
    data = files.read_bytes(path, files.DATA_LIMIT)
    try:
        _check_opcodes(data)
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors=_latin1.__name__).load()
    except InputError as refusal:
        raise InputError(f"{path} was refused: {refusal}") from None
    except Exception as error:  # pickle documents no fixed set of exceptions for a damaged file
        if kind := files.foreign_kind(path, text=True):
            raise InputError(f"{path} is no pickle but {kind}") from None
        reason = f"it is damaged or no pickle ({type(error).__name__}: {error})"
        raise InputError(f"{path} was refused: {reason}. {_CURE}") from None


def _ordinary_opcodes() -> re.Pattern[bytes]:
    """Return a pattern of opcodes, with arguments, that need no look: hardly any of their arguments can be wrong."""
    codes: dict[int, bytes] = defaultdict(bytes)  # by the bytes of the argument, or UP_TO_NEWLINE
    for opcode in pickletools.opcodes:
        length = opcode.arg.n if opcode.arg else 0
        if length not in _COUNTED and opcode.name not in (*_REFUSED, *_REFUSED_BY_LOADER, "STOP", "PUT", "LONG_BINPUT"):
            codes[length] += opcode.code.encode("latin-1")
    lines = codes.pop(pickletools.UP_TO_NEWLINE)
    fixed = (b"[%b].{%d}" % (re.escape(group), length) for length, group in codes.items())
    low_places = (b"r..[\\0-\\x1f]\\0", b"p[0-9]{1,6}\n")  # see _check_place
    alternatives = b"|".join((*fixed, *low_places, b"[%b][^\n]*+\n" % re.escape(lines)))
    return re.compile(b"(?:%b)*+" % alternatives, re.DOTALL)


_ORDINARY = _ordinary_opcodes()


def _check_opcodes(data: bytes) -> None:
    """Refuse what the unpickler could not bound: tuples, sets, and places in its memory that fill the memory."""
    at = 0
    while at < len(data):
        ordinary = _ORDINARY.match(data, at)
        assert ordinary
        at = ordinary.end()
        at += _check_opcode(data, at) if at < len(data) else 0


def _check_opcode(data: bytes, at: int) -> int:
    """Return the bytes of an opcode with its argument; where the unpickler stops, those up to the end."""
    opcode = _OPCODES.get(data[at])
    if opcode is None or opcode.name == "STOP" or opcode.name in _REFUSED_BY_LOADER:
        return len(data)
    if opcode.name in _REFUSED:
        raise InputError(f"it holds {_REFUSED[opcode.name]}. Write lists and dictionaries only, or JSON.")
    assert opcode.arg
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        end = data.find(b"\n", at) + 1 or len(data)
        if opcode.name == "PUT":
            _check_place(int(data[at + 1 : end]), data)
        return end - at
    if opcode.name == "LONG_BINPUT":
        _check_place(int.from_bytes(data[at + 1 : at + 5], "little"), data)
        return 5
    digits = _COUNTED[opcode.arg.n]
    return 1 + digits + int.from_bytes(data[at + 1 : at + 1 + digits], "little")


def _check_place(place: int, data: bytes) -> None:
    """Refuse a place beyond those that so many bytes can fill: the unpickler clears all places up to it."""
    if place > len(data):
        raise ValueError(f"object {place} of {len(data)} bytes")


def _latin1(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are not UTF-8 as latin-1."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error(_latin1.__name__, _latin1)
