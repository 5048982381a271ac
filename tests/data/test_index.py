"""The index: opened by its splits, annotations and images, and checked against the card."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from risbench import datasets
from risbench.data import index, rle
from risbench.data.index import Index
from risbench.errors import InputError


@pytest.fixture
def root(small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small data root that may be changed, with a cache of its own."""
    monkeypatch.setenv("RISBENCH_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(small_root, tmp_path / "root"))


def load(root: Path, partial: bool = False) -> Index:
    return index.load(datasets.load(str(root / "small.toml")), root, partial)


def rewrite_refs(root: Path, keep: Any) -> None:
    path = root / "small" / "refs(unc).p"
    path.write_bytes(pickle.dumps([ref for ref in pickle.loads(path.read_bytes()) if keep(ref)]))


def rewrite_card(root: Path, old: str, new: str) -> None:
    text = (root / "small.toml").read_text()
    assert old in text
    (root / "small.toml").write_text(text.replace(old, new))


# the opened index


def test_splits_are_those_of_the_card_in_its_order(small_index: Index) -> None:
    assert small_index.split_names() == ["train", "val", "testA", "testB"]
    assert [len(small_index.split(name)) for name in small_index.split_names()] == [10, 4, 3, 3]
    assert small_index.counts("train") == {"images": 3, "refs": 6, "expressions": 10}


def test_columns_of_a_split_are_equally_long_and_ordered(small_index: Index) -> None:
    split = small_index.split("train")
    columns: list[Any] = [split.sent_id, split.ref_id, split.ann_id, split.image_id, split.height, split.width]
    columns += [split.raw, split.sent, split.kind]
    assert {len(column) for column in columns} == {len(split)}
    assert [split.sent_id.dtype, split.height.dtype] == [np.int64, np.int32]
    keys = list(zip(split.image_id, split.sent_id, strict=True))
    assert keys == sorted(keys)
    row = split.sent_id.tolist().index(890)
    assert (split.raw[row], split.sent[row], split.kind[row]) == ("The RED thing!!", "the red thing", "colour")
    assert (split.ref_id[row], split.height[row], split.width[row]) == (111, 48, 64)


def test_unknown_split_lists_the_known(small_index: Index) -> None:
    with pytest.raises(InputError, match=r"Unknown split of small 'tests'. Known: train, val, testA"):
        small_index.split("tests")


def test_the_ground_truth_follows_the_rule(small_index: Index) -> None:
    union, once = (small_index.ground_truth(51, rule) for rule in ("union", "once"))
    assert rle.area(union, (64, 64)) > rle.area(once, (64, 64))
    assert small_index.ground_truth(52, "union") == small_index.ground_truth(52, "once")
    assert rle.area(small_index.ground_truth(52, "once"), (64, 64)) == 225
    assert small_index.overlapping_targets().tolist() == [11, 51]


def test_polygons_are_those_of_the_file_and_run_lengths_have_none(small_index: Index, small_root: Path) -> None:
    annotations = json.loads((small_root / "small" / "instances.json").read_text())["annotations"]
    for annotation in annotations:
        segmentation = annotation["segmentation"]
        assert small_index.polygons(annotation["id"]) == (segmentation if isinstance(segmentation, list) else None)


@pytest.mark.parametrize("ann_id", [-1, 13, 99999])
def test_unknown_annotation_is_named(small_index: Index, ann_id: int) -> None:
    with pytest.raises(InputError, match=f"small holds no annotation {ann_id}"):
        small_index.ground_truth(ann_id, "union")


def test_candidates_are_the_objects_of_the_image_without_crowds(small_index: Index) -> None:
    first, second = small_index.candidates(3)
    assert (first.ann_id, first.category_id, first.area) == (31, 1, 600)
    assert (second.ann_id, second.counts) == (32, small_index.ground_truth(32, "union"))
    assert small_index.candidates(7) == []


def test_annotations_come_as_a_table_without_their_masks(small_index: Index) -> None:
    table = small_index.annotations()
    assert table.columns.tolist() == ["ann_id", "image_id", "category_id", "crowd", "area"]
    assert table["ann_id"].tolist() == [11, 12, 21, 22, 31, 32, 33, 41, 42, 51, 52, 61, 62]
    assert table["ann_id"][table["crowd"]].tolist() == [33]
    assert table["area"][table["ann_id"] == 52].tolist() == [225]


def test_of_a_partial_copy_only_images_with_more_than_referents_are_completely_annotated(root: Path) -> None:
    assert load(root).completely_annotated_images().tolist() == [1, 2, 3, 4, 5, 6]
    rewrite_refs(root, lambda ref: ref["ref_id"] not in (121, 141))
    assert load(root, partial=True).completely_annotated_images().tolist() == [2, 3, 4]  # 33 is a crowd without a ref


def test_images_have_a_size_and_a_path(small_index: Index, small_root: Path) -> None:
    assert small_index.image_size(5) == (64, 64)
    assert small_index.image_path(5) == small_root / "images" / "small" / "COCO_train2014_000000000005.png"
    assert small_index.image_ids().tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match="small holds no image 7"):
        small_index.image_path(7)


def test_images_may_lie_elsewhere(small_root: Path, small_card: Path, tmp_path: Path) -> None:
    opened = index.load(datasets.load(str(small_card)), small_root, images=tmp_path)
    assert opened.image_path(1) == tmp_path / "COCO_train2014_000000000001.jpg"


