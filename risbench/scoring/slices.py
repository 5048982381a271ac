"""Slices: the ways in which the expressions of a split are divided, so that a number says where it comes from.

A slice is data: a name, what it means, its values in order, and a function that labels every expression. A new one is
a new entry of SLICES; scoring, records and tables take whatever stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from risbench.data import rle
from risbench.data.index import Index, Split
from risbench.errors import unknown
from risbench.scoring import kind_words, metrics, statistics
from risbench.scoring.protocol import Protocol

UNKNOWN = "unknown"  # the value of expressions of which the files do not say enough
AND = ", "  # between the values of an expression that has several


@dataclass(frozen=True)
class Slice:
    """One way to divide the expressions of a split: each has a value, or several."""

    name: str
    meaning: str
    """What its values mean, in words for the notes of a table."""
    values: tuple[str, ...]
    """In order; values that only a data set knows follow by name."""
    labels: Callable[[Index, Split], list[str] | None]
    """The value of every expression of a split, or its values with AND between them; None where the data set does not
    have what it speaks of."""

    def ordered(self, values: Iterable[str]) -> list[str]:
        """These values, each once, in the order of the slice."""
        rank = {value: place for place, value in enumerate(self.values)}
        return sorted(set(values), key=lambda value: (rank.get(value, len(rank)), value))


class Part(BaseModel):
    """What the expressions of one value of a slice come to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int  # expressions
    oIoU: float | None  # percent
    mIoU: float | None
    gIoU: float | None = None  # under the no-target rule, in place of the others
    cIoU: float | None = None
    intervals: dict[str, list[float]] = {}  # 95 %, over images: low, high

    @model_serializer(mode="wrap")
    def _without_the_other_rule(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None or name not in metrics.RULED}


def choose(names: Sequence[str]) -> tuple[Slice, ...]:
    """The slices of these names, hyphens standing for blanks; all of them for `all`, SHOWN without a name."""
    known = {one.name.replace(" ", "-"): one for one in SLICES}
    for name in names:
        if name not in {*known, "all"}:
            raise unknown("slice", name, [*known, "all"])
    return SLICES if "all" in names else tuple(known[name] for name in names) or SHOWN


def labels(index: Index, split: Split) -> dict[str, list[str]]:
    """The value of every expression in every slice that the data set has, by the name of the slice."""
    found = {one.name: one.labels(index, split) for one in SLICES}
    return {name: values for name, values in found.items() if values is not None}


def measure(rows: pd.DataFrame, protocol: Protocol) -> dict[str, dict[str, dict[str, Any]]]:
    """A `Part`, as JSON, for every value of every slice that rows have as a column of labels."""
    members: dict[tuple[str, str], NDArray[np.bool_]] = {}
    for one in SLICES:
        if one.name in rows:
            having = rows[one.name].str.get_dummies(AND).astype(bool)
            members |= {(one.name, value): having[value].to_numpy() for value in one.ordered(having.columns)}
    main = metrics.overall(protocol.score)
    intervals = statistics.intervals_of_parts(rows, members, statistics.ratios(rows, protocol)[main])
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, value), mine in members.items():
        sums = metrics.Sums.of(rows[mine], protocol.score)
        percent = metrics.compute(sums)
        within = {main: intervals[name, value]} if (name, value) in intervals else {}
        part = Part(n=sums.n, **{of: percent.get(of) for of in ("oIoU", "mIoU", "gIoU", "cIoU")}, intervals=within)
        found.setdefault(name, {})[value] = part.model_dump()
    return found


# From which number on a value holds: up to the next one.
_DISTRACTORS = {0: "0", 1: "1", 2: "2", 3: "3+"}
_LENGTHS = {0: "0", 1: "1", 2: "2", 3: "3", 4: "4-5", 6: "6-7", 8: "8-10", 11: "11+"}
_TARGETS = {0: "none", 1: "one", 2: "several"}
_AREAS = {0: UNKNOWN, 1: "small", 32**2: "medium", 96**2: "large"}
_CROWDING = {1: "1-4", 5: "5-9", 10: "10+"}


def _named(numbers: ArrayLike, names: Mapping[int, str]) -> list[str]:
    """The value of each number."""
    values = [*names.values()]
    return [values[after - 1] for after in np.searchsorted([*names], numbers, side="right")]


