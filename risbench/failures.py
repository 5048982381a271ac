"""Failures of the machine and of libraries that a user can mend: exceptions that become an InputError."""

from __future__ import annotations

import errno
import importlib.util
import re
import traceback
from collections.abc import Callable

from risbench.errors import InputError

_TRAINING = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "lightning_fabric",
    "safetensors",
    "huggingface_hub",
    "filelock",
)
_LIGHT = (
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "pycocotools",
    "PIL",
    "pydantic",
    "pydantic_core",
    "typer",
    "rich",
    "tabulate",
    "jinja2",
    "matplotlib",
    "psutil",
    "platformdirs",
    "tomli_w",
)
_OUT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|not enough memory|Cannot allocate memory|ALLOC_FAILED|failed to map segment"
)
_SHARED_MEMORY = re.compile(r"Bus error|out of shared memory|unable to \w+ .*</torch_.*No space left")
_FULL_DISK = re.compile("No space left on device|Disk quota exceeded|File too large|file write failed")
_KILLED_WORKER = re.compile(r"DataLoader worker .*?(killed by signal: [\w ]+|exited unexpectedly)")
_LOST_PROCESS = re.compile("closed by peer|reset by peer|NCCL.*remote|Broken pipe.*gloo|gloo.*(Timed out|Broken pipe)")
_PARSERS = ("json.", "tomllib.", "ast", "pickle", "xml.")  # modules whose recursion follows their input


class LostProcessError(InputError):
    """Another process of this run has ended."""


def translate(error: BaseException) -> InputError | None:
    """Return the error for a failure that a user can mend, such as memory that ran out, or None for a bug."""
    if isinstance(error, InputError):
        return error
    for explain in _EXPLANATIONS:
        if message := explain(error):
            return LostProcessError(message) if explain is _lost_process else InputError(message)
    return None


def _memory(error: BaseException) -> str:
    is_system_error = isinstance(error, OSError) and error.errno == errno.ENOMEM
    is_text = isinstance(error, RuntimeError | ImportError) and _OUT_OF_MEMORY.search(str(error))
    if not (isinstance(error, MemoryError) or is_system_error or is_text):
        return ""
    amount = re.search(r"allocate (?:(\d+) bytes|([\d.]+ \w+))", str(error))
    more = f" ({amount[2] or f'{int(amount[1]) / 2**30:.2f} GiB'} more were needed)" if amount else ""
    where = "Memory of the GPU" if "CUDA" in str(error) or "CUBLAS" in str(error) else "Memory"
    return (
        f"{where} ran out{more}. Training needs less with a lower train.micro_batch (train.per_image at least; "
        "the batch stays the same), prediction with a lower predict.images_per_batch, both with a lower image.size or "
        "train.workers; a machine with more helps everything."
    )


def _shared_memory(error: BaseException) -> str:
    if not (isinstance(error, RuntimeError) and _SHARED_MEMORY.search(str(error))):
        return ""
    return (
        "The shared memory of this machine (/dev/shm), through which loader processes send images, is full. Make it "
        "larger (docker run --shm-size=8g), or read without loader processes: train.workers=0."
    )


def _killed_worker(error: BaseException) -> str:
    match = _KILLED_WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    return lost_loader(match[1]) if match else ""


def lost_loader(how: str) -> str:
    """Say what a loader process is stopped by most often."""
    return (
        f"A loader process was stopped from outside ({how}), most often because memory ran out: lower train.workers, "
        "or read without loader processes (train.workers=0)."
    )


def _limits(error: BaseException) -> str:
    if "Too many open files" in str(error):
        return "Too many files are open: raise the limit (ulimit -n 65536), or lower train.workers."
    no_fork = isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN
    if no_fork or "can't start new thread" in str(error):
        return (
            "No further process or thread can be started: raise the limit of this user or container (ulimit -u, docker "
            "run --pids-limit) or of memory (ulimit -v), or lower train.workers."
        )
    return ""


def _lost_process(error: BaseException) -> str:
    is_lost = isinstance(error, RuntimeError) and _LOST_PROCESS.search(str(error).replace("\n", " "))
    if not (is_lost or type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")):
        return ""
    return "Another process of this run has ended: see its message, or that of the launcher (killed for memory?)."


def _library(error: BaseException) -> str:
    """Explain a library that is missing, broken, or of another version than its neighbours."""
    name = (getattr(error, "name", "") or "") if isinstance(error, ImportError) else ""
    root = name.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and root not in ("", "risbench", "methods") and not _is_there(root):
        how = "pip install '.[train]' in the clone of risbench" if root in _TRAINING else f"pip install {root}"
        return f"This command needs {root}: run {how}."
    broken = root if root in (*_TRAINING, *_LIGHT) else _failed_import(error)
    if not broken:
        return ""
    reason = " ".join(str(error).split())
    return f"import {broken} fails ({type(error).__name__}: {reason}). Run risbench doctor: it says how to mend it."


def _is_there(root: str) -> bool:
    try:
        return importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):  # its parent is broken, or it was put into sys.modules by hand
        return False


def _failed_import(error: BaseException) -> str:
    """Return the library whose modules were being imported when the error was raised, or ""."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and root in (*_TRAINING, *_LIGHT):
            return root
    return ""


def _home(error: BaseException) -> str:
    text = str(error)
    if "determine home directory" not in text and "getpwuid" not in text and "No username set" not in text:
        return ""
    return "This user has no home folder and no name here: set HOME, USER and RISBENCH_CACHE, for example to /tmp."


def _encoding(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        shown = error.object[error.start : error.start + 8]
        return f"A text file that was read is not UTF-8: {shown!r} at byte {error.start}. Save it as UTF-8."
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        shown = error.object[:200].encode(errors="backslashreplace")
        return f"A path or a text is not UTF-8: '{shown.decode()}'. Rename the folder or file, or mend the text."
    return ""


def _nesting(error: BaseException) -> str:
    """Explain a recursion that follows the input of a parser, not one of our own."""
    frames = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not (isinstance(error, RecursionError) and frames and f"{frames[-1]}.".startswith(_PARSERS)):
        return ""
    return "A file or an override that was read is nested too deeply: give another one."


def _disk(error: BaseException) -> str:
    """Explain a full disk as libraries that are not written in Python tell of it."""
    if isinstance(error, OSError) or not _FULL_DISK.search(str(error)):
        return ""
    return f"A file cannot be written ({' '.join(str(error).split())}). Free space, or give another place."


def _operating_system(error: BaseException) -> str:
    if not isinstance(error, OSError):
        return ""
    path = f"{error.filename}: " if error.filename else ""
    return f"{path}{error.strerror or error}. Give a path that can be read and written, or free space."


_EXPLANATIONS: tuple[Callable[[BaseException], str], ...] = (
    _shared_memory,
    _killed_worker,
    _memory,
    _limits,
    _lost_process,
    _library,
    _home,
    _encoding,
    _nesting,
    _disk,
    _operating_system,
)