def test_categories_have_names(small_index: Index) -> None:
    assert small_index.categories == {1: "red", 2: "green", 3: "grey"}


def test_index_pickles_without_its_columns(small_index: Index) -> None:
    small_index.split("train")
    small_index.ground_truth(51, "union")
    data = pickle.dumps(small_index)
    copy = pickle.loads(data)
    assert len(data) < 5000
    assert copy.split("train").raw == small_index.split("train").raw
    assert (copy.hash, copy.card, copy.partial) == (small_index.hash, small_index.card, False)


# refused copies


def test_missing_data_root_says_how_to_name_it(small_card: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data root .*nowhere does not exist.*--data-root .*, or set RISBENCH_DATA"):
        index.load(datasets.load(str(small_card)), tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
def test_missing_file_is_named_with_where_to_get_it(root: Path, name: str) -> None:
    (root / "small" / name).unlink()
    with pytest.raises(InputError) as error:
        load(root)
    assert f"small needs the file {root / 'small' / name}, which does not exist. tests/conftest.py" in str(error.value)


def test_missing_refcoco_says_where_copies_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"refcoco needs the file .*refs\(unc\)\.p.*Wayback copies.*train2014"):
        index.load(datasets.load("refcoco"), tmp_path)


def test_incomplete_copy_is_refused_with_both_numbers_and_the_cure(root: Path) -> None:
    rewrite_refs(root, lambda ref: ref["ref_id"] != 141)
    with pytest.raises(
        InputError, match=r"holds 1 refs in the split 'val' of small, but there are 2 \(tests/.*--partial"
    ):
        load(root)


def test_incomplete_copy_is_read_as_partial(root: Path) -> None:
    rewrite_refs(root, lambda ref: ref["ref_id"] != 141 and ref["split"] != "testB")
    opened = load(root, partial=True)
    assert opened.partial
    assert opened.split_names() == ["train", "val", "testA"]
    assert opened.counts("testB") == {"images": 0, "refs": 0, "expressions": 0}
    with pytest.raises(
        InputError, match="This copy of small holds no expression of the split 'testB', only of train, val"
    ):
        opened.split("testB")


def test_complete_copy_read_with_partial_is_not_partial(root: Path) -> None:
    assert not load(root, partial=True).partial


@pytest.mark.parametrize("partial", [False, True])
def test_a_copy_that_holds_more_is_refused_even_as_partial(root: Path, partial: bool) -> None:
    rewrite_card(root, "images = 1, refs = 2, expressions = 4", "images = 1, refs = 1, expressions = 4")
    with pytest.raises(InputError, match=r"holds 2 refs .*but there are 1 .*A copy cannot hold more"):
        load(root, partial)


def test_unverified_count_only_warns(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite_card(root, "refs = 2, expressions = 4", "refs = { n = 7 }, expressions = 4")
    with caplog.at_level(logging.WARNING):
        opened = load(root)
    assert not opened.partial
    assert [record.getMessage().split(" holds ")[1] for record in caplog.records] == [
        "2 refs in the split 'val' of small, the card says 7 (unverified)."
    ]


@pytest.mark.parametrize("partial", [False, True])
def test_split_that_the_card_does_not_know_is_refused(root: Path, partial: bool) -> None:
    path = root / "small" / "refs(unc).p"
    path.write_bytes(path.read_bytes().replace(b"testB", b"testC"))
    with pytest.raises(InputError, match=r"Unknown split in .*refs\(unc\)\.p: 'testC'. Known: train"):
        load(root, partial)


# the real sample of RefCOCO


def test_real_sample_is_read_as_partial(shared: Path) -> None:
    opened = index.load(datasets.load("refcoco"), shared / "data" / "refcoco_sample", partial=True)
    splits = [opened.split(name) for name in opened.split_names()]
    assert opened.partial
    assert [split.name for split in splits] == ["val", "testA", "testB"]
    assert [len(split) for split in splits] == [17, 42, 14]
    assert len({ref_id for split in splits for ref_id in split.ref_id.tolist()}) == 24


def test_real_sample_is_refused_as_complete(shared: Path) -> None:
    with pytest.raises(InputError, match=r"holds 0 images in the split 'train' of refcoco, but there are 16994"):
        index.load(datasets.load("refcoco"), shared / "data" / "refcoco_sample")


def test_masks_of_the_real_sample_have_the_stated_areas(shared: Path) -> None:
    root = shared / "data" / "refcoco_sample"
    opened = index.load(datasets.load("refcoco"), root, partial=True)
    annotations = json.loads((root / "refcoco" / "instances.json").read_text())["annotations"]
    area = {annotation["id"]: annotation["area"] for annotation in annotations}
    for split in map(opened.split, opened.split_names()):
        for ann_id, height, width in zip(split.ann_id.tolist(), split.height, split.width, strict=True):
            mask = rle.decode(opened.ground_truth(ann_id, "union"), (int(height), int(width)))
            assert abs(mask.sum() - area[ann_id]) <= 0.03 * area[ann_id]
    assert len(opened.candidates(100667)) == sum(
        annotation["image_id"] == 100667 and not annotation["iscrowd"] for annotation in annotations
    )
