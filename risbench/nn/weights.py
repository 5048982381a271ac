"""Weights files of others, read without running what they hold."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from risbench.errors import InputError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def read(path: Path, allowed: Sequence[type] = (), what: str = "weights") -> dict[str, Any]:
    """Read a dictionary from a safetensors file or a torch pickle of tensors and plain values.

    Errors call its contents `what`. Classes in a pickle are refused except those in `allowed`. Tensors stay on the disk
    until they are used, so that the state of an optimiser costs no memory. Raises InputError.
    """
    if not path.is_file():
        raise InputError(f"There is no {what} file {path}. Give the path of a file.")
    try:
        if path.suffix == ".safetensors":
            return cast(dict[str, Any], load_file(path))
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is refused: {_reason(error)} Nothing in it was run; give a file of {what}.") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({_reason(error)}). It is damaged: download it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of {what}. Give another file.")
    return content


@contextmanager
def from_hub(name: str) -> Iterator[None]:
    """Turn what the hub's clients raise, which is of many kinds, into one sentence."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"The pretrained weights {name} cannot be had ({type(error).__name__}). Connect to the Hugging Face hub "
            "or a mirror (HF_ENDPOINT) once, give the path of a file, or model.pretrained=false to train from scratch."
        ) from None


def _reason(error: Exception) -> str:
    """The line of torch's long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else repr(error)
    )
