"""Scoring: golden rows on the small data set, what is refused, and an environment without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from risbench import datasets
from risbench.data import index as indices
from risbench.data import rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import metrics, predictions_file, protocol, references
from risbench.scoring.metrics import NAMES
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.score import (
    score_predictions,
    score_rows,
    score_under_all_protocols,
    summary_with_intervals,
)

ORIGINAL, LTS, LAVT, TRAIN = (protocol.load(name) for name in ("original", "lts", "lavt", "lavt-train"))
ONCE = ORIGINAL.model_copy(update={"score": ORIGINAL.score.model_copy(update={"ground_truth": "once"})})


def perfect(index: Index, split: str, header: Header | None = None) -> Predictions:
    rows = index.split(split)
    sizes = list(zip(rows.height.tolist(), rows.width.tolist(), strict=True))
    counts = [index.ground_truth(ann_id, "union") for ann_id in rows.ann_id.tolist()]
    return Predictions.build(header, rows.sent_id.tolist(), sizes, counts, [None] * len(rows))


def header(**changed: object) -> Header:
    return Header.model_validate({"dataset": "small", "split": "val", "input": {}, "method": "lts", **changed})


def all_right(n: int) -> dict[str, object]:
    return {"n": n, "oIoU": 100.0, "mIoU": 100.0, "intervals": {}}  # of one image


def test_the_truth_itself_scores_one_hundred(small_index: Index) -> None:
    scored = score_predictions(perfect(small_index, "val"), small_index, "val", ORIGINAL, boundaries=True)
    area = int(scored.rows["true_area"].sum())
    assert scored.summary == {
        "dataset": "small",
        "split": "val",
        "protocol": "original",
        "n": 4,
        **dict.fromkeys(NAMES, 100.0),
        "pointing": None,
        "intersection": area,
        "union": area,
        "slices": {
            "kind of expression": {"location": all_right(2), "size": all_right(2)},
            "same-class distractors": {"0": all_right(4)},
            "expression length": {"2": all_right(3), "3": all_right(1)},
            "kind words": {"place": all_right(2), "size": all_right(1), "none": all_right(1)},
            "object size": {"small": all_right(4)},
            "touching the border": {"no": all_right(4)},
            "pieces of the object": {"one": all_right(4)},
            "objects in the image": {"1-4": all_right(4)},
        },
    }


def test_the_summary_is_json(small_index: Index) -> None:
    scored = score_predictions(references.predict("whole-image", small_index, "testA"), small_index, "testA", LTS)
    assert json.loads(json.dumps(scored.summary, allow_nan=False)) == scored.summary


def test_a_swapped_and_an_empty_mask_give_the_rows_worked_by_hand(small_index: Index) -> None:
    split = small_index.split("testB")  # 61 is (12 x 20) + (8 x 8) = 304 pixels, 62 is 12 x 25 = 300, apart
    perfect_ = perfect(small_index, "testB")
    ann = split.ann_id.tolist()
    swapped = small_index.ground_truth(62, "union")
    empty = rle.encode(np.zeros((50, 30)))
    counts = [
        swapped if a == 61 else empty if a == 62 and i == ann.index(62) else perfect_.counts[i]
        for i, a in enumerate(ann)
    ]
    peaks = np.array([25 if a == 62 else 45 for a in ann], np.int32), np.full(3, 20, np.int32)
    predictions = replace(perfect_, counts=counts, peak_row=peaks[0], peak_col=peaks[1])
    scored = score_predictions(predictions, small_index, "testB", ORIGINAL)
    expected = {61: (0, 604, 300, 304, 0), "empty": (0, 300, 0, 300, 1), 62: (300, 300, 300, 300, 1)}
    keys = ["empty" if a == 62 and i == ann.index(62) else a for i, a in enumerate(ann)]
    fields = ["intersection", "union", "predicted_area", "true_area", "peak_hit"]
    assert scored.rows[fields].to_numpy().tolist() == [list(expected[key]) for key in keys]
    assert scored.summary["oIoU"] == 100 * 300 / 1204
    assert scored.summary["mIoU"] == scored.summary["P@0.9"] == 100 / 3
    assert scored.summary["pointing"] == 200 / 3


def test_rows_follow_the_split_whatever_the_order_of_the_file(small_index: Index) -> None:
    split = small_index.split("val")
    shuffled = perfect(small_index, "val").take(np.array([3, 1, 0, 2]))
    rows = score_rows(shuffled, small_index, "val", ORIGINAL)
    for name in ("sent_id", "ref_id", "image_id"):
        assert rows[name].tolist() == list(getattr(split, name))
    assert rows["kind of expression"].tolist() == split.kind
    assert rows.equals(score_rows(perfect(small_index, "val"), small_index, "val", ORIGINAL))


def test_pixels_that_two_polygons_cover_count_by_the_protocol(small_index: Index) -> None:
    union = score_rows(perfect(small_index, "testA"), small_index, "testA", ORIGINAL)
    once = score_rows(perfect(small_index, "testA"), small_index, "testA", ONCE)
    overlapping = union["ref_id"] == 151
    assert (union["true_area"] == union["predicted_area"]).all()
    assert (once["true_area"] < once["predicted_area"])[overlapping].all()
    assert once[~overlapping].equals(union[~overlapping])


def test_a_file_for_something_else_is_refused(small_index: Index) -> None:
    for wrong, message in (
        (header(dataset="refcoco+"), "made with dataset 'refcoco\\+', but are to be scored with 'small'"),
        (header(split="testA"), "made with split 'testA', but are to be scored with 'val'"),
        (header(input={"threshold": 0.5}), "made with threshold 0.5, but are to be scored with 0.25"),
    ):
        with pytest.raises(InputError, match=message):
            score_rows(perfect(small_index, "val", wrong), small_index, "val", LTS)
    fitting = perfect(small_index, "val", header(input={"threshold": 0.25, "geometry": "letterbox"}))
    assert len(score_rows(fitting, small_index, "val", LTS)) == 4


def test_masks_of_another_size_are_refused_with_both_sizes(small_index: Index) -> None:
    own = perfect(small_index, "val")
    turned = replace(own, height=own.width, width=own.height)
    with pytest.raises(
        InputError, match=rf"4 masks differ in size .* sent_id {own.sent_id[0]} has 47 x 33, its image 33 x 47"
    ):
        score_rows(turned, small_index, "val", ORIGINAL)


def as_released(root: Path, ann_id: int, size: rle.Size) -> NDArray[np.bool_]:
    """The ground truth as LAVT's released code makes it: the sum of the polygons, where it is 1, as a palette image."""
    annotations = json.loads((root / "small" / "instances.json").read_text())["annotations"]
    polygons = next(each["segmentation"] for each in annotations if each["id"] == ann_id)
    added = coco.decode(coco.frPyObjects(polygons, *size)).sum(axis=2)
    image = Image.fromarray((added == 1).astype(np.uint8)).convert("P")
    return np.asarray(image.resize((480, 480), Image.Resampling.NEAREST), np.bool_)


