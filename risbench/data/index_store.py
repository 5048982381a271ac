"""The cache of indices: built once from the two annotation files of a data set.

The folder of an index is named after the contents of both files, so that a changed file makes a new index. The data
root is only read. Opening a stored index takes milliseconds.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from risbench.data import refer
from risbench.errors import InputError

FORMAT = 4  # raise it whenever the same annotation files give another index

_log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """An index in the cache."""

    folder: Path
    hash: str  # sha256 over the contents of both annotation files, whatever the format


def store(refs: Path, instances: Path) -> Stored:
    """Return the index of two annotation files, and build it first if the cache does not hold it."""
    digests = f"{_digest(refs)} {_digest(instances)}"
    content = hashlib.sha256(f"1 {digests}".encode()).hexdigest()  # in every record: the 1 stays, whatever the format
    folder = cache_folder() / "index" / hashlib.sha256(f"{FORMAT} {digests}".encode()).hexdigest()
    if not _is_complete(folder):
        _build(refs, instances, folder)
    return Stored(folder, content)


def cache_folder() -> Path:
    """Return the folder of indices and of everything else that can be made again."""
    if folder := os.environ.get("RISBENCH_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "risbench"


def _digest(path: Path) -> str:
    """Return the sha256 of a file; the cache remembers it until the file changes."""
    try:
        stat = path.stat()
        memory = cache_folder() / "digests" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()}.json"
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        with suppress(OSError, ValueError):
            known = json.loads(memory.read_bytes())
            if known["state"] == state:
                return str(known["sha256"])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Mend its permissions or copy it again.") from None
    if time.time() - stat.st_mtime > 2:  # a second change within the clock step of the file system would go unseen
        _write_json(memory, {"path": str(path), "state": state, "sha256": digest})
    return digest


def _build(refs: Path, instances: Path, folder: Path) -> None:
    """Read the annotation files and move the finished index into place; several processes may do so at once."""
    _log.info("Building the index of %s and %s, once.", refs, instances)
    with _without_garbage_collection():
        columns = refer.read(refs, instances)
    for finding in columns.findings:
        _log.warning("%s: %s.", instances, finding)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
            _write_index(columns, Path(scratch) / "new")
            _move_into_place(folder, Path(scratch))
    except OSError as error:
        raise _unwritable(error) from None


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
    folder.mkdir()
    for name in ("expressions", "annotations", "images"):
        batch = getattr(columns, name)
        with pa.ipc.new_file(folder / f"{name}.arrow", batch.schema) as file:
            file.write_batch(batch)
    contents = {
        "bytes": {path.name: path.stat().st_size for path in folder.iterdir()},
        "splits": _split_ranges(columns.expressions),
        "categories": columns.categories,
        "findings": columns.findings,
    }
    (folder / "index.json").write_text(json.dumps(contents))


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


def _is_complete(folder: Path) -> bool:
    """Whether the folder holds every file of an index at its full size."""
    try:
        sizes = json.loads((folder / "index.json").read_bytes())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _move_into_place(folder: Path, scratch: Path) -> None:
    """Move scratch/new to `folder`, unless another process was faster; a damaged index there moves to scratch."""
    for attempt in range(3):
        with suppress(OSError):  # a folder that is there already, complete or damaged, stays
            os.rename(scratch / "new", folder)
        if _is_complete(folder):
            return
        with suppress(OSError):
            os.rename(folder, scratch / f"damaged{attempt}")
    raise InputError(f"The damaged index {folder} cannot be replaced. Delete that folder.")


def _write_json(path: Path, value: Any) -> None:
    """Write a small JSON file of the cache in one step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(value, file)
        os.replace(file.name, path)
    except OSError as error:
        raise _unwritable(error) from None


def _unwritable(error: OSError) -> InputError:
    return InputError(
        f"The cache {cache_folder()} cannot be written: {error.strerror}. Set RISBENCH_CACHE to a folder of yours."
    )
