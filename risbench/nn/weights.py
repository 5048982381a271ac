"""Pretrained weights: files are read without running code; what is missing or does not fit is an InputError."""

from __future__ import annotations

import hashlib
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
from torch import Tensor, nn

from risbench import files
from risbench.data.pretrained import Pretrained, timm_data
from risbench.errors import InputError, first_sentence
from risbench.nn.numpy_pickles import SAFE_GLOBALS

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
LIMIT = 64 * 2**30  # bytes of a file of weights, with the state of its optimiser

_log = logging.getLogger(__name__)
_COMPILED = "_orig_mod."  # torch.compile adds it wherever a compiled module stands
_PARALLEL = "module."  # DataParallel and DistributedDataParallel add it before all names
_WRAPPERS = (_PARALLEL, "model.", "network.", "net.")  # and Lightning's modules, as their authors named the network
_OTHER_WEIGHTS = "The training that made them has diverged, or the file is damaged: give other weights."
_COUNTER = "num_batches_tracked"  # of training steps; it changes no output, and older files lack it
_SHOWN = 3  # names in a message
_WHOLE = "Give those of the same network and size, all of them."
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


def read_pretrained(part: str, source: str, family: str) -> tuple[dict[str, Tensor], Pretrained]:
    """Read a file, or a model of a family of timm, into weights for a part of a network; return what they are, too.

    Raises InputError when they cannot be had, or when `source` is the name of another model.
    """
    if is_file(source):
        return read_tensors(Path(source)), of_file(part, Path(source))
    return from_timm(part, source, family)


def from_timm(
    part: str, name: str, family: str, local: str = "the path of a file"
) -> tuple[dict[str, Tensor], Pretrained]:
    """Load the weights of a model of timm; return what they are, too.

    Raises InputError when it is none of a family, or when it cannot be had; `local` is what may be given instead.
    """
    import timm  # here: masks are read without it

    is_elsewhere = ":" in name  # hf-hub:NAME
    if not timm.is_model(name) and not is_elsewhere:
        known = ", ".join(timm.list_models(family, pretrained=True)[:40])
        raise InputError(f"{name!r} is neither a weights file ({', '.join(SUFFIXES)}) nor one of {known}.")
    with explain_hub_errors(name, local):
        chosen = None if is_elsewhere else timm.models.get_pretrained_cfg(name)  # timm adds a tag to a name without one
        tensors: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    check_finite(tensors, f"timm {name}")
    full_name = f"{chosen.architecture}.{chosen.tag}" if chosen and chosen.tag else name
    data = None if is_elsewhere else timm_data(full_name)
    hashed = hash_tensors(tensors)
    return tensors, Pretrained(
        part=part, source=f"timm {full_name}", sha256=hashed, hashed="tensors", training_data=data
    )


def of_file(part: str, path: Path, limit: int = LIMIT, detail: str = "") -> Pretrained:
    """Describe a file that was loaded into a part of a network; what it was trained on is unknown."""
    return Pretrained(part=part, source=path.name, sha256=files.sha256(path, limit), hashed="file", detail=detail)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_whole(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    kind: str,
    heads: tuple[str, ...] = (),
    cure: str = _WHOLE,
) -> None:
    """Copy weights into all of a network, or into nothing of it.

    Weights whose names begin as `heads` are left out. Raises InputError, which names the first ones, when weights are
    missing, left over or of another shape or type.
    """
    state = network.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if name in state or not name.startswith(heads)}
    missing = [name for name in state if name not in tensors and not name.endswith(_COUNTER)]
    left = [name for name in tensors if name not in state]
    other = [name for name in state if name in tensors and not _are_alike(tensors[name], state[name])]
    problems = [
        f"{len(names)} {problem}, first {', '.join(names[:_SHOWN])}"
        for names, problem in (
            (missing, f"of its {len(state)} weights are missing"),
            (left, "of the file are left over"),
            ([_name_both(name, tensors[name], state[name]) for name in other], "of another shape or type"),
        )
        if names
    ]
    if problems:
        raise InputError(f"The weights {source} do not fit this {kind}: {'; '.join(problems)}. {cure}")
    network.load_state_dict(tensors, strict=False)  # all but a counter of training steps is there


def _are_alike(tensor: Tensor, expected: Tensor) -> bool:
    same_type = tensor.is_floating_point() == expected.is_floating_point()
    return _is_dense(tensor) and tensor.shape == expected.shape and same_type


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def _name_both(name: str, tensor: Tensor, expected: Tensor) -> str:
    held = describe_tensor(tensor) if _is_dense(tensor) else "no dense tensor"
    return f"{name} ({held}, here {describe_tensor(expected)})"


def describe_tensor(tensor: Tensor) -> str:
    """Describe shape and type of a tensor: 96 x 3 x 4 x 4 float32."""
    return f"{' x '.join(map(str, tensor.shape)) or 'one'} {str(tensor.dtype).removeprefix('torch.')}"


def is_file(source: str) -> bool:
    """Whether the name of weights is the path of a file, not a name of timm or of the hub."""
    return Path(source).suffix in SUFFIXES or Path(source).is_absolute() or Path(source).is_file()


def is_hub_name(source: str) -> bool:
    """Whether the name of a folder of weights is one of the hub: OWNER/NAME or NAME, and no folder here."""
    path = Path(source)
    is_path = path.exists() or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    return not is_path


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
    if not _is_dense(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
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