@pytest.mark.parametrize("split", ["val", "testA", "testB"])
def test_lavt_counts_what_the_released_code_counts_at_480(small_root: Path, small_index: Index, split: str) -> None:
    expressions = small_index.split(split)
    generator = np.random.default_rng(0)
    masks = [generator.random((480, 480)) < generator.random() for _ in range(len(expressions))]
    peaks = [(int(row), int(column)) for row, column in generator.integers(480, size=(len(expressions), 2))]
    sizes = [(480, 480)] * len(expressions)
    predictions = Predictions.build(
        None, expressions.sent_id.tolist(), sizes, [rle.encode(mask) for mask in masks], peaks
    )
    scored = score_predictions(predictions, small_index, split, LAVT)

    expected = []
    original = zip(expressions.height.tolist(), expressions.width.tolist(), strict=True)
    for mask, peak, ann_id, size in zip(masks, peaks, expressions.ann_id.tolist(), original, strict=True):
        truth = as_released(small_root, ann_id, size)
        both, either = (mask & truth).sum(), (mask | truth).sum()
        expected.append([both, either, mask.sum(), truth.sum(), truth[peak]])
    fields = ["intersection", "union", "predicted_area", "true_area", "peak_hit"]
    assert scored.rows[fields].to_numpy().tolist() == np.array(expected).tolist()
    assert scored.summary["oIoU"] == 100 * sum(row[0] for row in expected) / sum(row[1] for row in expected)
    assert "resized" not in scored.summary


