"""Intersection and union, oIoU, mIoU, P@X, pointing and boundary IoU: the only place that computes IoU.

A mask and its truth become one row of integers (`Counts`); rows become `Sums`, which are integers too, so that sums of
parts added in any order give the same digits as the whole; `compute` turns sums into percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench import rle
from risbench.protocol import ScoreHalf

TENTHS = (5, 6, 7, 8, 9)  # P@X with X = TENTHS / 10
BOUNDARY = "boundary IoU"
NAMES = ("oIoU", "mIoU", *(f"P@0.{k}" for k in TENTHS), "pointing", BOUNDARY)
RATIO = 0.02  # width of a boundary in diagonals of the image (Cheng et al., Boundary IoU, CVPR 2021)
ONE = 1 << 64  # IoU is summed in fixed point: no rounding depends on the order


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
    union = rows[f"{of}union"].to_numpy()
    ratio = rows[f"{of}intersection"].to_numpy() / np.maximum(union, 1)
    return np.where(union > 0, ratio, float(rule.empty_union))


def has_boundaries(rows: pd.DataFrame) -> bool:
    """Whether boundaries were compared, too."""
    return set(Edges._fields) <= set(rows)


def precise(rows: pd.DataFrame, rule: ScoreHalf) -> NDArray[np.bool_]:
    """Whether IoU reaches 0.5, 0.6, 0.7, 0.8, 0.9, by integers: (rows, 5)."""
    union = rows["union"].to_numpy()[:, None]
    part, whole = 10 * rows["intersection"].to_numpy()[:, None], np.array(TENTHS) * union
    reached = part >= whole if rule.at_least == ">=" else part > whole
    return np.where(union > 0, reached, rule.empty_union == 1)


@dataclass(frozen=True)
class Sums:
    """Integer sums over rows, from which every metric follows; add them to merge parts."""

    n: int = 0
    counted: int = 0  # rows in mIoU and P@X
    intersection: int = 0
    union: int = 0
    iou: int = 0  # in units of 1 / ONE
    precise: tuple[int, ...] = (0,) * len(TENTHS)
    peaks: int = 0
    hits: int = 0
    bounded: int = 0  # rows in boundary IoU
    boundary: int = 0  # boundary IoU in units of 1 / ONE

    @classmethod
    def of(cls, rows: pd.DataFrame, rule: ScoreHalf) -> Sums:
        """Sum rows with the columns of `Counts` and, where they have them, of `Edges`."""
        pairs = list(zip(rows["intersection"].tolist(), rows["union"].tolist(), strict=True))
        empty = sum(union == 0 for _, union in pairs)
        bounded, boundary = _boundaries(rows, rule)
        return cls(
            n=len(rows),
            counted=len(rows) - (empty if rule.empty_union == "nan" else 0),
            intersection=sum(part for part, _ in pairs),
            union=sum(union for _, union in pairs),
            iou=sum(part * ONE // union for part, union in pairs if union) + empty * ONE * (rule.empty_union == 1),
            precise=tuple(precise(rows, rule).sum(axis=0).tolist()),
            peaks=int((rows["peak_hit"] >= 0).sum()),
            hits=int((rows["peak_hit"] == 1).sum()),
            bounded=bounded,
            boundary=boundary,
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            n=self.n + other.n,
            counted=self.counted + other.counted,
            intersection=self.intersection + other.intersection,
            union=self.union + other.union,
            iou=self.iou + other.iou,
            precise=tuple(a + b for a, b in zip(self.precise, other.precise, strict=True)),
            peaks=self.peaks + other.peaks,
            hits=self.hits + other.hits,
            bounded=self.bounded + other.bounded,
            boundary=self.boundary + other.boundary,
        )


def _boundaries(rows: pd.DataFrame, rule: ScoreHalf) -> tuple[int, int]:
    """How many rows count in boundary IoU, and the sum over them in units of 1 / ONE."""
    if not has_boundaries(rows):
        return 0, 0
    pairs = list(zip(rows["boundary_intersection"].tolist(), rows["boundary_union"].tolist(), strict=True))
    empty = sum(union == 0 for _, union in pairs)
    counted = len(pairs) - (empty if rule.empty_union == "nan" else 0)
    return counted, sum(part * ONE // union for part, union in pairs if union) + empty * ONE * (rule.empty_union == 1)


def compute(sums: Sums) -> dict[str, float | None]:
    """Every metric in percent; None where nothing counts: no row with a union, no peak, no boundaries."""
    mean = _percent(sums.iou, sums.counted * ONE)
    return {
        "oIoU": _percent(sums.intersection, sums.union) if sums.union else mean,  # all rows empty: each has the mean
        "mIoU": mean,
        **{f"P@0.{k}": _percent(hits, sums.counted) for k, hits in zip(TENTHS, sums.precise, strict=True)},
        "pointing": _percent(sums.hits, sums.peaks),
        BOUNDARY: _percent(sums.boundary, sums.bounded * ONE),
    }


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
