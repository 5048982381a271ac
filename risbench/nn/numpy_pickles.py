"""NumPy numbers and arrays in a torch pickle: what torch's restricted reader calls in place of NumPy's own functions.

NumPy's functions would make objects of any type that a file names, Python objects and records included. These make
numbers, and arrays of numbers, only.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}


class Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, name: Any, align: Any = False, copy: Any = True) -> None:
        if name not in _NUMBERS:
            raise pickle.UnpicklingError(f"it holds NumPy data of the type {name!r}, no numbers")
        self.numpy = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Take the order of bytes, the only part of the state that a type of numbers has."""
        self.numpy = self.numpy.newbyteorder(state[1])


class Array(np.ndarray[Any, Any]):
    """Stands for numpy.ndarray."""

    def __setstate__(self, state: Any) -> None:
        """Take the shape, type, order of axes and bytes of an array."""
        _, shape, dtype, in_columns, content = state
        if not isinstance(dtype, Dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds a NumPy array that is not made of numbers")
        super().__setstate__((1, shape, dtype.numpy, in_columns, content))


def reconstruct(cls: Any, shape: Any, type_code: Any) -> Array:
    """Stand for numpy._core.multiarray._reconstruct: an empty array, whose content its state holds."""
    return Array((0,), np.uint8)


def scalar(dtype: Any, content: Any) -> bool | int | float | complex:
    """Stand for numpy._core.multiarray.scalar."""
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes) or len(content) != dtype.numpy.itemsize:
        raise pickle.UnpicklingError("it holds a NumPy scalar that is no number")
    number: bool | int | float | complex = np.frombuffer(content, dtype.numpy)[0].item()
    return number


def empty_bytes() -> bytes:
    """Stand for bytes, which is called for the content of an empty array; with a number it would take memory."""
    return b""


# For torch.serialization.safe_globals, under the names that NumPy 1 and NumPy 2 write.
SAFE_GLOBALS: list[tuple[Callable[..., Any], str]] = [
    (Dtype, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    (empty_bytes, "builtins.bytes"),
    *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
