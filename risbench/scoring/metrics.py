"""Intersection and union, oIoU, mIoU, P@X, pointing, boundary IoU, gIoU and cIoU: the only place that computes IoU.

A mask and its ground truth become one row of integers (`MaskCounts`). Rows become integer sums (`Sums`), so that parts
added in any order give the same digits as the whole. `compute` turns sums into percent.

The no-target rule (`ScoreHalf.no_target`, for gRefCOCO) has metrics of its own. For an expression without a target, a
no-target prediction scores IoU 1 and adds no pixels, and a mask scores 0. For an expression with a target, a no-target
prediction has no intersection, but the pixels of its mask stay in the union; under the value `mask counts` its mask
keeps its intersection, too. P@X, pointing and boundary IoU are over expressions with a target.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench.data import rle
from risbench.scoring.protocol import ScoreHalf

PRECISION_TENTHS = (5, 6, 7, 8, 9)  # X of P@X in tenths
BOUNDARY_IOU = "boundary IoU"
NAMES = ("oIoU", "mIoU", *(f"P@0.{k}" for k in PRECISION_TENTHS), "pointing", BOUNDARY_IOU)
NO_TARGET_METRICS = ("gIoU", "cIoU", "N-acc", "T-acc")  # added by the no-target rule
UNDEFINED_WITH_NO_TARGET = ("oIoU", "mIoU", "P@0.5", "P@0.6")  # no accepted meaning under the no-target rule: None
CROWD = "crowd"  # column of rows: 1 the ground truth counts as a crowd of COCO, whose union is the prediction; 0 not
BOUNDARY_RATIO = 0.02  # width of a boundary in diagonals of the image (Cheng et al., Boundary IoU, CVPR 2021)
IOU_UNITS = 1 << 64  # IoU is summed in fixed point: no rounding depends on the order
_FLOAT32_UNITS = 1 << 24  # a float32 in [0.5, 1) is a whole number of 2^-24
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def names(score_half: ScoreHalf) -> tuple[str, ...]:
    """Return the metrics of a protocol, in order."""
    return NAMES if score_half.no_target == "refused" else (*NAMES, *NO_TARGET_METRICS)


# one row for each expression


class MaskCounts(NamedTuple):
    """A predicted mask against its ground truth, in pixels. The fields are the columns of rows."""

    intersection: int
    union: int
    predicted_area: int
    true_area: int
    peak_hit: int  # 1 the peak lies in the ground truth, 0 it does not, -1 there is no peak


class BoundaryCounts(NamedTuple):
    """The boundaries of a predicted mask and its ground truth, in pixels. The fields are the columns of rows."""

    boundary_intersection: int
    boundary_union: int


class NoTargetFlags(NamedTuple):
    """What the no-target rule needs, 1 or 0. The fields are the columns of rows."""

    no_target: int  # the expression has no target
    said_no_target: int  # the prediction is that it has none


def count_pixels(prediction: bytes, truth: bytes, size: rle.Size, peak: tuple[int, int] | None) -> MaskCounts:
    """Compare two RLE masks of one size; `peak` is (row, column) in pixels of that size."""
    predicted, true = rle.area(prediction, size), rle.area(truth, size)
    intersection = rle.area(rle.merge([prediction, truth], size, intersect=True), size)
    hit = -1 if peak is None else int(rle.covers(truth, size, *peak))
    return MaskCounts(intersection, predicted + true - intersection, predicted, true, hit)


def count_boundary_pixels(prediction: bytes, truth: bytes, size: rle.Size) -> BoundaryCounts:
    """Compare the boundaries (`rle.boundary`) of two masks of one size."""
    intersection = rle.area(rle.merge([prediction, truth], size, intersect=True), size)
    return BoundaryCounts(intersection, rle.area(prediction, size) + rle.area(truth, size) - intersection)


# rows


def iou(rows: pd.DataFrame, score_half: ScoreHalf, prefix: str = "") -> NDArray[np.float64]:
    """Return the IoU of every row in [0, 1], of masks or, with the prefix `boundary_`, of boundaries.

    The protocol says what an empty union scores; nan leaves the row out.
    """
    intersection, union = intersection_and_union(rows, score_half, prefix)
    return np.where(union > 0, intersection / np.maximum(union, 1), _iou_of_empty_union(rows, score_half))


def intersection_and_union(rows: pd.DataFrame, score_half: ScoreHalf, prefix: str = "") -> tuple[Ints, Ints]:
    """Return the intersection and union of every row, after the rules for no-target and crowds."""
    intersection, union = rows[f"{prefix}intersection"].to_numpy(), rows[f"{prefix}union"].to_numpy()
    if score_half.ground_truth == "crowd" and not prefix:
        union = np.where(rows[CROWD] == 1, rows["predicted_area"], union)
    right = _predicts_no_target(rows, score_half) & ~has_target(rows, score_half)
    return np.where(_loses_mask(rows, score_half), 0, intersection), np.where(right, 0, union)


def has_target(rows: pd.DataFrame, score_half: ScoreHalf) -> Bools:
    """Return the rows with a target: all without the no-target rule."""
    if score_half.no_target == "refused":
        return np.ones(len(rows), np.bool_)
    return np.asarray(rows["no_target"].to_numpy() == 0)


def target_presence_correct(rows: pd.DataFrame, score_half: ScoreHalf) -> Bools:
    """Return the rows for which the prediction is right about whether there is a target."""
    return np.asarray(_predicts_no_target(rows, score_half) != has_target(rows, score_half))


def pointing_hits(rows: pd.DataFrame, score_half: ScoreHalf) -> tuple[Bools, Bools]:
    """Return the rows whose peak hits the target, and the rows that count; without a mask nothing is hit."""
    peak, counts = rows["peak_hit"].to_numpy(), has_target(rows, score_half)
    return (peak == 1) & counts & ~_loses_mask(rows, score_half), (peak >= 0) & counts


def precision_hits(rows: pd.DataFrame, score_half: ScoreHalf) -> Bools:
    """Whether IoU reaches 0.5, 0.6, 0.7, 0.8, 0.9, compared as integers: (rows, 5).

    `> float32`: I / (U + 1e-6) > X, where X is the float32 nearest to it, a number of units of 2^-24.
    """
    intersection, union = (counts[:, None] for counts in intersection_and_union(rows, score_half))
    tenths = np.array(PRECISION_TENTHS)
    if score_half.at_least == "> float32":
        units = (np.float32(tenths / 10) * _FLOAT32_UNITS).astype(np.int64)
        reached = intersection * _FLOAT32_UNITS - units * union > units // 10**6
    else:
        excess = 10 * intersection - tenths * union
        reached = excess >= 0 if score_half.at_least == ">=" else excess > 0
    return np.where(union > 0, reached, score_half.empty_union == 1) & has_target(rows, score_half)[:, None]


def has_boundaries(rows: pd.DataFrame) -> bool:
    """Whether rows have the columns of `BoundaryCounts`."""
    return set(BoundaryCounts._fields) <= set(rows)


def _predicts_no_target(rows: pd.DataFrame, score_half: ScoreHalf) -> Bools:
    """Return the rows with a no-target prediction: none without the no-target rule."""
    if score_half.no_target == "refused":
        return np.zeros(len(rows), np.bool_)
    return np.asarray(rows["said_no_target"].to_numpy() == 1)


def _loses_mask(rows: pd.DataFrame, score_half: ScoreHalf) -> Bools:
    """Return the rows with a no-target prediction whose mask does not count."""
    keeps = has_target(rows, score_half) & (score_half.no_target == "mask counts")
    return _predicts_no_target(rows, score_half) & ~keeps


def _iou_of_empty_union(rows: pd.DataFrame, score_half: ScoreHalf) -> NDArray[np.float64]:
    """Return the IoU that every row would have with an empty union."""
    without_target = _predicts_no_target(rows, score_half).astype(np.float64)
    return np.where(has_target(rows, score_half), float(score_half.empty_union), without_target)


# sums


@dataclass(frozen=True)
class Sums:
    """Integer sums over rows, from which every metric follows. Add sums to merge parts."""

    n: int = 0
    num_iou: int = 0  # rows in mIoU or gIoU; those with a target are in P@X
    intersection: int = 0
    union: int = 0
    iou: int = 0  # in units of 1 / IOU_UNITS
    precision_hits: tuple[int, ...] = (0,) * len(PRECISION_TENTHS)
    num_peaks: int = 0
    peak_hits: int = 0
    num_boundary_iou: int = 0
    boundary_iou: int = 0  # in units of 1 / IOU_UNITS
    num_no_target_rule: int = 0  # rows under the no-target rule: all or none
    num_without_target: int = 0  # of these rows
    correct_without_target: int = 0  # without a target, and predicted so
    correct_with_target: int = 0  # with a target, and predicted so

    @classmethod
    def from_rows(cls, rows: pd.DataFrame, score_half: ScoreHalf) -> Sums:
        """Sum rows with the columns of `MaskCounts`, optionally of `BoundaryCounts`; the rule needs `NoTargetFlags`."""
        num_iou, iou = _sum_iou(rows, score_half)
        intersection, union = intersection_and_union(rows, score_half)
        hits, peaks = pointing_hits(rows, score_half)
        return cls(
            n=len(rows),
            num_iou=num_iou,
            intersection=sum(intersection.tolist()),
            union=sum(union.tolist()),
            iou=iou,
            precision_hits=tuple(precision_hits(rows, score_half).sum(axis=0).tolist()),
            num_peaks=int(peaks.sum()),
            peak_hits=int(hits.sum()),
            **_boundary_sums(rows, score_half),
            **_no_target_sums(rows, score_half),
        )

    def __add__(self, other: Sums) -> Sums:
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        pairs = zip(self.precision_hits, other.precision_hits, strict=True)
        return Sums(**{**sums, "precision_hits": tuple(a + b for a, b in pairs)})


def _sum_iou(rows: pd.DataFrame, score_half: ScoreHalf, prefix: str = "") -> tuple[int, int]:
    """Return the number of rows in a mean IoU, and the sum over them in units of 1 / IOU_UNITS."""
    intersection, union = (counts.tolist() for counts in intersection_and_union(rows, score_half, prefix))
    empty = _iou_of_empty_union(rows, score_half)[np.array(union, np.int64) == 0]
    total = sum(part * IOU_UNITS // whole for part, whole in zip(intersection, union, strict=True) if whole)
    return len(rows) - int(np.isnan(empty).sum()), total + IOU_UNITS * int((empty == 1).sum())


def _boundary_sums(rows: pd.DataFrame, score_half: ScoreHalf) -> dict[str, int]:
    if not has_boundaries(rows):
        return {}
    number, total = _sum_iou(rows[has_target(rows, score_half)], score_half, "boundary_")
    return {"num_boundary_iou": number, "boundary_iou": total}


def _no_target_sums(rows: pd.DataFrame, score_half: ScoreHalf) -> dict[str, int]:
    if score_half.no_target == "refused":
        return {}
    correct, target = target_presence_correct(rows, score_half), has_target(rows, score_half)
    return {
        "num_no_target_rule": len(rows),
        "num_without_target": int((~target).sum()),
        "correct_without_target": int((correct & ~target).sum()),
        "correct_with_target": int((correct & target).sum()),
    }


def compute(sums: Sums) -> dict[str, float | None]:
    """Return every metric in percent; None where no row counts: no row with a union, no peak, no boundaries."""
    mean = _percent(sums.iou, sums.num_iou * IOU_UNITS)
    overall = _percent(sums.intersection, sums.union) if sums.union else mean  # all rows empty: each has the mean
    with_target = sums.num_iou - sums.num_without_target
    hits = zip(PRECISION_TENTHS, sums.precision_hits, strict=True)
    metrics = {
        "oIoU": overall,
        "mIoU": mean,
        **{f"P@0.{k}": _percent(number, with_target) for k, number in hits},
        "pointing": _percent(sums.peak_hits, sums.num_peaks),
        BOUNDARY_IOU: _percent(sums.boundary_iou, sums.num_boundary_iou * IOU_UNITS),
    }
    if not sums.num_no_target_rule:
        return metrics
    accuracies = {
        "N-acc": _percent(sums.correct_without_target, sums.num_without_target),
        "T-acc": _percent(sums.correct_with_target, sums.num_no_target_rule - sums.num_without_target),
    }
    return {**metrics, **dict.fromkeys(UNDEFINED_WITH_NO_TARGET), "gIoU": mean, "cIoU": overall, **accuracies}


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
