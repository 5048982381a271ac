"""Pretrained weights: files are read without running code; what is missing or does not fit is an InputError."""

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


def read(path: Path, allowed: Sequence[type] = (), contents: str = "weights") -> dict[str, Any]:
    """Read a dictionary from a safetensors file or a torch pickle of tensors and plain values.

    A pickle may hold no classes but those in `allowed`. Tensors stay on the disk until they are used, so that the state
    of an optimiser costs no memory. Raises InputError when the file is missing, damaged, refused or no dictionary; its
    message calls what the file should hold `contents`.
    """
    if not path.is_file():
        raise InputError(f"There is no {contents} file {path}. Give the path of a file.")
    try:
        if path.suffix == ".safetensors":
            return cast(dict[str, Any], load_file(path))
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: {_reason(error)} Nothing in it was run; give a file of {contents}."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({_reason(error)}). It is damaged: download it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of {contents}. Give another file.")
    return content


@contextmanager
def explain_hub_errors(name: str) -> Iterator[None]:
    """Raise InputError for any error of the hub's clients, which raise many classes."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"The pretrained weights {name} cannot be loaded ({type(error).__name__}). Connect to the Hugging Face hub "
            "or a mirror (HF_ENDPOINT) once, give the path of a file, or model.pretrained=false to train from scratch."
        ) from None


def misfit(source: str, network: str, error: Exception) -> InputError:
    """Return the error for weights that torch could not load into a network; the last line of its message says why."""
    reason = str(error).strip().splitlines()[-1].strip()
    return InputError(f"The weights {source} do not fit this {network}: {reason} Give those of its size.")


def _reason(error: Exception) -> str:
    """Return the line of torch's message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else repr(error)
    )