def test_masks_of_the_image_size_are_resized_and_the_result_is_marked(small_root: Path, small_index: Index) -> None:
    split = small_index.split("testA")
    own = perfect(small_index, "testA")  # 64 x 64
    places = np.arange(3, dtype=np.int32)
    predictions = replace(own, peak_row=places, peak_col=places + 20)
    scored = score_predictions(predictions, small_index, "testA", LAVT)
    assert scored.summary["resized"] is True

    masks = [
        np.asarray(Image.fromarray(rle.decode(counts, (64, 64))).resize((480, 480), Image.Resampling.NEAREST))
        for counts in own.counts
    ]
    peaks = [(int(7.5 * (k + 0.5)), int(7.5 * (k + 20.5))) for k in range(3)]  # under the centres of the pixels
    sizes = [(480, 480)] * 3
    by_hand = Predictions.build(None, split.sent_id.tolist(), sizes, [rle.encode(mask) for mask in masks], peaks)
    assert scored.rows.equals(score_predictions(by_hand, small_index, "testA", LAVT).rows)

    without = score_rows(own, small_index, "testA", LAVT)
    assert (without["peak_hit"] == -1).all()
    mixed = replace(by_hand, counts=[*by_hand.counts[:2], own.counts[2]])
    for field, value in (("height", 64), ("width", 64), ("peak_row", 2), ("peak_col", 22)):
        getattr(mixed, field)[2] = value
    assert score_predictions(mixed, small_index, "testA", LAVT).rows.equals(scored.rows)


def test_a_mask_of_a_network_is_not_scored_at_the_size_of_the_image(small_index: Index) -> None:
    predictions = references.predict("whole-image", small_index, "val", protocol=LAVT)
    with pytest.raises(InputError, match="4 masks differ in size from their images.* has 480 x 480, its image 33 x 47"):
        score_rows(predictions, small_index, "val", ORIGINAL)


def test_under_lavt_a_mask_of_any_third_size_is_refused(small_index: Index) -> None:
    own = perfect(small_index, "val")
    turned = replace(own, height=own.width, width=own.height)
    message = "4 masks have neither the size of their images nor 480 x 480, at .* has 47 x 33, its image 33 x 47"
    with pytest.raises(InputError, match=message):
        score_rows(turned, small_index, "val", LAVT)


def test_under_lavt_train_only_the_drawn_sentences_count(small_index: Index) -> None:
    split = TRAIN.input.select_expressions(small_index.split("train"))
    whole = references.predict("random-object", small_index, "train", protocol=LAVT)
    scored = score_predictions(whole, small_index, "train", TRAIN)
    assert scored.rows["sent_id"].tolist() == split.sent_id.tolist()
    assert scored.summary["n"] == 6 < len(whole)
    every = score_predictions(whole, small_index, "train", LAVT).rows
    of_drawn = every[every["sent_id"].isin(split.sent_id)].reset_index(drop=True)
    assert of_drawn.equals(scored.rows)

    only = references.predict("random-object", small_index, "train", protocol=TRAIN)
    assert only.sent_id.tolist() == split.sent_id.tolist()
    assert score_predictions(only, small_index, "train", TRAIN).rows.equals(scored.rows)


