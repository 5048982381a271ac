"""Intersection and union, oIoU, mIoU, P@X, pointing, boundary IoU, gIoU and cIoU: the only place that computes IoU.

A mask and its truth become one row of integers (`Counts`); rows become `Sums`, which are integers too, so that sums of
parts added in any order give the same digits as the whole; `compute` turns sums into percent.

The no-target rule (`ScoreHalf.no_target`, of gRefCOCO) has metrics of its own. Where nothing is meant, an answer that
says so scores 1 and leaves no pixel to count, and a mask scores 0. Where something is meant, an answer that nothing is
has no intersection, but the pixels of its mask stay in the union. P@X, pointing and boundary IoU are over expressions
with a target.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench.data import rle
from risbench.scoring.protocol import ScoreHalf

TENTHS = (5, 6, 7, 8, 9)  # P@X with X = TENTHS / 10
BOUNDARY = "boundary IoU"
NAMES = ("oIoU", "mIoU", *(f"P@0.{k}" for k in TENTHS), "pointing", BOUNDARY)
RULED = ("gIoU", "cIoU", "N-acc", "T-acc")  # of the no-target rule, too
UNRULED = ("oIoU", "mIoU", "P@0.5", "P@0.6")  # None under it, where they have no accepted meaning
RATIO = 0.02  # width of a boundary in diagonals of the image (Cheng et al., Boundary IoU, CVPR 2021)
Ints = NDArray[np.int64]
ONE = 1 << 64  # IoU is summed in fixed point: no rounding depends on the order


def names(rule: ScoreHalf) -> tuple[str, ...]:
    """The metrics of a protocol, in order."""
    return NAMES if rule.no_target == "refused" else (*NAMES, *RULED)


class Counts(NamedTuple):
    """What one predicted mask and its truth have in common, in pixels."""

    intersection: int
    union: int
    predicted_area: int
    true_area: int
    peak_hit: int  # 1 the peak lies in the truth, 0 it does not, -1 there is no peak


class Edges(NamedTuple):
    """What the boundaries of one predicted mask and its truth have in common, in pixels."""

    boundary_intersection: int
    boundary_union: int


class Nothing(NamedTuple):
    """What the no-target rule looks at, 1 or 0."""

    no_target: int  # nothing in the image is meant
    said_no_target: int  # the answer says so


def count(prediction: bytes, truth: bytes, size: rle.Size, peak: tuple[int, int] | None) -> Counts:
    """Compare two RLE masks of one size; `peak` is (row, column) in pixels of that size."""
    predicted, true = rle.area(prediction, size), rle.area(truth, size)
    intersection = rle.area(rle.merge([prediction, truth], size, intersect=True), size)
    hit = -1 if peak is None else int(rle.covers(truth, size, *peak))
    return Counts(intersection, predicted + true - intersection, predicted, true, hit)


def edges(prediction: bytes, truth: bytes, size: rle.Size) -> Edges:
    """Compare the boundaries (`rle.boundary`) of two masks of one size."""
    intersection = rle.area(rle.merge([prediction, truth], size, intersect=True), size)
    return Edges(intersection, rle.area(prediction, size) + rle.area(truth, size) - intersection)


def iou(rows: pd.DataFrame, rule: ScoreHalf, of: str = "") -> NDArray[np.float64]:
    """IoU of every row in [0, 1], or of its boundaries; an empty union gives what the rule says.

    nan: the rule leaves the row out.
    """
    part, union = pixels(rows, rule, of)
    return np.where(union > 0, part / np.maximum(union, 1), _of_empty(rows, rule))


def pixels(rows: pd.DataFrame, rule: ScoreHalf, of: str = "") -> tuple[Ints, Ints]:
    """Intersection and union of every row as the rule counts them."""
    part, union = rows[f"{of}intersection"].to_numpy(), rows[f"{of}union"].to_numpy()
    said = _said(rows, rule)
    return np.where(said, 0, part), np.where(said & ~aimed(rows, rule), 0, union)


def aimed(rows: pd.DataFrame, rule: ScoreHalf) -> NDArray[np.bool_]:
    """The rows that P@X, pointing and boundary IoU are over: without the no-target rule all."""
    if rule.no_target == "refused":
        return np.ones(len(rows), np.bool_)
    return np.asarray(rows["no_target"].to_numpy() == 0)


def overall(rule: ScoreHalf) -> str:
    """The metric that speaks for a part of the rows."""
    return "oIoU" if rule.no_target == "refused" else "gIoU"


def told(rows: pd.DataFrame, rule: ScoreHalf) -> NDArray[np.bool_]:
    """The rows whose answer says rightly whether anything is meant."""
    return np.asarray(_said(rows, rule) != aimed(rows, rule))


def pointed(rows: pd.DataFrame, rule: ScoreHalf) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The rows whose peak hits, and those whose peak counts; an answer that nothing is meant hits nothing."""
    peak, counts = rows["peak_hit"].to_numpy(), aimed(rows, rule)
    return (peak == 1) & counts & ~_said(rows, rule), (peak >= 0) & counts


