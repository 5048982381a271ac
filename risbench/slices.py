"""Slices: the ways in which the expressions of a split are divided, so that a number says where it comes from.

A slice is data: a name, what it means, its values in order, and a function that labels every expression. A new one is
a new entry of SLICES; scoring, records and tables take whatever stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from risbench import metrics, statistics
from risbench.data.index import Index, Split
from risbench.protocol import Protocol

UNKNOWN = "unknown"  # the value of expressions of which the files do not say enough


@dataclass(frozen=True)
class Slice:
    """One way to divide the expressions of a split: each has exactly one value."""

    name: str
    meaning: str
    """What its values mean, in words for the notes of a table."""
    values: tuple[str, ...]
    """In order; values that only a data set knows follow by name."""
    labels: Callable[[Index, Split], list[str] | None]
    """The value of every expression of a split; None where the data set does not have what it speaks of."""

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
    intervals: dict[str, list[float]] = {}  # 95 %, over images: low, high


def labels(index: Index, split: Split) -> dict[str, list[str]]:
    """The value of every expression in every slice that the data set has, by the name of the slice."""
    found = {one.name: one.labels(index, split) for one in SLICES}
    return {name: values for name, values in found.items() if values is not None}


def measure(rows: pd.DataFrame, protocol: Protocol) -> dict[str, dict[str, dict[str, Any]]]:
    """A `Part`, as JSON, for every value of every slice that rows have as a column of labels."""
    members = {
        (one.name, value): (rows[one.name] == value).to_numpy()
        for one in SLICES
        if one.name in rows
        for value in one.ordered(rows[one.name])
    }
    intervals = statistics.intervals_of_parts(rows, members)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, value), mine in members.items():
        sums = metrics.Sums.of(rows[mine], protocol.score)
        percent = metrics.compute(sums)
        within = {"oIoU": intervals[name, value]} if (name, value) in intervals else {}
        part = Part(n=sums.n, oIoU=percent["oIoU"], mIoU=percent["mIoU"], intervals=within)
        found.setdefault(name, {})[value] = part.model_dump()
    return found


def _kinds(index: Index, split: Split) -> list[str] | None:
    return [kind or UNKNOWN for kind in split.kind] if any(split.kind) else None


_COUNTS = ("0", "1", "2", "3+")
_MANY = 3


def _same_class_distractors(index: Index, split: Split) -> list[str]:
    """Count the other annotations of the referent's category in its image, without opening a mask.

    A crowd counts as many: COCO draws one over what is left of a category in an image after ten to fifteen of its
    objects (arXiv 1405.0312, section 4.3).
    """
    objects = index.annotations().set_index("ann_id")
    counted = pd.Series(np.where(objects["crowd"], _MANY, 1), objects.index)
    others = counted.groupby([objects["image_id"], objects["category_id"]]).transform("sum") - counted
    values = np.array(_COUNTS)[others.loc[pd.Index(split.ann_id)].clip(upper=_MANY).to_numpy()]
    known = np.isin(split.image_id, index.completely_annotated())
    return [str(value) for value in np.where(known, values, UNKNOWN)]


KINDS = Slice("kind of expression", "as the annotation file of the data set names it", (), _kinds)
DISTRACTORS = Slice(
    "same-class distractors",
    "other objects of the referent's category in its image, a crowd counting as 3+;"
    " unknown where the image may hold objects that are not annotated",
    (*_COUNTS, UNKNOWN),
    _same_class_distractors,
)
SLICES = (KINDS, DISTRACTORS)
