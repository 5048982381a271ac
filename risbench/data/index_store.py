"""The cache of indices: built once from the two annotation files of a data set.

The folder of an index is named after the contents of both files, so that a changed file makes a new index. The data
root is only read. Opening a stored index takes milliseconds. Its files are hashed before they are mapped; an index that
is damaged is built again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import pyarrow as pa

from risbench import files
from risbench.data import hashes, refer
from risbench.errors import InputError

FORMAT = 5  # raise it whenever the same annotation files give another index

_TABLES = ("expressions", "annotations", "images")
_CONTENTS = "index.json"
_NAMES = (*(f"{table}.arrow" for table in _TABLES), _CONTENTS)

_log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """An index in the cache."""

    folder: Path
    hash: str  # sha256 over the contents of both annotation files, whatever the format


def store(refs: Path, instances: Path) -> Stored:
    """Return the index of two annotation files, and build it first if the cache does not hold it intact."""
    digests = _digest(refs), _digest(instances)
    both = " ".join(digests)
    content = hashlib.sha256(f"1 {both}".encode()).hexdigest()  # in every record: the 1 stays, whatever the format
    folder = cache_folder() / "index" / hashlib.sha256(f"{FORMAT} {both}".encode()).hexdigest()
    if damage := _find_damage(folder):
        if folder.exists():
            _log.warning("The cached index %s is incomplete or damaged (%s): it is built again.", folder, damage)
        columns = _read(refs, instances, digests)
        with explaining_the_cache():
            _write_index(columns, folder)
    return Stored(folder, content)


def table(folder: Path, name: str) -> pa.RecordBatch:
    """Map a table of an index. Raises InputError if it was damaged after the index was opened."""
    return pa.ipc.open_file(pa.memory_map(str(_intact(folder, f"{name}.arrow")))).get_batch(0)


def contents(folder: Path) -> dict[str, Any]:
    """Read the splits, categories and findings of an index. Raises InputError if they were damaged since."""
    return dict(json.loads(_intact(folder, _CONTENTS).read_bytes()))


def cache_folder() -> Path:
    """Return the folder of indices and of everything else that can be made again."""
    if folder := os.environ.get("RISBENCH_CACHE"):
        return Path(folder)
    with suppress(RuntimeError):  # the home of this user is unknown
        path = platformdirs.user_cache_path("risbench", appauthor=False)
        if path.is_absolute():  # else it begins with ~
            return path
    raise InputError(
        "There is no place for the cache: HOME is not set, and this user has no home folder. Set RISBENCH_CACHE to a "
        "folder of yours."
    )


@contextmanager
def explaining_the_cache() -> Iterator[None]:
    """Add to an error of writing how to give another cache."""
    try:
        yield
    except InputError as error:
        cure = f"set RISBENCH_CACHE to a folder of yours in place of {cache_folder()}."
        raise InputError(f"{str(error).removesuffix('.')}: {cure}") from None


def _digest(path: Path) -> str:
    """Return the sha256 of a file; the cache holds it until the file changes."""
    try:
        status = path.stat()
        entry = cache_folder() / "digests" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        if cached := _cached_digest(entry, hashes.state(status)):
            return cached
        digest = files.sha256(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Mend its permissions or copy it again.") from None
    if time.time() - max(status.st_mtime, status.st_ctime) > 2:  # a change within a step of its clock goes unseen
        with suppress(InputError):  # it is hashed again next time
            files.write_bytes(entry, _entry_content(digest, hashes.state(status)))
    return digest


def _cached_digest(entry: Path, state: tuple[int, ...]) -> str:
    """Return the hash of a file from its entry in the cache, or "" if that is missing, damaged or of another state."""
    try:
        content = files.read_bytes(entry)
    except (OSError, InputError):
        return ""
    digest = content[:64].decode("ascii", errors="replace")
    return digest if content == _entry_content(digest, state) else ""


def _entry_content(digest: str, state: tuple[int, ...]) -> bytes:
    """Return the content of an entry: a hash, and a hash of it with the state of the file."""
    return f"{digest} {hashlib.sha256(f'{digest} {state}'.encode()).hexdigest()}\n".encode()


def _read(refs: Path, instances: Path, digests: tuple[str, str]) -> refer.Columns:
    """Read the annotation files. Raises InputError if they have other hashes afterwards."""
    _log.info("Building the index of %s and %s, once.", refs, instances)
    with _without_garbage_collection():
        columns = refer.read(refs, instances)
    if digests != (_digest(refs), _digest(instances)):
        raise InputError(f"{refs} or {instances} changed while it was read. Wait until it is written, and try again.")
    for finding in columns.findings:
        _log.warning("%s: %s.", instances, finding)
    return columns


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch off the garbage collector, which takes half of the time with millions of live objects."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _write_index(columns: refer.Columns, folder: Path) -> None:
    """Write the files one by one, each with the bytes that any other process writes there at the same time."""
    hashes.clear(folder, (*_NAMES, hashes.MANIFEST))
    for name in _TABLES:
        batch = getattr(columns, name)
        with files.replacing(folder / f"{name}.arrow") as new, pa.ipc.new_file(new, batch.schema) as file:
            file.write_batch(batch)
    index = {
        "splits": _split_ranges(columns.expressions),
        "categories": columns.categories,
        "findings": columns.findings,
    }
    files.write_text(folder / _CONTENTS, json.dumps(index))
    hashes.write(folder / hashes.MANIFEST, folder, _NAMES)


def _split_ranges(expressions: pa.RecordBatch) -> dict[str, dict[str, int]]:
    """Return the first row and the counts of every split; the rows are sorted by split."""
    splits = np.array(expressions.column("split").to_pylist(), dtype=object)
    ranges = {}
    for name in sorted(set(splits)):
        rows = np.flatnonzero(splits == name)
        part = expressions.slice(rows[0], len(rows))
        images, refs = (len(part.column(key).unique()) for key in ("image_id", "ref_id"))
        ranges[name] = {"start": int(rows[0]), "images": images, "refs": refs, "expressions": len(rows)}
    return ranges


def _find_damage(folder: Path) -> str:
    """Return the name of the first file of an index that is not as it was written, or ""."""
    return hashes.find_damage(folder / hashes.MANIFEST, folder, _NAMES)


def _intact(folder: Path, name: str) -> Path:
    """Return the path of a file of an index."""
    if damage := _find_damage(folder):
        raise InputError(f"The cached index {folder} was damaged while it was in use ({damage}): run this again.")
    return folder / name
