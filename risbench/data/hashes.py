"""Hashes of the files that the cache holds: a file that was damaged, cut or deleted is noticed before it is used.

A manifest (sha256.json) stands beside the files and holds the sha256 of each. It is written last. A process hashes each
file once, and again if its size, its times or its inode have changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from risbench import files
from risbench.errors import InputError

MANIFEST = "sha256.json"

_verified: dict[Path, tuple[tuple[int, ...], str]] = {}  # state and sha256 of files that this process has hashed


def state(status: os.stat_result) -> tuple[int, ...]:
    """Return what differs when a file has changed; the last change of its inode cannot be set by a user."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def write(manifest: Path, folder: Path, names: Iterable[str]) -> None:
    """Write the manifest of files, by their names below a folder."""
    files.write_text(manifest, json.dumps({name: files.sha256(folder / name) for name in names}))


def find_damage(manifest: Path, folder: Path, names: Iterable[str]) -> str:
    """Return the first file of a manifest that is missing or is not as it was written, or "".

    The manifest is damaged itself unless it can be read and holds these names.
    """
    try:
        hashes = files.parse_json(files.read_bytes(manifest))
    except (OSError, ValueError):
        return manifest.name
    if not isinstance(hashes, dict) or not {*names} <= set(hashes):
        return manifest.name
    return next((name for name, digest in hashes.items() if not _is_intact(folder / name, digest)), "")


def clear(folder: Path, names: Iterable[str]) -> None:
    """Remove what is no file at the paths of files, and what is no folder around them: a pipe, a dangling link."""
    for file in (folder / name for name in names):
        for parent in (file.parent, folder):
            if os.path.lexists(parent) and not parent.is_dir():
                files.remove(parent)
        if os.path.lexists(file) and not file.is_file():
            files.remove(file)


def _is_intact(path: Path, digest: object) -> bool:
    try:
        now = state(path.stat())
        if _verified.get(path) == (now, digest):
            return True
        if files.sha256(path) != digest:
            return False
    except (OSError, InputError):
        return False
    _verified[path] = (now, str(digest))
    return True