def _known(numbers: pd.Series[float], names: Mapping[int, str]) -> list[str]:
    """The value of each number; nan is not known."""
    values = _named(numbers.fillna(max(names)), names)
    return [UNKNOWN if missing else value for value, missing in zip(values, numbers.isna(), strict=True)]


def _kinds(index: Index, split: Split) -> list[str] | None:
    return [kind or UNKNOWN for kind in split.kind] if any(split.kind) else None


def _same_class_distractors(index: Index, split: Split) -> list[str]:
    """Count the other annotations of the referent's category in its image, without opening a mask.

    A crowd counts as many: COCO draws one over what is left of a category in an image after ten to fifteen of its
    objects (arXiv 1405.0312, section 4.3).
    """
    objects = index.annotations().set_index("ann_id")
    counted = pd.Series(np.where(objects["crowd"], max(_DISTRACTORS), 1), objects.index)
    others = counted.groupby([objects["image_id"], objects["category_id"]]).transform("sum") - counted
    return _where_complete(index, split, _known(others.reindex(split.ann_id), _DISTRACTORS))


def _targets(index: Index, split: Split) -> list[str] | None:
    objects, _ = index.meant(split.ann_id)
    return _named(objects, _TARGETS) if (objects != 1).any() else None


def _crowding(index: Index, split: Split) -> list[str]:
    """Count the annotations of the image; a crowd, drawn over what is left after ten objects, counts as ten."""
    objects = index.annotations()
    counted = pd.Series(np.where(objects["crowd"], max(_CROWDING), 1)).groupby(objects["image_id"]).sum()
    return _where_complete(index, split, _known(counted.reindex(split.image_id), _CROWDING))


def _where_complete(index: Index, split: Split, values: list[str]) -> list[str]:
    known = np.isin(split.image_id, index.completely_annotated())
    return [value if complete else UNKNOWN for value, complete in zip(values, known, strict=True)]


def _lengths(index: Index, split: Split) -> list[str]:
    return _named([len(kind_words.words(text)) for text in split.sent], _LENGTHS)


def _kind_words(index: Index, split: Split) -> list[str]:
    return [AND.join(kind_words.kinds(text)) or "none" for text in split.sent]


def _areas(index: Index, split: Split) -> list[str]:
    return _named(index.meant(split.ann_id)[1], _AREAS)


def _touching(index: Index, split: Split) -> list[str]:
    return _of_masks(index, split, lambda mask, size: "yes" if rle.touches_border(mask, size) else "no")


def _pieces(index: Index, split: Split) -> list[str]:
    return _of_masks(index, split, lambda mask, size: "one" if rle.pieces(mask, size) == 1 else "several")


def _of_masks(index: Index, split: Split, value: Callable[[bytes, rle.Size], str]) -> list[str]:
    """The value of the referent's mask, each mask being opened once; an empty one has none."""
    sizes = dict(zip(split.ann_id.tolist(), zip(split.height.tolist(), split.width.tolist(), strict=True), strict=True))
    masks = {ann_id: index.truth(ann_id, "union") for ann_id in sizes}
    values = {a: value(mask, sizes[a]) if rle.area(mask, sizes[a]) else UNKNOWN for a, mask in masks.items()}
    return [values[ann_id] for ann_id in split.ann_id.tolist()]


_INCOMPLETE = "unknown where the image may hold objects that are not annotated"

KINDS = Slice("kind of expression", "as the annotation file of the data set names it", (), _kinds)
TARGETS = Slice(
    "targets",
    "annotated objects that are meant; distractors are unknown unless it is one",
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
    "what the words of the expression speak of, by the lists in risbench/kind_words.py; an expression may have several",
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
    _touching,
)
PIECES = Slice(
    "pieces of the object",
    "of the referent's mask, which do not touch one another, not even at a corner",
    ("one", "several", UNKNOWN),
    _pieces,
)
CROWDING = Slice(
    "objects in the image",
    f"annotated objects of any category, a crowd counting as 10; {_INCOMPLETE}",
    (*_CROWDING.values(), UNKNOWN),
    _crowding,
)
SHOWN = (KINDS, TARGETS, DISTRACTORS)  # in every comparison
SLICES = (*SHOWN, LENGTH, KIND_WORDS, AREA, BORDER, PIECES, CROWDING)
