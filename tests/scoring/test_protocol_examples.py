"""One example of each rule in which protocols differ, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from risbench.data import rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import metrics, protocol
from risbench.scoring.predictions import Predictions
from risbench.scoring.protocol import ScoreHalf
from risbench.scoring.score import score_predictions

Mask = NDArray[np.bool_]


def boxes(size: rle.Size, *corners: tuple[int, int, int, int]) -> Mask:
    """A mask of boxes (left, top, right, bottom), right and bottom excluded."""
    mask = np.zeros(size, np.bool_)
    for left, top, right, bottom in corners:
        mask[top:bottom, left:right] = True
    return mask


def scored(name: str, index: Index, split: str, *masks: Mask) -> dict[str, Any]:
    """The summary of masks for the expressions of a split, by sent_id."""
    ids = sorted(index.split(split).sent_id.tolist())
    sizes = [(mask.shape[0], mask.shape[1]) for mask in masks]
    predictions = Predictions.build(None, ids, sizes, [rle.encode(mask) for mask in masks], [None] * len(ids))
    return score_predictions(predictions, index, split, protocol.load(name)).summary


def computed(rule: ScoreHalf, *pairs: tuple[int, int], **columns: list[int]) -> dict[str, float | None]:
    """The metrics of rows with these intersections and unions."""
    rows = pd.DataFrame(pairs, columns=["intersection", "union"]).assign(peak_hit=-1, **columns)
    return metrics.compute(metrics.Sums.from_rows(rows, rule))


def passes(name: str, intersection: int, union: int) -> list[float | None]:
    """P@0.5 to P@0.9 of one expression under a protocol."""
    values = computed(protocol.load(name).score, (intersection, union))
    return [values[f"P@0.{tenth}"] for tenth in metrics.PRECISION_TENTHS]


# split testA of the small data set: an expression of annotation 52, a box of 15 x 15, then two of 51, in an image of
# 64 x 64. Annotation 51 has three boxes of 600, 600 and 420 pixels, which overlap by 160, 84 and 64 in pairs
# and by 24 all three: their union has 1,620 - 308 + 24 = 1,336 pixels, one box alone covers 1,620 - 616 + 72 = 1,076
STEPS = ((6, 6, 36, 26), (20, 16, 50, 36), (10, 20, 24, 50))
SQUARE = (45, 45, 60, 60)


def test_zs_ris_counts_what_several_polygons_cover_as_background_at_the_size_of_the_image(small_index: Index) -> None:
    steps, square = boxes((64, 64), *STEPS), boxes((64, 64), SQUARE)
    summary = scored("zs-ris", small_index, "testA", square, steps, steps)
    assert (summary["intersection"], summary["union"]) == (2 * 1076 + 225, 2 * 1336 + 225)
    assert summary["mIoU"] == pytest.approx(100 * (2 * 1076 / 1336 + 1) / 3)
    assert scored("original", small_index, "testA", square, steps, steps)["oIoU"] == 100


def test_magnet_448_compares_at_448_by_448_and_refuses_masks_of_480(small_index: Index) -> None:
    """The image is 64 x 64, so that a pixel of it is 7 x 7 of the scored size."""
    steps, square = boxes((64, 64), *STEPS), boxes((448, 448), (315, 315, 420, 415))  # 105 x 100 of 105 x 105
    summary = scored("magnet-448", small_index, "testA", square, steps, steps)
    assert (summary["intersection"], summary["union"]) == (2 * 49 * 1076 + 10500, 2 * 49 * 1336 + 11025)
    assert summary["resized"]
    with pytest.raises(InputError, match="have neither the size of their images nor 448 x 448"):
        scored("magnet-448", small_index, "testA", *[boxes((480, 480))] * 3)


def test_deris_compares_with_the_union_at_640_by_640(small_index: Index) -> None:
    """A pixel of the image is 10 x 10 of the scored size."""
    steps, square = boxes((64, 64), *STEPS), boxes((640, 640), (450, 450, 600, 599))  # 150 x 149 of 150 x 150
    summary = scored("deris", small_index, "testA", square, steps, boxes((64, 64)))
    assert (summary["intersection"], summary["union"]) == (133_600 + 22_350, 2 * 133_600 + 22_500)
    assert summary["mIoU"] == pytest.approx(100 * (1 + 0 + 22_350 / 22_500) / 3)


def test_seqtr_divides_by_the_prediction_where_a_ground_truth_has_several_parts(small_index: Index) -> None:
    """Split testB: two expressions of annotation 62, a box of 12 x 25, then one of 61, parts of 240 and 64 pixels."""
    part, half = boxes((50, 30), (2, 2, 14, 22)), boxes((50, 30), (16, 20, 22, 45))
    masks = (half, boxes((50, 30)), part)
    summary = scored("seqtr", small_index, "testB", *masks)
    assert summary["mIoU"] == pytest.approx(100 * (240 / 240 + 150 / 300 + 0) / 3)
    assert summary["P@0.9"] == pytest.approx(100 / 3)
    usual = scored("original", small_index, "testB", *masks)
    assert usual["mIoU"] == pytest.approx(100 * (240 / 304 + 150 / 300 + 0) / 3)
    both = boxes((50, 30), (2, 2, 14, 22), (2, 26, 10, 34))
    rles = [{"size": [50, 30], "counts": rle.encode(mask)} for mask in (part, both)]
    assert coco.iou(rles[:1], rles[1:], [1])[0, 0] == 1  # what pycocotools says of a crowd
    assert "crowd" in protocol.load("seqtr").defect


def test_lisa_scores_an_empty_mask_of_an_empty_ground_truth_as_1() -> None:
    rows = ((0, 0), (8, 8), (4, 14))
    assert computed(protocol.load("lisa").score, *rows)["mIoU"] == pytest.approx(100 * (1 + 1 + 2 / 7) / 3)
    assert computed(protocol.load("original").score, *rows)["mIoU"] == pytest.approx(100 * (0 + 1 + 2 / 7) / 3)
    assert computed(protocol.load("lisa").score, *rows)["oIoU"] == pytest.approx(100 * 12 / 22)
    original, lisa = protocol.load("original"), protocol.load("lisa")
    assert lisa.input == original.input
    assert lisa.score == original.score.model_copy(update={"empty_union": 1})


def test_gsva_keeps_the_mask_of_a_wrong_no_target_answer() -> None:
    """A target with a mask of 4 / 14 and the answer no-target; two without a target, one with a mask of 8 pixels."""
    rows = ((4, 14), (0, 0), (0, 8))
    flags = {"no_target": [0, 1, 1], "said_no_target": [1, 1, 0]}
    values = computed(protocol.load("gsva").score, *rows, **flags)
    assert values["gIoU"] == pytest.approx(100 * (4 / 14 + 1 + 0) / 3)
    assert values["cIoU"] == pytest.approx(100 * 4 / 22)
    assert (values["N-acc"], values["T-acc"]) == (50, 0)
    usual = computed(protocol.load("grefcoco").score, *rows, **flags)
    assert usual["gIoU"] == pytest.approx(100 * (0 + 1 + 0) / 3)
    assert (usual["cIoU"], usual["N-acc"], usual["T-acc"]) == (0, 50, 0)


def test_an_iou_of_exactly_x_passes_where_the_code_that_is_followed_lets_it_pass() -> None:
    """The ground truth [[1, 1]] and the mask [[1, 0]] have I = 1 and U = 2."""
    assert passes("simrec", 1, 2) == [100, 0, 0, 0, 0]
    assert passes("lts", 1, 2) == passes("cris", 1, 2) == [0, 0, 0, 0, 0]
    for tenth, union in ((5, 20_000), (6, 20_000), (7, 20_000), (8, 20_000), (9, 20_000)):
        place = tenth - 5
        assert passes("simrec", tenth * union // 10, union)[place] == 100
        assert passes("lts", tenth * union // 10, union)[place] == 0
        assert passes("cris", tenth * union // 10, union)[place] == (100 if tenth in (7, 9) else 0)


def test_cris_agrees_with_float64_ious_and_float32_thresholds() -> None:
    generator = np.random.default_rng(0)
    union = np.concatenate([np.repeat(np.arange(1, 201), 201), generator.integers(1, 90_000_000, 2000)])
    part = np.concatenate([np.tile(np.arange(201), 200), generator.integers(0, 90_000_000, 2000)]) % (union + 1)
    near = np.repeat(generator.integers(1, 9_000_000, 500) * 10, 5)  # ties, and one pixel to either side
    ties = near // 10 * np.tile(metrics.PRECISION_TENTHS, 500)
    union, part = np.concatenate([union, near, near, near]), np.concatenate([part, ties - 1, ties, ties + 1])
    rows = pd.DataFrame({"intersection": part, "union": union})
    expected = (part / (union + 1e-6))[:, None] > np.array([0.5, 0.6, 0.7, 0.8, 0.9], np.float32).astype(np.float64)
    assert (metrics.precision_hits(rows, protocol.load("cris").score) == expected).all()
