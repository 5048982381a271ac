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
import re
import secrets
import shutil
import stat
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from risbench.errors import InputError

TEXT_LIMIT = 64 * 2**20  # bytes of a card, recipe, record, baseline, plan or run.toml
DATA_LIMIT = 4 * 2**30  # bytes of an annotation or predictions file; COCO's largest JSON has 0.4 GiB

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BYTE_ORDER_MARK = "\ufeff"  # some editors of Windows begin every text file with it
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)
_UNPACK = "Unpack it and give the file in it."
_FOREIGN = {  # what begins with these bytes, and what to do
    b"\xff\xfe": ("text in UTF-16, as PowerShell writes it", "Write it in UTF-8."),
    b"\xfe\xff": ("text in UTF-16", "Write it in UTF-8."),
    b"version https://git-lfs": ("a pointer of git-lfs, not the file itself", "Run git lfs pull in its folder."),
    b"PK\x03\x04": ("a zip archive", _UNPACK),
    b"PK\x05\x06": ("an empty zip archive", "Give another file."),
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\xfd7zXZ": ("an xz archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x89HDF": ("an HDF5 file", "Give another file."),
    b"\x93NUMPY": ("a NumPy array", "Give another file."),
    b"PAR1": ("a Parquet file", "Give another file."),
    b"ARROW1": ("an Arrow file", "Give another file."),
    b"\x89PNG": ("a PNG picture", "Give another file."),
    b"\xff\xd8\xff": ("a JPEG picture", "Give another file."),
    b"%PDF": ("a PDF", "Give another file."),
}


# writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file or folder written there takes its place when the block ends.

    Parent folders are made. A folder replaces no folder that holds files. Raises InputError, and leaves `path` as it
    was, if it cannot be written, for example because the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link stays a link to the new file
    new = _temporary(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a device or a pipe, no regular file: give the path of a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        yield new
        sync(new)
        os.replace(new, path)
        sync_entries(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        remove(new)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, under a temporary name, which is removed when the block ends.

    Raises InputError if it cannot be made, or if a file of the block cannot be written.
    """
    folder = _temporary(Path(os.path.realpath(path)))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent, path.name)
        folder.mkdir()
        yield folder
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        remove(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all. Raises InputError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises InputError."""
    with replacing(path) as new:
        new.write_bytes(content)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, without making it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    error = errno.EACCES if existing.is_dir() else errno.ENOTDIR
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise unwritable(folder, OSError(error, os.strerror(error)))


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
    sync_entries(path)


def sync_entries(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can: Windows opens no folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path, name: str = "", exclusive: bool = False) -> None:
    """Remove what killed processes of this machine left in a folder under a temporary name, or only that of `name`.

    With `exclusive` every temporary file is removed: no other process works in the folder.
    """
    for path in folder.glob(f".{glob.escape(_shortened(name)) if name else '*'}.*.tmp"):
        host, _, rest = path.name.split(".")[-2].partition("-")
        pid = rest.partition("-")[0]
        is_dead = host == _host() and pid.isdecimal() and not psutil.pid_exists(int(pid))
        if is_dead or (exclusive and len(host) == 8 and pid.isdecimal()):
            remove(path)


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


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, as far as that is possible."""
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


def sha256(path: Path, limit: int = DATA_LIMIT) -> str:
    """Hash a regular file of at most `limit` bytes. Raises InputError for another one, OSError as usual."""
    check_regular(path, limit)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(root: Path, paths: Iterable[Path]) -> str:
    """Hash the contents of files and their paths below a folder."""
    hashes = {path.relative_to(root).as_posix(): sha256(path) for path in paths}
    return hashlib.sha256("".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()).hexdigest()


def refuse_foreign(path: Path, text: bool = False) -> None:
    """Raise InputError for a file that `foreign_kind` knows."""
    if kind := foreign_kind(path, text):
        raise InputError(f"{path} is {kind}")


def foreign_kind(path: Path, text: bool = False) -> str:
    """Say what a file is that is often given by mistake for a file of data, and what to do, or return "".

    `text` says that the data themselves are text.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty: its download or copy was cut off. Fetch it again."
    if not start.strip(b"\0"):
        return "a file of zeros: its download or copy did not end. Fetch it again."
    if _WEB_PAGE.match(start):
        return "a web page, sent in place of the file. Open its address in a browser, and download the file itself."
    for first, (kind, cure) in _FOREIGN.items():
        if start.startswith(first):
            return f"{kind}. {cure}"
    if start[257:262] == b"ustar":
        return f"a tar archive. {_UNPACK}"
    line = start.decode("utf-8", errors="replace").strip().partition("\n")[0][:40].strip()
    if text or not line or b"\0" in start or "\ufffd" in line or not line.isprintable():
        return ""
    return f"{'JSON' if line[0] in '{[' else 'text'} that begins with {line!r}. Give another file."


def parse_json(content: bytes | str) -> Any:
    """Parse JSON. Raises ValueError with the reason, also for a key that stands twice, NaN and very deep nesting."""
    content = content.removeprefix(_BYTE_ORDER_MARK) if isinstance(content, str) else content  # json strips it of bytes
    try:
        return json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):
            raise ValueError(f"it holds a number of more than {sys.get_int_max_str_digits()} digits") from None
        raise


def parse_toml(content: bytes | str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError with the reason, also for very deep nesting."""
    try:
        text = content if isinstance(content, str) else content.decode()
        return tomllib.loads(text.removeprefix(_BYTE_ORDER_MARK))
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
