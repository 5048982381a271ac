"""Floors and ceilings: worked examples on the small data set, independent resampling, and the permuted control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from risbench import datasets
from risbench.cli import options
from risbench.data import index, rle
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.errors import InputError
from risbench.scoring import protocol, references
from risbench.scoring.predictions import Predictions
from risbench.scoring.score import score_predictions, score_rows

ORIGINAL, LAVT = protocol.load("original"), protocol.load("lavt")


IDS = ("sent_id", "ref_id", "ann_id", "image_id", "height", "width")


def standing_in(known_index: Index, **methods: Any) -> Any:
    """The index with some methods replaced."""
    kept = {name: getattr(known_index, name) for name in ("card", "split", "limit", "candidates", "ground_truth")}
    return SimpleNamespace(**{**kept, **methods})


def masks(predictions: Predictions) -> list[rle.Mask]:
    sizes = zip(predictions.height.tolist(), predictions.width.tolist(), strict=True)
    return [rle.decode(counts, size) for counts, size in zip(predictions.counts, sizes, strict=True)]


@pytest.mark.parametrize("name", [*references.names(), "oracle-7"])
@pytest.mark.parametrize("split", ["train", "val", "testA", "testB"])
def test_every_reference_predicts_every_expression(name: str, split: str, small_index: Index) -> None:
    predictions = references.predict(name, small_index, split)
    assert predictions.header
    assert (predictions.header.method, predictions.header.dataset, predictions.header.split) == (
        f"reference/{name}",
        "small",
        split,
    )
    summary = score_predictions(predictions, small_index, split, ORIGINAL).summary
    assert summary["n"] == len(small_index.split(split))
    assert summary["pointing"] is not None


@pytest.mark.parametrize("name", [*references.names(), "oracle-7"])
def test_under_lavt_every_reference_predicts_at_480(name: str, small_index: Index) -> None:
    predictions = references.predict(name, small_index, "testA", protocol=LAVT)
    assert predictions.header and predictions.header.scored_at == (480, 480)
    assert {*predictions.height, *predictions.width} == {480}
    summary = score_predictions(predictions, small_index, "testA", LAVT).summary
    assert summary["pointing"] is not None and "resized" not in summary


def test_an_object_is_resized_as_the_truth_is(small_index: Index) -> None:
    predictions = references.predict("largest-object", small_index, "val", protocol=LAVT)
    own = references.predict("largest-object", small_index, "val")
    assert score_rows(own, small_index, "val", LAVT)["intersection"].equals(
        score_rows(predictions, small_index, "val", LAVT)["intersection"]
    )


def test_a_ceiling_knows_the_truth_of_its_protocol(small_index: Index) -> None:
    """Image 5 has overlapping polygons, whose shared pixels are background under lavt."""
    fine = references.predict("oracle-480", small_index, "testA", protocol=LAVT)
    assert score_predictions(fine, small_index, "testA", LAVT).summary["oIoU"] == 100
    of_union = references.predict("oracle-64", small_index, "testA")
    assert score_predictions(of_union, small_index, "testA", LAVT).summary["oIoU"] < 99


def test_the_whole_image_is_predicted_with_its_centre(small_index: Index) -> None:
    predictions = references.predict("whole-image", small_index, "val")
    assert all(mask.all() and mask.shape == (33, 47) for mask in masks(predictions))
    assert predictions.peak_row.tolist() == [16] * 4
    assert predictions.peak_col.tolist() == [23] * 4


def test_the_largest_object_is_the_one_with_the_most_pixels_and_no_crowd(small_index: Index) -> None:
    for split, largest in (("testA", [51]), ("testB", [61]), ("val", [41])):
        predictions = references.predict("largest-object", small_index, split)
        assert set(predictions.counts) == {small_index.ground_truth(ann_id, "union") for ann_id in largest}
    train = small_index.split("train")
    third = references.predict("largest-object", small_index, "train").take(np.flatnonzero(train.image_id == 3))
    assert set(third.counts) == {small_index.ground_truth(31, "union")}


def test_a_random_object_is_an_object_of_the_image_with_its_peak_inside(small_index: Index) -> None:
    predictions = references.predict("random-object", small_index, "train")
    split = small_index.split("train")
    for image_id, counts in zip(split.image_id.tolist(), predictions.counts, strict=True):
        assert counts in [thing.counts for thing in small_index.candidates(image_id)]
    for mask, row, column in zip(masks(predictions), predictions.peak_row, predictions.peak_col, strict=True):
        assert mask[row, column]


def test_every_object_is_drawn_about_equally_often(small_index: Index) -> None:
    draws = [references.predict("random-object", small_index, "train", seed).counts for seed in range(200)]
    for place, image_id in enumerate(small_index.split("train").image_id.tolist()):
        objects = small_index.candidates(image_id)
        shares = [sum(counts[place] == thing.counts for counts in draws) / len(draws) for thing in objects]
        assert shares == pytest.approx([1 / len(objects)] * len(objects), abs=0.13)  # 3.7 standard deviations of two
    assert len({tuple(counts[place] for counts in draws) for place in range(len(draws[0]))}) == len(draws[0])


def test_random_objects_depend_on_seed_and_expression_but_not_on_the_rest(small_index: Index) -> None:
    first, again, other = (references.predict("random-object", small_index, "train", seed) for seed in (0, 0, 1))
    assert first.counts == again.counts != other.counts
    half = np.arange(0, len(first), 2)
    whole = small_index.split("train")
    part = replace(whole, **{name: getattr(whole, name)[half] for name in IDS})
    alone = references.predict("random-object", standing_in(small_index, split=lambda name: part), "train", 0)
    assert alone.counts == first.take(half).counts


def test_an_oracle_at_the_size_of_the_image_is_the_truth(small_index: Index) -> None:
    predictions = references.predict("oracle-64", small_index, "testA")  # its image has 64 x 64 pixels
    assert predictions.counts == [
        small_index.ground_truth(a, "union") for a in small_index.split("testA").ann_id.tolist()
    ]
    assert score_predictions(predictions, small_index, "testA", ORIGINAL).summary["pointing"] == 100


def test_a_finer_oracle_is_a_higher_ceiling(small_index: Index) -> None:
    values = [
        score_predictions(
            references.predict(f"oracle-{n}", small_index, "testA"), small_index, "testA", ORIGINAL
        ).summary
        for n in (1, 4, 16, 128)
    ]
    assert [value["oIoU"] for value in values] == sorted(value["oIoU"] for value in values)
    assert values[0]["oIoU"] < 50 < 90 < values[-1]["oIoU"]


@pytest.mark.parametrize(("size", "grid"), [((48, 64), 16), ((36, 24), 12), ((24, 36), 4)])
def test_an_oracle_agrees_with_pil_where_both_average_whole_pixels(size: rle.Size, grid: int) -> None:
    rows, columns = np.mgrid[: size[0], : size[1]]
    truth = (rows - 0.4 * size[0]) ** 2 + (columns - 0.6 * size[1]) ** 2 < (0.3 * min(size)) ** 2
    image = Image.fromarray(truth.astype(np.float32))
    coarse = image.resize((grid, grid), Image.Resampling.BOX)
    expected = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    mask, peak = references._oracle(rle.encode(truth), size, grid)
    clear = np.abs(expected - 0.5) > 1e-6
    assert np.array_equal(rle.decode(mask, size)[clear], (expected > 0.5)[clear])
    assert expected[peak] == pytest.approx(expected.max())


def test_interpolation_is_that_of_torch_up_and_down() -> None:
    torch = pytest.importorskip("torch")
    rows = np.random.default_rng(0).random((9, 3))
    for number in (4, 9, 23):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(rows.T[None]), size=number, mode="linear", align_corners=False
        )
        assert references._interpolate_rows(rows, number) == pytest.approx(expected[0].numpy().T)


def test_averaging_counts_pixels_on_a_border_in_part() -> None:
    rows = np.array([[1.0], [0.0], [0.0], [1.0], [1.0]])
    assert references._average_rows(rows, 2) == pytest.approx(np.array([[0.4], [0.8]]))
    assert references._average_rows(rows, 10)[:, 0] == pytest.approx([1, 1, 0, 0, 0, 0, 1, 1, 1, 1])


def test_for_an_image_without_objects_the_whole_image_is_predicted(small_index: Index) -> None:
    bare = standing_in(small_index, candidates=lambda image_id: [])
    whole = references.predict("whole-image", small_index, "val")
    for name in ("largest-object", "random-object"):
        assert references.predict(name, bare, "val").counts == whole.counts


@pytest.mark.parametrize("name", ["whole", "oracle-0", "oracle-", "oracle-x", "reference/whole-image"])
def test_an_unknown_reference_is_refused(name: str, small_index: Index) -> None:
    with pytest.raises(InputError, match="Unknown reference .*oracle-120. oracle-N takes any N"):
        references.predict(name, small_index, "val")


def test_ceilings_of_real_masks_lie_just_below_one_hundred(shared: Path) -> None:
    sample = index.load(datasets.load("refcoco"), shared / "data" / "refcoco_sample", partial=True)
    for split in ("val", "testA", "testB"):
        scores = [
            score_predictions(references.predict(f"oracle-{n}", sample, split), sample, split, ORIGINAL)
            for n in (26, 104)
        ]
        coarse, fine = (score.summary for score in scores)
        assert 88 < coarse["mIoU"] < 94 < 98 < fine["mIoU"] < 99.5
        assert fine["pointing"] == 100
        assert fine["partial"] is True


def numbered(split: Split) -> Predictions:
    """Masks and peaks that tell to which expression they belonged."""
    sizes = list(zip(split.height.tolist(), split.width.tolist(), strict=True))
    counts = [rle.from_counts([i + 1, h * w - i - 1], (h, w)) for i, (h, w) in enumerate(sizes)]
    return Predictions.build(None, split.sent_id.tolist(), sizes, counts, [(i, i) for i in range(len(split))])


@pytest.mark.parametrize("seed", range(5))
def test_no_expression_keeps_its_prediction_and_none_leaves_its_image(seed: int, small_index: Index) -> None:
    split = small_index.split("train")
    own = numbered(split)
    dealt = references.permute_within_images(own.take(np.arange(len(split))[::-1]), split, seed)
    assert dealt.sent_id.tolist() == split.sent_id.tolist()
    source = [own.counts.index(counts) for counts in dealt.counts]
    assert sorted(source) == list(range(len(split)))
    assert all(place != came_from for place, came_from in enumerate(source))
    assert split.image_id[source].tolist() == split.image_id.tolist()
    assert dealt.peak_row.tolist() == dealt.peak_col.tolist() == source


def test_the_deal_depends_on_the_seed_alone(small_index: Index) -> None:
    split = small_index.split("train")
    dealt = [tuple(references.permute_within_images(numbered(split), split, seed).counts) for seed in range(10)]
    assert dealt == [tuple(references.permute_within_images(numbered(split), split, seed).counts) for seed in range(10)]
    assert len(set(dealt)) > 1


def test_an_expression_alone_in_its_image_keeps_its_prediction(small_index: Index) -> None:
    split = small_index.split("val")
    alone = replace(split, image_id=np.arange(4))
    assert references.permute_within_images(numbered(split), alone).counts == numbered(split).counts


def test_a_permuted_oracle_falls(small_index: Index) -> None:
    oracle = references.predict("oracle-120", small_index, "testA")
    dealt = references.permute_within_images(oracle, small_index.split("testA"))
    before, after = (score_predictions(p, small_index, "testA", ORIGINAL).summary["mIoU"] for p in (oracle, dealt))
    assert after < 0.7 * before


def test_floors_of_the_no_target_answer(sets_index: Index) -> None:
    """One of four expressions has no target; the whole image has an IoU below 1 with every target."""
    rule = protocol.load("grefcoco")
    always, never, whole = (
        score_predictions(references.predict(name, sets_index, "val", protocol=rule), sets_index, "val", rule).summary
        for name in ("always-no-target", "never-no-target", "whole-image")
    )
    assert (always["N-acc"], always["T-acc"], always["gIoU"], always["cIoU"]) == (100, 0, 25, 0)
    assert (never["N-acc"], never["T-acc"]) == (0, 100)
    assert 0 < never["gIoU"] == whole["gIoU"] < 75
    stated = [references.predict(name, sets_index, "val").no_target for name in ("always-no-target", "never-no-target")]
    assert [flags is not None and flags.tolist() for flags in stated] == [[1] * 4, [0] * 4]


def test_these_floors_are_among_all_references_only_under_a_no_target_rule() -> None:
    assert options.reference_names("reference", ["original", "lavt"]) == references.names(no_target_rule=False)
    assert {*references.names()} - {*references.names(no_target_rule=False)} == {"always-no-target", "never-no-target"}
    assert options.reference_names("reference", ["original", "gsva"]) == references.names()
    assert options.reference_names("reference/never-no-target", ["original"]) == ["never-no-target"]
