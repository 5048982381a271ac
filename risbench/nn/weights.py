"""Pretrained weights: files are read without running code; what is missing or does not fit is an InputError."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from risbench import files
from risbench.errors import InputError, first_sentence
from risbench.nn.numpy_pickles import SAFE_GLOBALS

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
LIMIT = 64 * 2**30  # bytes of a file of weights, with the state of its optimiser

_log = logging.getLogger(__name__)
_COMPILED = "_orig_mod."  # torch.compile adds it wherever a compiled module stands
_PARALLEL = "module."  # DataParallel and DistributedDataParallel add it before all names
_WRAPPERS = (_PARALLEL, "model.", "network.", "net.")  # and Lightning's modules, as their authors named the network
_OTHER_WEIGHTS = "The training that made them has diverged, or the file is damaged: give other weights."
_CONTAINERS = ("model", "state_dict", "module", "network", "net")  # under which training scripts store the weights


def read(path: Path, allowed: Sequence[type] = (), contents: str = "weights") -> dict[str, Any]:
    """Read a dictionary from a safetensors file or a torch pickle of tensors, plain values and NumPy's numbers.

    A pickle may hold no classes but those in `allowed`. Tensors stay on the disk until they are used, so that the state
    of an optimiser costs no memory. Raises InputError when the file is missing, damaged, refused or no dictionary; its
    message calls what the file should hold `contents`.
    """
    _check_kind(path, contents)
    try:
        if _has_safetensors_header(path) or path.suffix == ".safetensors":
            return cast(dict[str, Any], load_file(path))
        with torch.serialization.safe_globals([*SAFE_GLOBALS, *allowed]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is refused: {_refusal(error, contents)}") from None
    except Exception as error:  # damaged bytes make torch's reader raise many classes
        raise InputError(
            f"{path} cannot be read ({first_sentence(error)}). It is damaged: download it again."
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of {contents}. Give another file.")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the weights of one network, without what wraps them. Raises InputError if they are not finite numbers."""
    content = read(path)
    containers = [key for key in _CONTAINERS if isinstance(content.get(key), Mapping)]
    if len(containers) > 1:
        raise InputError(f"{path} holds weights in {' and in '.join(containers)}: give a file with one of them.")
    tensors, line = without_wrappers(content[containers[0]] if containers else content, str(path))
    if line:
        _log.warning(line)
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: {key} is a {type(value).__name__}, no weight. Give a file of weights alone.")
    check_finite(tensors, str(path))
    return tensors


def from_timm(name: str, family: str) -> dict[str, Tensor]:
    """Load the weights of a model of timm. Raises InputError when it is none of a family, or when it cannot be had."""
    import timm  # here: masks are read without it

    if not timm.is_model(name) and ":" not in name:  # hf-hub:NAME
        known = ", ".join(timm.list_models(family, pretrained=True)[:40])
        raise InputError(f"{name!r} is neither a weights file ({', '.join(SUFFIXES)}) nor one of {known}.")
    with explain_hub_errors(name):
        tensors: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    check_finite(tensors, f"timm {name}")
    return tensors


def is_file(source: str) -> bool:
    """Whether the name of weights is the path of a file, not a name of timm or of the hub."""
    return Path(source).suffix in SUFFIXES or Path(source).is_absolute() or Path(source).is_file()


def without_wrappers(tensors: Mapping[Any, Any], source: str) -> tuple[dict[str, Any], str]:
    """Return weights without what wrappers such as DataParallel add to every name, and a line that says so, or "".

    NumPy's arrays become tensors. Raises InputError when it is not clear which weights are meant.
    """
    names = {str(key): str(key).replace(_COMPILED, "") for key in tensors}
    removed = [_COMPILED] if any(key != name for key, name in names.items()) else []
    while wrapper := next((w for w in _WRAPPERS if names and all(n.startswith(w) for n in names.values())), ""):
        names = {key: name.removeprefix(wrapper) for key, name in names.items()}
        removed.append(wrapper)
    doubled = [name for name, count in Counter(names.values()).items() if count > 1]
    wrapped = [name for name in names.values() if name.startswith(_PARALLEL)]
    if doubled or wrapped:
        which = f"{doubled[0]} is there with and without {_COMPILED}" if doubled else ""
        which = which or f"{len(wrapped)} of {len(names)} names begin with {_PARALLEL}, and the others do not"
        raise InputError(f"{source}: {which}. Save the weights of one network, and give that file.")
    line = f"{source}: left out of the names of the weights: {' '.join(removed)}" if removed else ""
    return {names[str(key)]: _as_tensor(value) for key, value in tensors.items()}, line


def check_finite(tensors: Mapping[str, Tensor], source: str, cure: str = _OTHER_WEIGHTS) -> None:
    """Refuse weights that are NaN or infinite."""
    wrong = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if wrong:
        raise InputError(
            f"{source}: {len(wrong)} of {len(tensors)} weights hold NaN or infinite numbers, first {wrong[0]}. {cure}"
        )


@contextmanager
def explain_hub_errors(name: str, local: str = "the path of a file") -> Iterator[None]:
    """Raise InputError for any error of the hub's clients, which raise many classes; `local` is what may be given."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"The pretrained weights {name} cannot be loaded ({type(error).__name__}). Connect to the Hugging Face hub "
            f"or a mirror (HF_ENDPOINT) once, give {local}, or model.pretrained=false to train from scratch."
        ) from None


def misfit(source: str, network: str, error: Exception) -> InputError:
    """Return the error for weights that torch could not load into a network; the last line of its message says why."""
    reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
    return InputError(f"The weights {source} do not fit this {network}: {reason}. Give those of its size.")


def _check_kind(path: Path, contents: str) -> None:
    """Refuse what is no file of weights, and say what it is."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, no {contents} file. Give the path of the file in it.")
    if not path.exists():
        raise InputError(f"There is no {contents} file {path}. Give the path of a file.")
    files.check_regular(path, LIMIT)
    kind = "" if _has_safetensors_header(path) else files.foreign_kind(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            kind = "a TorchScript archive, which holds code. Save its state_dict() with torch.save, and give that file."
        elif any(name.endswith("/data.pkl") for name in names):
            kind = "a file of torch.save. Rename it to end in .pth." if path.suffix == ".safetensors" else ""
    elif kind.startswith("a zip"):
        kind = "cut off: its download or copy did not end. Fetch it again."
    if kind:
        raise InputError(f"{path} is {kind}")


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _has_safetensors_header(path: Path) -> bool:
    """Whether a file holds JSON behind its length."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _is_finite(tensor: Tensor) -> bool:
    has_numbers = tensor.layout == torch.strided and tensor.device.type != "meta"
    if not has_numbers or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool((tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite().all())


def _refusal(error: pickle.UnpicklingError, contents: str) -> str:
    """Say what torch's restricted reader refused, and what it reads."""
    name, reason = re.search(r"GLOBAL (\S+)", str(error)), re.search(r"it holds .*", str(error))
    held = f"it holds {name[1]}" if name else reason[0] if reason else "it is damaged, or was not written by torch.save"
    return (
        f"{held}. Only tensors, NumPy's numbers and plain values are read, and nothing in it was run: give a file of "
        f"{contents} as torch.save writes it."
    )