def test_without_a_drawn_sentence_or_with_the_drawn_ones_only_a_file_may_be_incomplete(small_index: Index) -> None:
    selected = TRAIN.input.select_expressions(small_index.split("train"))
    whole = references.predict("whole-image", small_index, "train", protocol=LAVT)
    without = whole.take(np.flatnonzero(whole.sent_id != selected.sent_id[2]))
    cure = "Predict all 6 expressions of split 'train' that are evaluated"
    message = rf"sent_id {selected.sent_id[2]} \(1 in all\). {cure}"
    with pytest.raises(InputError, match=message):
        score_rows(without, small_index, "train", TRAIN)
    with pytest.raises(InputError, match="Without a prediction.*Predict all 10 expressions of split 'train'."):
        score_rows(references.predict("whole-image", small_index, "train", protocol=TRAIN), small_index, "train", LAVT)


def test_a_header_with_drawn_sentences_does_not_pass_for_all(small_index: Index) -> None:
    whole, drawn = (references.predict("whole-image", small_index, "val", protocol=made) for made in (LAVT, TRAIN))
    whole, drawn = (
        replace(predictions, header=header(input={"sentences": sentences}))
        for predictions, sentences in ((whole, "each"), (drawn, "random"))
    )
    lengths = [len(score_rows(predictions, small_index, "val", TRAIN)) for predictions in (whole, drawn)]
    assert lengths == [2, 2] and len(score_rows(whole, small_index, "val", LAVT)) == 4
    with pytest.raises(InputError, match="made with sentences 'random', but are to be scored with 'each'"):
        score_rows(drawn, small_index, "val", LAVT)


def test_predictions_for_separate_sentences_do_not_pass_for_joined_ones(small_index: Index) -> None:
    joined = protocol.load("zs-lavt")
    separate = perfect(small_index, "val")
    split = small_index.split("val")
    later = sorted(set(split.sent_id) - set(joined.input.select_expressions(split).sent_id))
    with pytest.raises(InputError, match=rf"Predicted separately.*: sent_id {later[0]}, {later[1]} \(2 in all\)"):
        score_rows(separate, small_index, "val", joined)
    per_ref = separate.take(np.flatnonzero(~np.isin(separate.sent_id, later)))
    assert score_predictions(per_ref, small_index, "val", joined).summary["n"] == 2
    made = replace(per_ref, header=header(input={"sentences": "each"}))
    with pytest.raises(InputError, match="made with sentences 'each', but are to be scored with 'joined'"):
        score_rows(made, small_index, "val", joined)


def test_a_colour_in_the_file_is_that_of_the_protocol(small_index: Index, tmp_path: Path) -> None:
    made = header(input={**dict(protocol.load("cris").input), "max_tokens": 17})
    predictions_file.write(tmp_path / "val.parquet", perfect(small_index, "val", made))
    assert (
        len(score_rows(predictions_file.read(tmp_path / "val.parquet"), small_index, "val", protocol.load("cris"))) == 4
    )
    grey = perfect(small_index, "val", header(input={"border": 127}))
    with pytest.raises(InputError, match=r"made with border 127, but are to be scored with \[123, 117, 104\]"):
        score_rows(grey, small_index, "val", protocol.load("cris"))


def test_a_file_that_does_not_say_where_it_was_cut_was_cut_at_the_scored_size(small_index: Index) -> None:
    older = perfect(small_index, "val", header(input={"threshold": 0.35}))
    with pytest.raises(InputError, match="made with cut_at 'scored', but are to be scored with 'network'"):
        score_rows(older, small_index, "val", protocol.load("simrec"))


def test_one_file_under_every_protocol(small_index: Index) -> None:
    own = references.predict("random-object", small_index, "val")
    summaries, refused = score_under_all_protocols(own, small_index, "val")
    assert list(refused) == ["zs-lavt"] and refused["zs-lavt"].startswith("Predicted separately")
    assert [s["protocol"] for s in summaries] == [
        name for name in protocol.names() if name not in ("zs-lavt", "grefcoco", "gsva")
    ]
    for summary in summaries:
        under = protocol.load(summary["protocol"])
        scored = score_predictions(own, small_index, "val", under)
        assert summary == summary_with_intervals(scored, under)

    of_network = references.predict("random-object", small_index, "val", protocol=LAVT)
    summaries, refused = score_under_all_protocols(of_network, small_index, "val")
    assert [s["protocol"] for s in summaries] == ["lavt", "lavt-train", "magnet", "rela"]
    assert "4 masks differ in size from their images" in refused["original"] and len(refused) == 10