def _said(rows: pd.DataFrame, rule: ScoreHalf) -> NDArray[np.bool_]:
    """The rows whose answer is that nothing is meant: without the no-target rule none."""
    if rule.no_target == "refused":
        return np.zeros(len(rows), np.bool_)
    return np.asarray(rows["said_no_target"].to_numpy() == 1)


def _of_empty(rows: pd.DataFrame, rule: ScoreHalf) -> NDArray[np.float64]:
    """What every row scores if its union is empty."""
    return np.where(aimed(rows, rule), float(rule.empty_union), _said(rows, rule).astype(np.float64))


def has_boundaries(rows: pd.DataFrame) -> bool:
    """Whether boundaries were compared, too."""
    return set(Edges._fields) <= set(rows)


def precise(rows: pd.DataFrame, rule: ScoreHalf) -> NDArray[np.bool_]:
    """Whether IoU reaches 0.5, 0.6, 0.7, 0.8, 0.9, by integers: (rows, 5)."""
    intersection, union = (counts[:, None] for counts in pixels(rows, rule))
    part, whole = 10 * intersection, np.array(TENTHS) * union
    reached = part >= whole if rule.at_least == ">=" else part > whole
    return np.where(union > 0, reached, rule.empty_union == 1) & aimed(rows, rule)[:, None]


@dataclass(frozen=True)
class Sums:
    """Integer sums over rows, from which every metric follows; add them to merge parts."""

    n: int = 0
    counted: int = 0  # rows in mIoU or gIoU; those of them with a target in P@X
    intersection: int = 0
    union: int = 0
    iou: int = 0  # in units of 1 / ONE
    precise: tuple[int, ...] = (0,) * len(TENTHS)
    peaks: int = 0
    hits: int = 0
    bounded: int = 0  # rows in boundary IoU
    boundary: int = 0  # boundary IoU in units of 1 / ONE
    ruled: int = 0  # rows under the no-target rule: all or none
    targetless: int = 0
    told_targetless: int = 0  # answered that nothing is meant
    told_aimed: int = 0  # rows with a target, answered by a mask

    @classmethod
    def of(cls, rows: pd.DataFrame, rule: ScoreHalf) -> Sums:
        """Sum rows with the columns of `Counts` and, where they have them, of `Edges`; of `Nothing` under its rule."""
        counted, iou = _summed(rows, rule, "")
        bounded, boundary = _summed(rows[aimed(rows, rule)], rule, "boundary_") if has_boundaries(rows) else (0, 0)
        part, union = pixels(rows, rule)
        hits, peaks = pointed(rows, rule)
        return cls(
            n=len(rows),
            counted=counted,
            intersection=sum(part.tolist()),
            union=sum(union.tolist()),
            iou=iou,
            precise=tuple(precise(rows, rule).sum(axis=0).tolist()),
            peaks=int(peaks.sum()),
            hits=int(hits.sum()),
            bounded=bounded,
            boundary=boundary,
            **(_told(rows, rule) if rule.no_target == "scored" else {}),
        )

    def __add__(self, other: Sums) -> Sums:
        each = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        each["precise"] = tuple(a + b for a, b in zip(self.precise, other.precise, strict=True))
        return Sums(**each)


def _summed(rows: pd.DataFrame, rule: ScoreHalf, of: str) -> tuple[int, int]:
    """How many rows count in a mean IoU, and the sum over them in units of 1 / ONE."""
    part, union = (counts.tolist() for counts in pixels(rows, rule, of))
    empty = _of_empty(rows, rule)[np.array(union, np.int64) == 0]
    whole = sum(one * ONE // all_ for one, all_ in zip(part, union, strict=True) if all_)
    return len(rows) - int(np.isnan(empty).sum()), whole + ONE * int((empty == 1).sum())


def _told(rows: pd.DataFrame, rule: ScoreHalf) -> dict[str, int]:
    right, meant = told(rows, rule), aimed(rows, rule)
    counts = {"targetless": ~meant, "told_targetless": right & ~meant, "told_aimed": right & meant}
    return {"ruled": len(rows), **{name: int(which.sum()) for name, which in counts.items()}}


def compute(sums: Sums) -> dict[str, float | None]:
    """Every metric in percent; None where nothing counts: no row with a union, no peak, no boundaries."""
    mean = _percent(sums.iou, sums.counted * ONE)
    overall = _percent(sums.intersection, sums.union) if sums.union else mean  # all rows empty: each has the mean
    aimed = sums.counted - sums.targetless
    found = {
        "oIoU": overall,
        "mIoU": mean,
        **{f"P@0.{k}": _percent(hits, aimed) for k, hits in zip(TENTHS, sums.precise, strict=True)},
        "pointing": _percent(sums.hits, sums.peaks),
        BOUNDARY: _percent(sums.boundary, sums.bounded * ONE),
    }
    if not sums.ruled:
        return found
    told = {
        "N-acc": _percent(sums.told_targetless, sums.targetless),
        "T-acc": _percent(sums.told_aimed, sums.ruled - sums.targetless),
    }
    return {**found, **dict.fromkeys(UNRULED), "gIoU": mean, "cIoU": overall, **told}


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
