"""The index of a data set: its annotation files as memory-mapped columns, built once and kept in the cache.

The folder of an index is named after the contents of the two annotation files, so a changed file makes a new one, and
the data root is only read. Opening costs milliseconds, and an index pickles as its folder.
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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from risbench.data import refer
from risbench.data.rle import Size
from risbench.data.split import IDS, TEXTS, Ints
from risbench.data.split import Split as Split  # beside its data set
from risbench.datasets import Card, Count
from risbench.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 4  # raise it whenever the same annotation files give another index

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An object of an image that an expression could mean."""

    ann_id: int
    category_id: int
    area: int
    """Pixels of its mask."""
    counts: bytes


@dataclass(frozen=True, eq=False)
class Index:
    """A data set, opened. Its columns are mapped from the cache and read when they are asked for."""

    card: Card
    hash: str
    """sha256 over the contents of both annotation files; another format of the index leaves records comparable."""
    partial: bool
    """Whether it is an incomplete copy; every result of it must say so."""
    images_folder: Path
    folder: Path
    """Where the index lies in the cache."""

    def __reduce__(self) -> Any:  # what is mapped stays behind: another process maps it again
        return Index, (self.card, self.hash, self.partial, self.images_folder, self.folder)

    @cached_property
    def categories(self) -> dict[int, str]:
        """Names of the categories by id."""
        return {int(key): name for key, name in self._about["categories"].items()}

    @property
    def findings(self) -> list[str]:
        """What was odd about the annotation files, but no reason to refuse them."""
        return list(self._about["findings"])

    def split_names(self) -> list[str]:
        """The card's splits that the files hold."""
        return [name for name in self.card.splits if name in self._about["splits"]]

    def found(self, split: str) -> dict[str, int]:
        """How many images, refs and expressions the files hold of a split."""
        return {what: self._about["splits"].get(split, {}).get(what, 0) for what in ("images", "refs", "expressions")}

    def split(self, name: str) -> Split:
        """The expressions of a split."""
        known = self.split_names()
        if name not in known and name in self.card.splits:
            raise InputError(
                f"This copy of {self.card.name} holds nothing of the split {name!r}, only of "
                f"{', '.join(known) or 'none'}. Take one of those, or copy the complete data set."
            )
        if name not in known:
            raise unknown(f"split of {self.card.name}", name, known)
        rows = self._expressions.slice(self._about["splits"][name]["start"], self._about["splits"][name]["expressions"])
        ids = {key: _array(rows, key) for key in IDS}
        texts = {key: rows.column(key).to_pylist() for key in TEXTS}
        return Split(name, **ids, **texts)

    def truth(self, ann_id: int, rule: Literal["union", "once"]) -> bytes:
        """The RLE of a ground truth: the union of its parts, or the pixels that exactly one part covers."""
        row = self._row(ann_id)
        counts = self._annotations.column(rule)[row].as_py()
        return bytes(self._annotations.column("union")[row].as_py() if counts is None else counts)

    def polygons(self, ann_id: int) -> list[list[float]] | None:
        """The outlines [x1, y1, x2, y2, ...] of a target; None where it has none, or the files give run lengths."""
        found: list[list[float]] | None = self._annotations.column("polygons")[self._row(ann_id)].as_py()
        return found

    def meant(self, ann_id: Ints) -> tuple[Ints, Ints]:
        """How many objects each of these targets is, and the pixels of its mask."""
        ids, rows = self._by_annotation
        found = self._annotations.select(["members", "area"]).take(pa.array(rows[np.searchsorted(ids, ann_id)]))
        return pc.list_value_length(found["members"]).fill_null(1).to_numpy(zero_copy_only=False), _array(found, "area")

    def _row(self, ann_id: int) -> int:
        ids, rows = self._by_annotation
        return int(rows[_position(ids, ann_id, "annotation", self.card)])

    def overlapping(self) -> Ints:
        """Annotations and other targets whose parts overlap, so that the two rules for ground truth differ."""
        ids: Ints = _array(self._annotations, "ann_id")
        overlap: NDArray[np.bool_] = self._annotations.column("once").is_valid().to_numpy(zero_copy_only=False)
        return ids[overlap]

    def candidates(self, image_id: int) -> list[Candidate]:
        """Every annotation of an image that is no crowd, by id."""
        start, stop = np.searchsorted(self._annotated_images, [image_id, image_id + 1])
        rows = self._annotations.slice(start, stop - start).to_pylist()
        objects = [row for row in rows if not row["crowd"] and row["members"] is None]
        return [Candidate(row["ann_id"], row["category_id"], row["area"], row["union"]) for row in objects]

    def annotations(self) -> pd.DataFrame:
        """Every annotation without its masks, by image_id, then ann_id."""
        columns = self._annotations.select(["ann_id", "image_id", "category_id", "crowd", "area"])
        table: pd.DataFrame = columns.filter(self._annotations["members"].is_null()).to_pandas()
        return table

    def completely_annotated(self) -> Ints:
        """Images of which every annotation is here, as far as the files tell, rising.

        Not those of which one was left out because of its mask; nor, in a partial copy, those whose every annotation is
        referred to: they may have been cut down to what the refs need.
        """
        complete: Ints = self.image_ids()[self._images.column("complete").to_numpy(zero_copy_only=False)]
        if not self.partial:
            return complete
        members = self._annotations["members"]
        referred = [_array(self._expressions, "ann_id"), members.flatten().to_numpy()]
        unreferred = ~np.isin(_array(self._annotations, "ann_id"), np.concatenate(referred))
        return np.intersect1d(complete, self._annotated_images[unreferred])

    def image_ids(self) -> Ints:
        """Every image of instances.json, rising."""
        ids: Ints = _array(self._images, "image_id")
        return ids

    def image_path(self, image_id: int) -> Path:
        """Where the image should lie."""
        return self.images_folder / str(self._image(image_id)["file_name"])

    def size(self, image_id: int) -> Size:
        """Height and width of an image, as instances.json says."""
        row = self._image(image_id)
        return row["height"], row["width"]

    def _image(self, image_id: int) -> dict[str, Any]:
        row = _position(self.image_ids(), image_id, "image", self.card)
        return dict(self._images.slice(row, 1).to_pylist()[0])

    @cached_property
    def _about(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "index.json").read_bytes()))

    @cached_property
    def _expressions(self) -> pa.RecordBatch:
        return _mapped(self.folder / "expressions.arrow")

    @cached_property
    def _annotations(self) -> pa.RecordBatch:
        return _mapped(self.folder / "annotations.arrow")

    @cached_property
    def _images(self) -> pa.RecordBatch:
        return _mapped(self.folder / "images.arrow")

    @cached_property
    def _annotated_images(self) -> Ints:
        ids: Ints = _array(self._annotations, "image_id")
        return ids

    @cached_property
    def _by_annotation(self) -> tuple[Ints, Ints]:
        """Annotation ids, rising, and their rows."""
        ids = _array(self._annotations, "ann_id")
        order = np.argsort(ids)
        return ids[order], order