def test_predictions_that_no_protocol_can_score_are_refused(small_index: Index) -> None:
    half = perfect(small_index, "val").take(np.array([1]))
    with pytest.raises(InputError, match="Without a prediction"):
        score_under_all_protocols(half, small_index, "val")


def test_peaks_for_some_expressions_only_are_refused(small_index: Index) -> None:
    own = perfect(small_index, "val")
    some = np.array([3, -1, 3, -1], np.int32)
    with pytest.raises(InputError, match=rf"Without a peak.* sent_id {own.sent_id[1]}, {own.sent_id[3]} \(2 in all\)"):
        score_rows(replace(own, peak_row=some, peak_col=some), small_index, "val", ORIGINAL)


def test_an_unknown_split_is_refused(small_index: Index) -> None:
    with pytest.raises(InputError, match="testA"):
        score_rows(perfect(small_index, "val"), small_index, "testa", ORIGINAL)


def test_the_result_of_a_partial_copy_is_marked(small_root: Path, small_card: Path, tmp_path: Path) -> None:
    larger = small_card.read_text().replace("val = { images = 1, refs = 2, ", "val = { images = 9, refs = 90, ")
    (tmp_path / "larger.toml").write_text(larger)
    index = indices.load(datasets.load(str(tmp_path / "larger.toml")), small_root, partial=True)
    assert score_predictions(perfect(index, "val"), index, "val", ORIGINAL).summary["partial"] is True


WITHOUT_TORCH = """
import importlib.abc, sys
from pathlib import Path

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "transformers", "lightning_fabric"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from risbench import datasets
from risbench.data import index
from risbench.scoring import predictions_file, protocol, record, references, statistics
from risbench.scoring.score import score_predictions
root, file = Path(sys.argv[1]), Path(sys.argv[2])
opened = index.load(datasets.load(str(root / "small.toml")), root)
predictions = predictions_file.read(file)
scored = score_predictions(predictions, opened, "val", protocol.load("original"))
record.write(file.with_suffix(".json"), record.make(scored, opened, predictions.header, protocol.load("original")))
print(scored.summary["oIoU"])
"""


def test_scoring_and_recording_work_where_torch_is_absent(small_root: Path, small_index: Index, tmp_path: Path) -> None:
    predictions_file.write(tmp_path / "val.parquet", perfect(small_index, "val", header()))
    command = [sys.executable, "-c", WITHOUT_TORCH, str(small_root), str(tmp_path / "val.parquet")]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (answer.stdout, answer.stderr) == ("100.0\n", "")
    assert (tmp_path / "val.json").is_file()


def test_boundaries_are_compared_as_the_masks_are(small_index: Index) -> None:
    """Against masks and truths that are eroded here; rows alone, as validation takes them, have none."""
    predictions = references.predict("oracle-8", small_index, "testA")
    scored = score_predictions(predictions, small_index, "testA", ORIGINAL, boundaries=True)
    split = small_index.split("testA")
    for place, (ann_id, size) in enumerate(zip(split.ann_id, zip(split.height, split.width, strict=True), strict=True)):
        size = (int(size[0]), int(size[1]))
        width = max(1, round(0.02 * float(np.hypot(*size))))
        edges = []
        for counts in (predictions.counts[place], small_index.ground_truth(int(ann_id), "union")):
            mask = rle.decode(counts, size)
            around = np.pad(mask, width)
            kept = [
                around[i : i + size[0], j : j + size[1]] for i in range(2 * width + 1) for j in range(2 * width + 1)
            ]
            edges.append(mask & ~np.logical_and.reduce(kept))
        row = scored.rows.iloc[place]
        assert row["boundary_intersection"] == (edges[0] & edges[1]).sum()
        assert row["boundary_union"] == (edges[0] | edges[1]).sum()
    assert 0 < scored.summary["boundary IoU"] < scored.summary["mIoU"] < 100
    assert not metrics.has_boundaries(score_predictions(predictions, small_index, "testA", ORIGINAL).rows)
