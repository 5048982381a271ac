"""The index of a data set: its annotation files as columns, memory-mapped from the cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from risbench.data import index_store
from risbench.data.rle import Size
from risbench.data.split import IDS, TEXTS, Ints, Split
from risbench.datasets import Card, Count
from risbench.errors import DATA_ROOT, PARTIAL, InputError, unknown

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An object of an image to which an expression could refer."""

    ann_id: int
    category_id: int
    area: int
    """Pixels of its mask."""
    counts: bytes


@dataclass(frozen=True, eq=False)
class Index:
    """An opened data set. Its columns are mapped from the cache when they are first used; it pickles as its folder."""

    card: Card
    hash: str
    """sha256 over the contents of both annotation files, whatever the format of the index."""
    incomplete: bool
    """Whether it is an incomplete copy of the data set."""
    images_folder: Path
    folder: Path
    """The index in the cache."""
    limit: int = 0
    """The number of images that each split is limited to, the first ones by image_id; 0: all."""

    def __reduce__(self) -> Any:  # without the mapped columns: another process maps them again
        return Index, (self.card, self.hash, self.incomplete, self.images_folder, self.folder, self.limit)

    @property
    def partial(self) -> bool:
        """Whether splits hold a part of the data set only; every result on them must say so."""
        return self.incomplete or self.limit > 0

    def limited(self, limit: int) -> Index:
        """Return the same data set, each split limited to its first images; 0: with all of them."""
        return self if limit == self.limit else replace(self, limit=limit)

    @cached_property
    def categories(self) -> dict[int, str]:
        """Names of the categories by id."""
        return {int(key): name for key, name in self._contents["categories"].items()}

    @property
    def findings(self) -> list[str]:
        """Oddities of the annotation files that are no reason to refuse them."""
        return list(self._contents["findings"])

    def split_names(self) -> list[str]:
        """Return the names of the card's splits that the files hold."""
        return [name for name in self.card.splits if name in self._contents["splits"]]

    def evaluation_splits(self) -> list[str]:
        """Return the names of the evaluation splits that the files hold."""
        return [name for name in self.split_names() if self.card.splits[name].evaluation]

    def stored_splits(self) -> list[str]:
        """Return the names of all splits that the files hold, also of those that the card does not know."""
        return list(self._contents["splits"])

    def counts(self, split: str) -> dict[str, int]:
        """Count the images, refs and expressions of a split in the files, without a limit."""
        counts = self._contents["splits"].get(split, {})
        return {unit: counts.get(unit, 0) for unit in ("images", "refs", "expressions")}

    def split(self, name: str) -> Split:
        """Return the expressions of a split."""
        known = self.split_names()
        if name not in known and name in self.card.splits:
            raise InputError(
                f"This copy of {self.card.name} holds no expression of the split {name!r}, only of "
                f"{', '.join(known) or 'none'}. Take one of those, or copy the complete data set."
            )
        if name not in known:
            raise unknown(f"split of {self.card.name}", name, known)
        ranges = self._contents["splits"][name]
        rows = self._limited(self._expressions.slice(ranges["start"], ranges["expressions"]))
        ids = {key: _integers(rows, key) for key in IDS}
        texts = {key: rows.column(key).to_pylist() for key in TEXTS}
        return Split(name, **ids, **texts, dataset=self.card.name)

    def _limited(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Keep the expressions of the first images; rows are ordered by image_id."""
        if not self.limit:
            return rows
        image_ids = _integers(rows, "image_id")
        firsts = np.unique(image_ids, return_index=True)[1]
        return rows.slice(0, int(firsts[self.limit]) if self.limit < len(firsts) else len(rows))

    def ground_truth(self, ann_id: int, rule: Literal["union", "once"]) -> bytes:
        """Return the RLE of a target: the union of its parts, or the pixels that exactly one part covers."""
        row = self._row(ann_id)
        counts = self._annotations.column(rule)[row].as_py()
        return bytes(self._annotations.column("union")[row].as_py() if counts is None else counts)

    def polygons(self, ann_id: int) -> list[list[float]] | None:
        """Return the outlines [x1, y1, x2, y2, ...] of a target without its crowds, see `members`.

        None for no-target, and where one of them has run lengths.
        """
        outlines: list[list[float]] | None = self._annotations.column("polygons")[self._row(ann_id)].as_py()
        return outlines

    def members(self, ann_id: int, crowds: bool = True) -> list[int]:
        """Return the annotations of a target, rising; none for no-target.

        Without `crowds`, those that are crowds are left out, unless all are.
        """
        ids = self._annotations.column("members")[self._row(ann_id)].as_py()
        members: list[int] = [ann_id] if ids is None else ids
        if crowds:
            return members
        is_crowd = self._annotations.column("crowd")
        return [member for member in members if not is_crowd[self._row(member)].as_py()] or members

    def num_objects(self, ann_ids: Ints) -> Ints:
        """Count the objects of each target: 0 for no-target."""
        members = self._annotations.column("members").take(pa.array(self._rows(ann_ids)))
        counts: Ints = pc.list_value_length(members).fill_null(1).to_numpy(zero_copy_only=False)
        return counts

    def target_areas(self, ann_ids: Ints) -> Ints:
        """Return the pixels of the mask of each target."""
        areas: Ints = _integers(self._annotations, "area")[self._rows(ann_ids)]
        return areas

    def overlapping_targets(self) -> Ints:
        """Return the ids of the targets whose parts overlap, so that the rules `union` and `once` differ."""
        overlap: NDArray[np.bool_] = self._annotations.column("once").is_valid().to_numpy(zero_copy_only=False)
        ids: Ints = _integers(self._annotations, "ann_id")[overlap]
        return ids

    def candidates(self, image_id: int) -> list[Candidate]:
        """Return every annotation of an image that is no crowd, by id."""
        start, stop = np.searchsorted(self._annotated_images, [image_id, image_id + 1])
        rows = self._annotations.slice(start, stop - start).to_pylist()
        objects = [row for row in rows if not row["crowd"] and row["members"] is None]
        return [Candidate(row["ann_id"], row["category_id"], row["area"], row["union"]) for row in objects]

    def annotations(self) -> pd.DataFrame:
        """Return every annotation without its masks, by image_id, then ann_id."""
        columns = self._annotations.select(["ann_id", "image_id", "category_id", "crowd", "area"])
        table: pd.DataFrame = columns.filter(self._annotations["members"].is_null()).to_pandas()
        return table

    def completely_annotated_images(self) -> Ints:
        """Return the ids of the images whose annotations are all in the index, rising, as far as the files show.

        An image with an annotation that was left out because of its mask is not among them. In an incomplete copy
        neither is an image whose every annotation is referred to: the copy may be cut down to the annotations of its
        refs.
        """
        complete: Ints = self.image_ids()[self._images.column("complete").to_numpy(zero_copy_only=False)]
        if not self.incomplete:
            return complete
        members = self._annotations["members"]
        referred = [_integers(self._expressions, "ann_id"), members.flatten().to_numpy()]
        unreferred = ~np.isin(_integers(self._annotations, "ann_id"), np.concatenate(referred))
        return np.intersect1d(complete, self._annotated_images[unreferred])

    def image_ids(self) -> Ints:
        """Return the id of every image of instances.json, rising."""
        ids: Ints = _integers(self._images, "image_id")
        return ids

    def image_path(self, image_id: int) -> Path:
        """Return the path at which the image is expected."""
        return self.images_folder / str(self._image(image_id)["file_name"])

    def missing_images(self, splits: Iterable[str]) -> list[Path]:
        """Return the paths of the images of these splits that are not there, by image_id."""
        image_ids = sorted({image_id for split in splits for image_id in self.split(split).image_id.tolist()})
        paths = [self.image_path(image_id) for image_id in image_ids]
        present = {folder: set(os.listdir(folder)) for folder in {path.parent for path in paths} if folder.is_dir()}
        return [path for path in paths if path.name not in present.get(path.parent, ()) and not path.is_file()]

    def image_size(self, image_id: int) -> Size:
        """Return height and width of an image, as instances.json states them."""
        row = self._image(image_id)
        return row["height"], row["width"]

    def _image(self, image_id: int) -> dict[str, Any]:
        row = _position(self.image_ids(), image_id, "image", self.card)
        return dict(self._images.slice(row, 1).to_pylist()[0])

    def _row(self, ann_id: int) -> int:
        ids, rows = self._by_ann_id
        return int(rows[_position(ids, ann_id, "annotation", self.card)])

    def _rows(self, ann_ids: Ints) -> Ints:
        """Return the rows of annotations that are in the index."""
        ids, rows = self._by_ann_id
        return rows[np.searchsorted(ids, ann_ids)]

    @cached_property
    def _contents(self) -> dict[str, Any]:
        return index_store.contents(self.folder)

    @cached_property
    def _expressions(self) -> pa.RecordBatch:
        return index_store.table(self.folder, "expressions")

    @cached_property
    def _annotations(self) -> pa.RecordBatch:
        return index_store.table(self.folder, "annotations")

    @cached_property
    def _images(self) -> pa.RecordBatch:
        return index_store.table(self.folder, "images")

    @cached_property
    def _annotated_images(self) -> Ints:
        """The image of each row of the annotations, rising."""
        ids: Ints = _integers(self._annotations, "image_id")
        return ids

    @cached_property
    def _by_ann_id(self) -> tuple[Ints, Ints]:
        """Annotation ids, rising, and their rows."""
        ids = _integers(self._annotations, "ann_id")
        order = np.argsort(ids)
        return ids[order], order


def load(card: Card, data_root: Path, partial: bool = False, images: Path | None = None, limit: int = 0) -> Index:
    """Open the index of a data set, building it first if the cache does not hold it; check the card's counts.

    Counts are those of the files, whatever the limit. Raises InputError for missing or wrong files, and for an
    incomplete copy unless `partial` is set.
    """
    index = open_unchecked(card, data_root, images)
    incomplete = _check_counts(index, data_root / card.folder / card.refs, partial)
    return replace(index, incomplete=incomplete, limit=limit)


def open_unchecked(card: Card, data_root: Path, images: Path | None = None) -> Index:
    """Open the index of a data set without a look at the card's splits and counts."""
    stored = index_store.store(*_annotation_files(card, data_root))
    return Index(card, stored.hash, False, images or data_root / card.images, stored.folder)


def _annotation_files(card: Card, data_root: Path) -> tuple[Path, Path]:
    if not data_root.is_dir():
        raise InputError(
            f"The data root {data_root} does not exist. Give the folder that holds {card.folder}/ with {DATA_ROOT}, "
            "or set RISBENCH_DATA."
        )
    refs, instances = data_root / card.folder / card.refs, data_root / card.folder / card.instances
    for path in (refs, instances):
        if not path.exists():
            raise InputError(f"{card.name} needs the file {path}, which does not exist. {card.where}")
    return refs, instances


def _check_counts(index: Index, path: Path, partial: bool) -> bool:
    """Compare with the card's counts; return whether the copy is incomplete, which only `partial` allows."""
    card, incomplete = index.card, False
    for name in index.stored_splits():
        if name not in card.splits:
            raise unknown(f"split in {path}:", name, card.splits, "Add it to a card of your own, and give its path.")
    for name, split in card.splits.items():
        for unit, expected in split.counts().items():
            actual = index.counts(name)[unit]
            if partial and actual < expected.n:
                incomplete = True
            elif actual != expected.n:
                statement = f"{path} holds {actual} {unit} in the split {name!r} of {card.name}"
                _report_difference(statement, actual, expected)
    return incomplete


def _report_difference(statement: str, actual: int, expected: Count) -> None:
    """Raise InputError if the expected count has a source; else log a warning."""
    if not expected.source:
        _log.warning("%s, the card says %d (unverified).", statement, expected.n)
        return
    cure = f"Give {PARTIAL} to read an incomplete copy; every result will then say so."
    if actual > expected.n:
        cure = "A copy cannot hold more than the data set; give the path of a card of its own."
    raise InputError(f"{statement}, but there are {expected.n} ({expected.source}). {cure}")


def _integers(rows: pa.RecordBatch, name: str) -> Any:
    """Return a column of integers as a NumPy array over the mapped file."""
    return rows.column(name).to_numpy()


def _position(ids: Ints, wanted: int, kind: str, card: Card) -> int:
    position = int(np.searchsorted(ids, wanted))
    if position == len(ids) or ids[position] != wanted:
        raise InputError(f"{card.name} holds no {kind} {wanted}. Take ids from this data set.")
    return position
