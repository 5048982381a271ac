"""Examine the environment: versions, devices, and libraries that do not fit together."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform

from risbench import __version__
from risbench.data import index

_LIGHT = ("numpy", "pandas", "pyarrow", "pycocotools", "pydantic", "typer", "matplotlib")
_TRAIN = ("torch", "torchvision", "timm", "transformers", "lightning-fabric", "safetensors", "huggingface_hub")
_MISMATCH = "torchvision::nms"  # what torchvision's operators say when they were built for another torch
_CURE = (
    "torch and torchvision do not fit together (a CPU-only torch beside the default torchvision, or two releases that "
    "do not belong together). Install both from one place: pip install --force-reinstall torch torchvision"
)


def examine() -> tuple[list[str], bool]:
    """Lines about this environment, and whether something is broken."""
    lines = [
        f"risbench {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        *(f"{name} {_version(name)}" for name in _LIGHT),
        f"cache {index.cache_folder()}",
    ]
    missing = [name for name in _TRAIN if _version(name) == "missing"]
    lines += [f"{name} {_version(name)}" for name in _TRAIN]
    if missing:
        lines.append(f"training is off: {', '.join(missing)} missing. pip install 'risbench[train]' brings them.")
        return lines, False
    problem = import_problem()
    return lines + ([f"BROKEN: {problem}"] if problem else [*_devices(), "training is on"]), bool(problem)


def import_problem() -> str:
    """Why the training libraries cannot be imported, with the cure; "" if they can."""
    for name in ("torch", "torchvision", "timm", "lightning_fabric"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken binary raises what it likes
            if _MISMATCH in str(error):
                return _CURE
            cure = f"Install it again: pip install --force-reinstall {name}"
            return f"import {name} fails ({type(error).__name__}: {error}). {cure}"
    return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _devices() -> list[str]:
    torch = importlib.import_module("torch")
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    return [f"CUDA devices: {', '.join(names) or 'none'}; CPU threads: {torch.get_num_threads()}"]
