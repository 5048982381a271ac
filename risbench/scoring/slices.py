"""Slices: ways to divide the expressions of a split, so that a metric can be reported for each part.

A slice is data: a name, what it means, its values in order, and a function that labels every expression. To add a
slice, add an entry to SLICES; scoring, records and tables use all of its entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from risbench.data import rle
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.errors import unknown
from risbench.scoring import kind_words, metrics, statistics
from risbench.scoring.bounds import Ends, Percent
from risbench.scoring.protocol import Protocol

UNKNOWN = "unknown"  # the value of an expression whose annotations are not enough to tell
SEPARATOR = ", "  # between the values of an expression that has several


@dataclass(frozen=True)
class Slice:
    """One way to divide the expressions of a split: each expression has one value or several."""

    name: str
    meaning: str
    """What its values mean, for the notes of a table."""
    values: tuple[str, ...]
    """In order; values that only a data set knows follow in alphabetical order."""
    labels: Callable[[Index, Split], list[str] | None]
    """The value of every expression of a split, or its values joined by SEPARATOR; None if the data set lacks what the
    slice needs."""

    def ordered(self, values: Iterable[str]) -> list[str]:
        """Return the distinct values in the order of the slice."""
        rank = {value: place for place, value in enumerate(self.values)}
        return sorted(set(values), key=lambda value: (rank.get(value, len(rank)), value))


class SliceMetrics(BaseModel):
    """Metrics of the expressions with one value of a slice."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    n: int = Field(ge=0)  # expressions
    oIoU: Percent | None
    mIoU: Percent | None
    gIoU: Percent | None = None  # under the no-target rule, instead of oIoU and mIoU
    cIoU: Percent | None = None
    intervals: dict[str, Ends] = {}  # by metric: low and high end at 95 %, over images

    @model_serializer(mode="wrap")
    def _without_unused_no_target_metrics(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            name: value
            for name, value in write(self).items()
            if value is not None or name not in metrics.NO_TARGET_METRICS
        }


def choose(names: Sequence[str]) -> tuple[Slice, ...]:
    """Return the slices with these names (hyphens for spaces); all slices for `all`, DEFAULT_SLICES without a name."""
    known = {slice_.name.replace(" ", "-"): slice_ for slice_ in SLICES}
    for name in names:
        if name not in {*known, "all"}:
            raise unknown("slice", name, [*known, "all"])
    return SLICES if "all" in names else tuple(known[name] for name in names) or DEFAULT_SLICES


def labels(index: Index, split: Split) -> dict[str, list[str]]:
    """Return the labels of every expression, by name of the slice, for the slices that the data set has."""
    columns = {slice_.name: slice_.labels(index, split) for slice_ in SLICES}
    return {name: column for name, column in columns.items() if column is not None}


def measure(rows: pd.DataFrame, protocol: Protocol) -> dict[str, dict[str, dict[str, Any]]]:
    """Return a `SliceMetrics` as JSON for every slice that is a column of the rows and every value of it."""
    members = _members(rows)
    main = "oIoU" if protocol.score.no_target == "refused" else "gIoU"
    intervals = statistics.intervals_by_part(rows, members, statistics.ratio_terms(rows, protocol)[main])
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, value), member in members.items():
        sums = metrics.Sums.from_rows(rows[member], protocol.score)
        percent = metrics.compute(sums)
        interval = {main: intervals[name, value]} if (name, value) in intervals else {}
        values = {metric: percent.get(metric) for metric in ("oIoU", "mIoU", "gIoU", "cIoU")}
        parts.setdefault(name, {})[value] = SliceMetrics(n=sums.n, **values, intervals=interval).model_dump()
    return parts


def _members(rows: pd.DataFrame) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """Return which rows have a value of a slice, by slice and value."""
    members: dict[tuple[str, str], NDArray[np.bool_]] = {}
    for slice_ in SLICES:
        if slice_.name in rows:
            has_value = rows[slice_.name].str.get_dummies(SEPARATOR).astype(bool)
            for value in slice_.ordered(has_value.columns):
                members[slice_.name, value] = has_value[value].to_numpy()
    return members


# labels
#
# Each table maps the smallest number of a bin to the name of the bin.

_DISTRACTORS = {0: "0", 1: "1", 2: "2", 3: "3+"}
_LENGTHS = {0: "0", 1: "1", 2: "2", 3: "3", 4: "4-5", 6: "6-7", 8: "8-10", 11: "11+"}
_TARGETS = {0: "none", 1: "one", 2: "several"}
_AREAS = {0: UNKNOWN, 1: "small", 32**2: "medium", 96**2: "large"}
_CROWDING = {1: "1-4", 5: "5-9", 10: "10+"}


def _bin(numbers: ArrayLike, bins: Mapping[int, str]) -> list[str]:
    """Return the name of the bin of each number."""
    names = [*bins.values()]
    return [names[after - 1] for after in np.searchsorted([*bins], numbers, side="right")]


def _bin_or_unknown(numbers: pd.Series[float], bins: Mapping[int, str]) -> list[str]:
    """Return the name of the bin of each number; UNKNOWN for nan."""
    names = _bin(numbers.fillna(max(bins)), bins)
    return [UNKNOWN if missing else name for name, missing in zip(names, numbers.isna(), strict=True)]


