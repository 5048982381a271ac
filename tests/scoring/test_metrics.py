"""Metrics: cases worked by hand, independent computations, and sums that merge without a difference in any digit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco

from risbench.data import rle
from risbench.scoring import metrics
from risbench.scoring.metrics import MaskCounts, Sums
from risbench.scoring.protocol import ScoreHalf

SIZE = (4, 5)
AT_LEAST = ScoreHalf()
ABOVE = ScoreHalf(at_least=">")
ONE_WHEN_EMPTY = ScoreHalf(empty_union=1)
WITHOUT_EMPTY = ScoreHalf(empty_union="nan")


def block(rows: slice, columns: slice) -> bytes:
    mask = np.zeros(SIZE, np.bool_)
    mask[rows, columns] = True
    return rle.encode(mask)


NOTHING = block(slice(0, 0), slice(0, 0))
ALL = block(slice(None), slice(None))
LEFT = block(slice(None), slice(0, 2))  # 8 pixels
TOP = block(slice(0, 2), slice(None))  # 10 pixels, 4 of them in LEFT


def table(*pairs: tuple[int, int], peak_hit: int = -1) -> pd.DataFrame:
    columns = {"intersection": [part for part, _ in pairs], "union": [union for _, union in pairs]}
    return pd.DataFrame({**columns, "peak_hit": [peak_hit] * len(pairs)})


def computed(rows: pd.DataFrame, rule: ScoreHalf = AT_LEAST) -> dict[str, float | None]:
    return metrics.compute(Sums.from_rows(rows, rule))


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (TOP, LEFT, (4, 14, 10, 8)),
        (LEFT, LEFT, (8, 8, 8, 8)),
        (ALL, LEFT, (8, 20, 20, 8)),
        (LEFT, ALL, (8, 20, 8, 20)),
        (ALL, ALL, (20, 20, 20, 20)),
        (NOTHING, LEFT, (0, 8, 0, 8)),
        (LEFT, NOTHING, (0, 8, 8, 0)),
        (NOTHING, NOTHING, (0, 0, 0, 0)),
    ],
)
def test_pixels_are_counted_as_by_hand(prediction: bytes, truth: bytes, expected: tuple[int, int, int, int]) -> None:
    assert metrics.count_pixels(prediction, truth, SIZE, None) == MaskCounts(*expected, -1)


def test_a_peak_hits_where_it_lies_in_the_truth_whatever_the_prediction() -> None:
    assert metrics.count_pixels(NOTHING, LEFT, SIZE, (3, 1)).peak_hit == 1
    assert metrics.count_pixels(LEFT, TOP, SIZE, (3, 1)).peak_hit == 0
    assert metrics.count_pixels(ALL, NOTHING, SIZE, (0, 0)).peak_hit == 0


def test_metrics_of_three_rows_are_those_worked_by_hand() -> None:
    assert computed(table((4, 14), (8, 8), (6, 10))) == {
        "oIoU": 100 * 18 / 32,
        "mIoU": pytest.approx(100 * (2 / 7 + 1 + 3 / 5) / 3, rel=1e-15),
        "P@0.5": 200 / 3,
        "P@0.6": 200 / 3,
        "P@0.7": 100 / 3,
        "P@0.8": 100 / 3,
        "P@0.9": 100 / 3,
        "pointing": None,
        "boundary IoU": None,
    }


def with_boundaries(*pairs: tuple[int, int]) -> pd.DataFrame:
    edges = {"boundary_intersection": [part for part, _ in pairs], "boundary_union": [union for _, union in pairs]}
    return table(*[(1, 2)] * len(pairs)).assign(**edges)


def test_boundary_iou_is_the_mean_over_rows_and_sums_of_parts_give_the_whole() -> None:
    rows = with_boundaries((1, 4), (0, 0), (3, 4))
    assert computed(rows)["boundary IoU"] == pytest.approx(100 * (1 / 4 + 0 + 3 / 4) / 3, rel=1e-15)
    assert computed(rows, ONE_WHEN_EMPTY)["boundary IoU"] == pytest.approx(200 / 3, rel=1e-15)
    assert computed(rows, WITHOUT_EMPTY)["boundary IoU"] == 50
    parts = [Sums.from_rows(rows[:1], AT_LEAST), Sums.from_rows(rows[1:], AT_LEAST)]
    assert parts[1] + parts[0] == Sums.from_rows(rows, AT_LEAST)


@pytest.mark.parametrize("tenths", metrics.PRECISION_TENTHS)
def test_an_iou_on_the_threshold_reaches_it_but_is_not_above(tenths: int) -> None:
    rows = table((tenths * 30, 300))
    name = f"P@0.{tenths}"
    assert (computed(rows, AT_LEAST)[name], computed(rows, ABOVE)[name]) == (100, 0)
    less, more = table((tenths * 30 - 1, 300)), table((tenths * 30 + 1, 300))
    assert (computed(less, AT_LEAST)[name], computed(more, ABOVE)[name]) == (0, 100)


def test_an_empty_union_scores_by_the_protocol() -> None:
    rows = table((0, 0), (5, 10), (0, 4), (9, 10))
    assert computed(rows)["mIoU"] == 35
    assert computed(rows, ONE_WHEN_EMPTY)["mIoU"] == 60
    assert computed(rows, WITHOUT_EMPTY)["mIoU"] == pytest.approx(140 / 3, rel=1e-15)
    assert [computed(rows, rule)["P@0.5"] for rule in (AT_LEAST, ONE_WHEN_EMPTY, WITHOUT_EMPTY)] == [50, 75, 200 / 3]
    assert [computed(rows, rule)["oIoU"] for rule in (AT_LEAST, ONE_WHEN_EMPTY, WITHOUT_EMPTY)] == [1400 / 24] * 3


def test_an_empty_union_is_above_every_threshold_where_it_scores_one() -> None:
    rule = ScoreHalf(at_least=">", empty_union=1)
    assert computed(table((0, 0)), rule)["P@0.9"] == 100


def test_when_every_union_is_empty_all_metrics_follow_the_protocol() -> None:
    rows = table((0, 0), (0, 0))
    assert (computed(rows)["oIoU"], computed(rows)["mIoU"]) == (0, 0)
    assert (computed(rows, ONE_WHEN_EMPTY)["oIoU"], computed(rows, ONE_WHEN_EMPTY)["mIoU"]) == (100, 100)
    assert set(computed(rows, WITHOUT_EMPTY).values()) == {None}


def test_no_row_gives_no_metric() -> None:
    assert set(metrics.compute(Sums()).values()) == {None}
    assert tuple(metrics.compute(Sums())) == metrics.NAMES


def test_pointing_is_the_share_of_peaks_that_hit() -> None:
    rows = pd.concat([table((1, 2), (1, 2), (1, 2), peak_hit=1), table((2, 2), peak_hit=0)])
    assert computed(rows)["pointing"] == 75


def test_iou_of_each_row_is_nan_only_where_it_is_left_out() -> None:
    rows = table((0, 0), (1, 4))
    assert metrics.iou(rows, AT_LEAST).tolist() == [0, 0.25]
    assert metrics.iou(rows, ONE_WHEN_EMPTY).tolist() == [1, 0.25]
    assert np.array_equal(metrics.iou(rows, WITHOUT_EMPTY), [np.nan, 0.25], equal_nan=True)


mask_pairs = st.tuples(st.integers(1, 25), st.integers(1, 25)).flatmap(
    lambda size: st.tuples(arrays(np.bool_, size), arrays(np.bool_, size))
)


@settings(deadline=None, derandomize=True)
@given(mask_pairs)
def test_counts_agree_with_numpy_and_pycocotools(masks: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> None:
    prediction, truth = masks
    size = (prediction.shape[0], prediction.shape[1])
    counts = metrics.count_pixels(rle.encode(prediction), rle.encode(truth), size, None)
    assert counts.intersection == np.logical_and(prediction, truth).sum()
    assert counts.union == np.logical_or(prediction, truth).sum()
    encoded = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    assert [counts.predicted_area, counts.true_area] == coco.area(encoded).tolist()
    ratio = coco.iou(encoded[:1], encoded[1:], [0])[0, 0]
    assert computed(table(counts[:2]))["mIoU"] == pytest.approx(100 * ratio, rel=1e-12)


def rows_of_integers() -> st.SearchStrategy[pd.DataFrame]:
    pair = st.integers(0, 2**31).flatmap(lambda union: st.tuples(st.integers(0, union), st.just(union)))
    row = st.tuples(pair, st.sampled_from([-1, 0, 1]))
    return st.lists(row, max_size=40).map(
        lambda rows: pd.DataFrame(
            [(*pair, hit) for pair, hit in rows], columns=["intersection", "union", "peak_hit"], dtype=np.int64
        )
    )


rules = st.builds(
    ScoreHalf,
    at_least=st.sampled_from([">=", ">"]),
    empty_union=st.sampled_from([0, 1, "nan"]),
)


@settings(deadline=None, derandomize=True)
@given(rows_of_integers(), rules, st.data())
def test_merge_of_parts_in_any_order_equals_whole(rows: pd.DataFrame, rule: ScoreHalf, data: Any) -> None:
    part = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows))), np.int64)
    parts = [Sums.from_rows(rows[part == number], rule) for number in data.draw(st.permutations(range(5)))]
    whole = Sums.from_rows(rows, rule)
    assert sum(parts, Sums()) == whole
    assert metrics.compute(sum(parts, Sums())) == metrics.compute(whole)


@settings(deadline=None, derandomize=True)
@given(rows_of_integers(), rules)
def test_metrics_agree_with_exact_fractions(rows: pd.DataFrame, rule: ScoreHalf) -> None:
    empty = {0: [Fraction(0)], 1: [Fraction(1)], "nan": []}[rule.empty_union]
    pairs = [(int(i), int(u)) for i, u in zip(rows["intersection"], rows["union"], strict=True)]
    scores = [score for i, u in pairs for score in ([Fraction(i, u)] if u else empty)]
    values = computed(rows, rule)
    if not scores:
        assert values["mIoU"] is values["P@0.7"] is None
        return
    assert values["mIoU"] == pytest.approx(float(100 * sum(scores) / len(scores)), rel=1e-15, abs=1e-12)
    for tenths in metrics.PRECISION_TENTHS:
        bar = Fraction(tenths, 10)
        reached = sum(score >= bar if rule.at_least == ">=" else score > bar for score in scores)
        assert values[f"P@0.{tenths}"] == 100 * reached / len(scores)