def load(card: Card, data_root: Path, partial: bool = False, images: Path | None = None) -> Index:
    """Open the index of a data set, and build it first where the cache has none; check the card's counts."""
    refs, instances = _files(card, data_root)
    digests = f"{_digest(refs)} {_digest(instances)}"
    key = hashlib.sha256(f"1 {digests}".encode()).hexdigest()  # records hold it: the 1 stays, whatever the format
    folder = cache_folder() / "index" / hashlib.sha256(f"{FORMAT} {digests}".encode()).hexdigest()
    if not _intact(folder):
        _build(refs, instances, folder)
    opened = Index(card, key, False, images or data_root / card.images, folder)
    incomplete = _check_counts(opened, refs, partial)
    return Index(card, key, incomplete, opened.images_folder, folder)


def cache_folder() -> Path:
    """Where indices and everything else that can be made again are kept."""
    if own := os.environ.get("RISBENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "risbench"


def _files(card: Card, data_root: Path) -> tuple[Path, Path]:
    if not data_root.is_dir():
        raise InputError(
            f"The data root {data_root} does not exist. Give the folder that holds {card.folder}/ with --data-root, "
            "or set RISBENCH_DATA."
        )
    refs, instances = data_root / card.folder / card.refs, data_root / card.folder / card.instances
    for path in (refs, instances):
        if not path.is_file():
            raise InputError(f"{card.name} needs the file {path}, which does not exist. {card.where}")
    return refs, instances


def _digest(path: Path) -> str:
    """The sha256 of a file, remembered in the cache for as long as the file is not touched."""
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
    if time.time() - stat.st_mtime > 2:  # within the clock of a file system a second change could go unseen
        _write(memory, {"path": str(path), "state": state, "sha256": digest})
    return digest


def _build(refs: Path, instances: Path, folder: Path) -> None:
    """Read the annotation files and move the finished index into place; several processes may do so at once."""
    _log.info("Building the index of %s and %s, once.", refs, instances)
    with _no_collection():
        columns = refer.read(refs, instances)
    for finding in columns.findings:
        _log.warning("%s: %s.", instances, finding)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
            _store(columns, Path(scratch) / "new")
            _replace(folder, Path(scratch))
    except OSError as error:
        raise _unwritable(error) from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from going through millions of live objects, again and again: half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _store(columns: refer.Columns, folder: Path) -> None:
    folder.mkdir()
    for name in ("expressions", "annotations", "images"):
        batch = getattr(columns, name)
        with pa.ipc.new_file(folder / f"{name}.arrow", batch.schema) as file:
            file.write_batch(batch)
    about = {
        "bytes": {path.name: path.stat().st_size for path in folder.iterdir()},
        "splits": _ranges(columns.expressions),
        "categories": columns.categories,
        "findings": columns.findings,
    }
    (folder / "index.json").write_text(json.dumps(about))


def _ranges(expressions: pa.RecordBatch) -> dict[str, dict[str, int]]:
    """First row and counts of every split; the rows are sorted by split."""
    splits = np.array(expressions.column("split").to_pylist(), dtype=object)
    ranges = {}
    for name in sorted(set(splits)):
        rows = np.flatnonzero(splits == name)
        part = expressions.slice(rows[0], len(rows))
        images, refs = (len(part.column(key).unique()) for key in ("image_id", "ref_id"))
        ranges[name] = {"start": int(rows[0]), "images": images, "refs": refs, "expressions": len(rows)}
    return ranges


def _intact(folder: Path) -> bool:
    """Whether the index is there and complete."""
    try:
        sizes = json.loads((folder / "index.json").read_bytes())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _replace(folder: Path, scratch: Path) -> None:
    """Move scratch/new to `folder`, unless another process was faster; what is damaged there goes to scratch."""
    for attempt in range(3):
        with suppress(OSError):  # a folder that is there already, complete or damaged, stays
            os.rename(scratch / "new", folder)
        if _intact(folder):
            return
        with suppress(OSError):
            os.rename(folder, scratch / f"damaged{attempt}")
    raise InputError(f"The damaged index {folder} cannot be replaced. Delete that folder.")


def _check_counts(index: Index, path: Path, partial: bool) -> bool:
    """Compare with the card's counts; return whether the copy is incomplete, which only `partial` allows."""
    card, incomplete = index.card, False
    for name in index._about["splits"]:
        if name not in card.splits:
            raise unknown(f"split in {path}:", name, card.splits, "Add it to a card of your own, and give its path.")
    for name, split in card.splits.items():
        for what, count in split.counts().items():
            found = index.found(name)[what]
            incomplete |= partial and found < count.n
            if found != count.n and not (partial and found < count.n):
                _differs(f"{path} holds {found} {what} in the split {name!r} of {card.name}", found, count)
    return incomplete


def _differs(found_where: str, found: int, count: Count) -> None:
    if not count.source:
        _log.warning("%s, the card says %d (unverified).", found_where, count.n)
        return
    cure = "Give --partial to read an incomplete copy; every result will then say so."
    if found > count.n:
        cure = "More than there are is no copy of this data set; give the path of a card of its own."
    raise InputError(f"{found_where}, but there are {count.n} ({count.source}). {cure}")


def _write(path: Path, value: Any) -> None:
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


def _mapped(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _array(rows: pa.RecordBatch, name: str) -> Any:
    """A column of integers as a NumPy array over the mapped file."""
    return rows.column(name).to_numpy()


def _position(ids: Ints, wanted: int, what: str, card: Card) -> int:
    at = int(np.searchsorted(ids, wanted))
    if at == len(ids) or ids[at] != wanted:
        raise InputError(f"{card.name} holds no {what} {wanted}. Take ids from this data set.")
    return at