def _kinds(index: Index, split: Split) -> list[str] | None:
    return [kind or UNKNOWN for kind in split.kind] if any(split.kind) else None


def _same_class_distractors(index: Index, split: Split) -> list[str]:
    """Count the other annotations of the referent's category in its image, without decoding a mask.

    A crowd counts as 3+: COCO draws one over the rest of a category after ten to fifteen objects of it in an image
    (arXiv 1405.0312, section 4.3).
    """
    objects = index.annotations().set_index("ann_id")
    counted = pd.Series(np.where(objects["crowd"], max(_DISTRACTORS), 1), objects.index)
    others = counted.groupby([objects["image_id"], objects["category_id"]]).transform("sum") - counted
    return _unknown_if_incomplete(index, split, _bin_or_unknown(others.reindex(split.ann_id), _DISTRACTORS))


def _targets(index: Index, split: Split) -> list[str] | None:
    objects = index.num_objects(split.ann_id)
    return _bin(objects, _TARGETS) if (objects != 1).any() else None


def _crowding(index: Index, split: Split) -> list[str]:
    """Count the annotations of the image; a crowd counts as ten, after which COCO draws one."""
    objects = index.annotations()
    counted = pd.Series(np.where(objects["crowd"], max(_CROWDING), 1)).groupby(objects["image_id"]).sum()
    return _unknown_if_incomplete(index, split, _bin_or_unknown(counted.reindex(split.image_id), _CROWDING))


def _unknown_if_incomplete(index: Index, split: Split, values: list[str]) -> list[str]:
    complete = np.isin(split.image_id, index.completely_annotated_images())
    return [value if known else UNKNOWN for value, known in zip(values, complete, strict=True)]


def _lengths(index: Index, split: Split) -> list[str]:
    return _bin([len(kind_words.words(text)) for text in split.sent], _LENGTHS)


def _kind_words(index: Index, split: Split) -> list[str]:
    return [SEPARATOR.join(kind_words.kinds(text)) or "none" for text in split.sent]


def _areas(index: Index, split: Split) -> list[str]:
    return _bin(index.target_areas(split.ann_id), _AREAS)


def _touches_border(index: Index, split: Split) -> list[str]:
    return _label_masks(index, split, lambda mask, size: "yes" if rle.touches_border(mask, size) else "no")


def _pieces(index: Index, split: Split) -> list[str]:
    return _label_masks(index, split, lambda mask, size: "one" if rle.count_pieces(mask, size) == 1 else "several")


def _label_masks(index: Index, split: Split, label: Callable[[bytes, rle.Size], str]) -> list[str]:
    """Label each referent's mask, opened once for all its expressions; an empty mask is UNKNOWN."""
    sizes = dict(zip(split.ann_id.tolist(), zip(split.height.tolist(), split.width.tolist(), strict=True), strict=True))
    masks = {ann_id: index.ground_truth(ann_id, "union") for ann_id in sizes}
    labels = {a: label(mask, sizes[a]) if rle.area(mask, sizes[a]) else UNKNOWN for a, mask in masks.items()}
    return [labels[ann_id] for ann_id in split.ann_id.tolist()]


# the slices

_INCOMPLETE = "unknown where the image may hold objects that are not annotated"

KINDS = Slice("kind of expression", "as the annotation file of the data set names it", (), _kinds)
TARGETS = Slice(
    "targets",
    "annotated objects that the expression refers to; distractors are unknown unless it is one",
    tuple(_TARGETS.values()),
    _targets,
)
DISTRACTORS = Slice(
    "same-class distractors",
    f"other objects of the referent's category in its image, a crowd counting as 3+; {_INCOMPLETE}",
    (*_DISTRACTORS.values(), UNKNOWN),
    _same_class_distractors,
)
LENGTH = Slice("expression length", "words of the expression", tuple(_LENGTHS.values()), _lengths)
KIND_WORDS = Slice(
    "kind words",
    "kinds of words in the expression, by the lists in risbench/scoring/kind_words.py; an expression may have several",
    (*kind_words.WORDS, "none"),
    _kind_words,
)
AREA = Slice(
    "object size",
    "pixels of the referent's mask at the image's own size, as COCO divides them: medium from 32 x 32, large from"
    " 96 x 96",
    ("small", "medium", "large", UNKNOWN),
    _areas,
)
BORDER = Slice(
    "touching the border",
    "whether the referent's mask has a pixel in the first or last row or column of the image",
    ("no", "yes", UNKNOWN),
    _touches_border,
)
PIECES = Slice(
    "pieces of the object",
    "pieces of the referent's mask, which do not touch one another, not even at a corner",
    ("one", "several", UNKNOWN),
    _pieces,
)
CROWDING = Slice(
    "objects in the image",
    f"annotated objects of any category, a crowd counting as 10; {_INCOMPLETE}",
    (*_CROWDING.values(), UNKNOWN),
    _crowding,
)
DEFAULT_SLICES = (KINDS, TARGETS, DISTRACTORS)  # in every comparison
SLICES = (*DEFAULT_SLICES, LENGTH, KIND_WORDS, AREA, BORDER, PIECES, CROWDING)
