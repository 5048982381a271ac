"""Files: written whole or not at all, and read only if they are regular files of a bounded size.

A file or folder is written under a temporary name beside its place, synced to the disk and renamed, so that a crash or
a power cut leaves the old one or the new one. The temporary name holds the process, so that what a killed process left
behind is removed by the next writer of the same path, or by `sweep`.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import secrets
import shutil
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from risbench.errors import InputError

TEXT_LIMIT = 64 * 2**20  # bytes of a card, recipe, record, baseline, plan or run.toml
DATA_LIMIT = 4 * 2**30  # bytes of an annotation or predictions file; COCO's largest JSON has 0.4 GiB

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file or folder written there takes its place when the block ends.

    Parent folders are made. A folder takes no place that is taken. Raises InputError, and leaves `path` as it was, if
    it cannot be written, for example because the disk is full.
    """
    path = path.resolve()  # a link stays a link to the new file
    new = _temporary(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a device or a pipe, no regular file: give the path of a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        yield new
        sync(new)
        os.replace(new, path)
        _sync_entries(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        _remove(new)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all. Raises InputError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises InputError."""
    with replacing(path) as new:
        new.write_bytes(content)


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the error for a file or folder that cannot be written."""
    cure = "Free space there, or give another place" if error.errno in _FULL else "Give a path that can be written"
    return InputError(f"{path} cannot be written: {error.strerror or error}. {cure}.")


def sync(path: Path) -> None:
    """Flush a file, or a folder with all files in and below it, to the disk."""
    if not path.is_dir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        return
    for child in path.iterdir():
        if not child.is_symlink():
            sync(child)
    _sync_entries(path)


def _sync_entries(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can: Windows opens no folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed processes of this machine left in a folder under a temporary name, or only that of `name`."""
    for path in folder.glob(f".{glob.escape(_shortened(name)) if name else '*'}.*.tmp"):
        host, _, rest = path.name.split(".")[-2].partition("-")
        pid = rest.partition("-")[0]
        if host == _host() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            _remove(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{_shortened(path.name)}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _shortened(name: str) -> str:
    """Return at most 100 bytes of a name, so that the temporary name stays below the 255 of file systems."""
    return os.fsdecode(os.fsencode(name)[:100])


@cache
def _host() -> str:
    """Return what tells apart machines and containers, whose process numbers mean different processes."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


# reading


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises InputError for another one, OSError as usual."""
    check_regular(path, limit)
    return path.read_bytes()


def check_regular(path: Path, limit: int = DATA_LIMIT) -> None:
    """Refuse a pipe or a device, which may never end, and a file above `limit` bytes. Raises OSError as usual."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a device or a pipe, no regular file: give the path of a file.")
    if status.st_size > limit:
        raise InputError(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read. Give another file.")


def parse_json(content: bytes | str) -> Any:
    """Parse JSON. Raises ValueError with the reason, also for a key that stands twice, NaN and very deep nesting."""
    try:
        return json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(content: bytes | str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError with the reason, also for very deep nesting."""
    try:
        return tomllib.loads(content if isinstance(content, str) else content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return values


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
