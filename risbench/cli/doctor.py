"""Examine the environment: versions, devices, and libraries that do not fit together."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform

from risbench import __version__
from risbench.data import index_store

_LIGHT = ("numpy", "pandas", "pyarrow", "pycocotools", "pydantic", "typer", "matplotlib")
_TRAIN = ("torch", "torchvision", "timm", "transformers", "lightning-fabric", "safetensors", "huggingface_hub")
_MISMATCH = "torchvision::nms"  # in the error of a torchvision that was built for another torch
_CURE = (
    "torch and torchvision do not fit together (a CPU-only torch beside the default torchvision, or two releases that "
    "do not belong together). Install both from one place: pip install --force-reinstall torch torchvision"
)


def examine() -> tuple[list[str], bool]:
    """Return lines that describe this environment, and whether something is broken."""
    lines = [
        f"risbench {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        *(f"{name} {_version(name)}" for name in _LIGHT),
        f"cache {index_store.cache_folder()}",
    ]
    missing = [name for name in _TRAIN if _version(name) == "missing"]
    lines += [f"{name} {_version(name)}" for name in _TRAIN]
    if missing:
        cure = "Run pip install '.[train]' in the clone of risbench."
        lines.append(f"training is off: {', '.join(missing)} missing. {cure}")
        return lines, False
    problem = find_import_problem()
    return lines + ([f"BROKEN: {problem}"] if problem else [*_devices(), "training is on"]), bool(problem)


def find_import_problem() -> str:
    """Return why the training libraries cannot be imported, with the cure, or ""."""
    for name in ("torch", "torchvision", "timm", "lightning_fabric"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken binary may raise anything
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
