"""Targets of several annotations and no-target: reading, refused files, and their use in slices and references."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from risbench import datasets
from risbench.data import doctor, index, refer, rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import protocol, references, slices

Refs = list[dict[str, Any]]
REFS = range(1, 17)
NO_TARGET_REFS = (3, 5, 10, 13, 16)


@pytest.fixture
def refs(sets_root: Path) -> Refs:
    """The refs of the file, for tests that change them."""
    refs: Refs = json.loads((sets_root / "sets" / "grefs(unc).json").read_text())
    return refs


def members(refs: Refs, ref_id: int) -> list[int]:
    return next([ann_id for ann_id in ref["ann_id"] if ann_id > 0] for ref in refs if ref["ref_id"] == ref_id)


def locate_ref(opened: Index, ref_id: int) -> tuple[int, int, rle.Size]:
    """Return target, image and size of a ref."""
    for split in map(opened.split, opened.split_names()):
        if (rows := np.flatnonzero(split.ref_id == ref_id)).size:
            size = int(split.height[rows[0]]), int(split.width[rows[0]])
            return int(split.ann_id[rows[0]]), int(split.image_id[rows[0]]), size
    raise AssertionError(ref_id)


def draw_union(small_index: Index, ann_ids: list[int], rule: Any, size: rle.Size) -> rle.Mask:
    """Draw the union pixel by pixel, from the data set with each annotation alone."""
    canvas = np.zeros(size, bool)
    for ann_id in ann_ids:
        canvas |= rle.decode(small_index.ground_truth(ann_id, rule), size)
    return canvas


@pytest.mark.parametrize("ref_id", REFS)
@pytest.mark.parametrize("rule", ["union", "once"])
def test_the_ground_truth_of_a_target_is_the_union_of_its_annotations(
    sets_index: Index, small_index: Index, refs: Refs, ref_id: int, rule: Any
) -> None:
    target, _, size = locate_ref(sets_index, ref_id)
    ann_ids = members(refs, ref_id)
    mask = rle.decode(sets_index.ground_truth(target, rule), size)
    assert np.array_equal(mask, draw_union(small_index, ann_ids, rule, size))
    assert sets_index.num_objects(np.array([target])).tolist() == [len(ann_ids)]
    union = draw_union(small_index, ann_ids, "union", size)
    assert sets_index.target_areas(np.array([target])).tolist() == [union.sum()]


def test_one_annotation_is_its_own_target_and_every_other_set_has_one_negative_id(
    sets_index: Index, refs: Refs
) -> None:
    ids = {key: locate_ref(sets_index, key)[0] for key in REFS}
    single = {key: members(refs, key)[0] for key in REFS if len(members(refs, key)) == 1}
    assert {key: ids[key] for key in single} == single
    others = [target for key, target in ids.items() if key not in single]
    assert max(others) < -1 and len(set(others)) == len(others)


def test_equal_sets_of_an_image_are_one_target_whatever_their_order(
    sets_root: Path, tmp_path: Path, refs: Refs
) -> None:
    refs.append(
        {**refs[1], "ref_id": 99, "ann_id": [11, 12], "sentences": [{**refs[1]["sentences"][0], "sent_id": 999}]}
    )
    columns = read(sets_root, tmp_path, refs)
    targets = dict(zip(*(columns.expressions.column(name).to_pylist() for name in ("ref_id", "ann_id")), strict=True))
    assert targets[99] == targets[2] != targets[6]
    again = read(sets_root, tmp_path, refs[::-1])
    assert again.annotations.equals(columns.annotations) and again.expressions.equals(columns.expressions)


def test_a_set_has_the_polygons_of_all_its_annotations_unless_one_has_run_lengths(
    sets_index: Index, small_index: Index
) -> None:
    both = sets_index.polygons(locate_ref(sets_index, 2)[0])
    assert both == [*(small_index.polygons(11) or []), *(small_index.polygons(12) or [])]
    assert sets_index.polygons(locate_ref(sets_index, 4)[0]) is None  # 21 is run lengths
    assert sets_index.polygons(locate_ref(sets_index, 3)[0]) is None


@pytest.mark.parametrize("name", protocol.names())
def test_every_protocol_makes_a_ground_truth_of_its_size(sets_index: Index, name: str) -> None:
    rule = protocol.load(name).score
    for ref_id in REFS:
        target, _, size = locate_ref(sets_index, ref_id)
        counts = rule.ground_truth_mask(sets_index, target, size)
        assert rle.find_defect(counts, rule.size(size)) is None
        assert (rle.area(counts, rule.size(size)) == 0) == (ref_id in NO_TARGET_REFS)


def test_sets_are_not_candidates_of_their_image(sets_index: Index, small_index: Index) -> None:
    for image_id in small_index.image_ids().tolist():
        assert sets_index.candidates(image_id) == small_index.candidates(image_id)
    assert sets_index.annotations().equals(small_index.annotations())
    assert np.array_equal(sets_index.completely_annotated_images(), small_index.completely_annotated_images())


def test_members_of_a_set_count_as_referred_to_in_a_partial_copy(sets_index: Index) -> None:
    partial = Index(sets_index.card, sets_index.hash, True, sets_index.images_folder, sets_index.folder)
    assert partial.completely_annotated_images().tolist() == [3]  # with a crowd that no ref refers to


def test_slices_count_the_objects_and_do_not_guess(sets_index: Index, small_index: Index) -> None:
    split = sets_index.split("train")
    labels = slices.labels(sets_index, split)
    by_ref = {name: dict(zip(split.ref_id.tolist(), values, strict=True)) for name, values in labels.items()}
    assert by_ref["targets"] == {1: "one", 2: "several", 3: "none", 4: "several", 5: "none", 6: "several", 7: "one"}
    assert [by_ref["same-class distractors"][key] for key in range(1, 8)] == ["0", *["unknown"] * 5, "0"]
    assert (
        by_ref["object size"][3] == by_ref["touching the border"][3] == by_ref["pieces of the object"][3] == "unknown"
    )
    assert by_ref["pieces of the object"][2] == "several" and by_ref["object size"][2] == "small"
    assert by_ref["objects in the image"][3] == by_ref["objects in the image"][1]
    assert "targets" not in slices.labels(small_index, small_index.split("train"))


def test_the_doctor_reads_it(sets_index: Index) -> None:
    findings = doctor.examine(sets_index)
    assert any(
        finding.text.startswith("testA: 2 refs (2 expressions) have overlapping polygons") for finding in findings
    )


def test_references_answer_it(sets_index: Index) -> None:
    predictions = references.predict("oracle-64", sets_index, "val", protocol=protocol.load("grefcoco"))
    split = sets_index.split("val")
    assert predictions.predicts_no_target().tolist() == [ref_id in NO_TARGET_REFS for ref_id in split.ref_id.tolist()]
    assert len(references.predict("random-object", sets_index, "val")) == len(split)


# files


def read(sets_root: Path, folder: Path, refs: Refs, name: str = "refs.json") -> refer.Columns:
    (folder / name).write_bytes(pickle.dumps(refs) if name.endswith(".p") else json.dumps(refs).encode())
    return refer.read(folder / name, sets_root / "sets" / "instances.json")


def test_a_pickle_and_json_of_the_same_refs_read_alike(sets_root: Path, tmp_path: Path, refs: Refs) -> None:
    made = [read(sets_root, tmp_path, refs, name) for name in ("refs.json", "refs.p")]
    assert made[0].expressions.equals(made[1].expressions)
    assert made[0].annotations.equals(made[1].annotations)


def test_refs_of_one_annotation_read_as_refcoco_whether_in_a_list_or_not(small_root: Path, tmp_path: Path) -> None:
    refs = pickle.loads((small_root / "small" / "refs(unc).p").read_bytes())
    listed = [{**ref, "ann_id": [ref["ann_id"]], "no_target": False} for ref in refs]
    first, second = (read_small(small_root, tmp_path, variant) for variant in (refs, listed))
    assert first.expressions.equals(second.expressions) and first.annotations.equals(second.annotations)


def read_small(small_root: Path, folder: Path, refs: Refs) -> refer.Columns:
    (folder / "refs.json").write_text(json.dumps(refs))
    return refer.read(folder / "refs.json", small_root / "small" / "instances.json")


Change = Callable[[Refs], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda refs: refs[1].update(ann_id=[11, 13]), "ref 2 of .* annotation 13, which instances.json does not hold"),
        (lambda refs: refs[1].update(ann_id=[11, 21]), "ref 2 .* image 1, but its annotation 21 lies on image 2"),
        (
            lambda refs: refs[1].update(ann_id=[]),
            r"ref 2 .* refers to no annotation \(ann_id \[\]\); -1 alone stands for no-target",
        ),
        (
            lambda refs: refs[1].update(ann_id=[11, -1]),
            r"ref 2 .* refers to annotations and to -1 \(ann_id \[11, -1\]\); -1 alone stands for no-target",
        ),
        (lambda refs: refs[2].update(image_id=77), "ref 3 .* image 77, which instances.json does not hold"),
        (
            lambda refs: refs[1].update(ann_id=[11, "12"]),
            "ref 2 .* is wrong at 'ann_id': Input should be a valid integer",
        ),
        (lambda refs: refs[1].update(ann_id=None), "ref 2 .* is wrong at 'ann_id': Input should be a valid integer"),
        (lambda refs: refs[1].update(no_target="no"), "ref 2 .* is wrong at 'no_target': Input should be a valid bool"),
        (lambda refs: refs[1].update(no_target=2), "ref 2 .* is wrong at 'no_target': Input should be a valid bool"),
        (lambda refs: refs[1].update(no_target=1.0), "ref 2 .* is wrong at 'no_target': Input should be a valid bool"),
        (
            lambda refs: refs[1].update(ann_id=[-2]),
            "ref 2 .* at 'ann_id': Input should be an id .* or -1 for no-target",
        ),
        (lambda refs: refs[1].update(ann_id=2**64), "ref 2 .* at 'ann_id': Input should be an id"),
        (lambda refs: refs[1].update(ann_id=11.0), "ref 2 .* at 'ann_id': Input should be a valid integer"),
        (lambda refs: refs[1].update(ann_id=True), "ref 2 .* at 'ann_id': Input should be a valid integer"),
    ],
)
def test_wrong_refs_are_refused_in_one_sentence(
    sets_root: Path, tmp_path: Path, refs: Refs, change: Change, message: str
) -> None:
    change(refs)
    with pytest.raises(InputError, match=message):
        read(sets_root, tmp_path, refs)


# crowds among several targets


@pytest.fixture
def with_crowds(sets_root: Path, tmp_path: Path) -> Callable[..., Index]:
    """Open the data set with these annotations as crowds."""

    def opened(*crowds: int) -> Index:
        root = Path(shutil.copytree(sets_root, tmp_path / "root"))
        instances = json.loads((root / "sets" / "instances.json").read_text())
        for one in instances["annotations"]:
            one["iscrowd"] = int(one["id"] in crowds)
        (root / "sets" / "instances.json").write_text(json.dumps(instances))
        return index.load(datasets.load(str(root / "sets.toml")), root)

    return opened


@pytest.mark.parametrize(
    ("ref_id", "crowds", "kept"),
    [
        (2, [12], [11]),  # polygons
        (4, [21], [22]),  # the crowd has run lengths, as COCO's have
        (4, [22], [21]),  # the object has run lengths
        (6, [31, 32], [31, 32]),  # crowds alone, which ReLA's code cannot read
        (1, [11], [11]),
    ],
)
def test_crowds_among_several_targets_are_left_out_where_the_truth_is_drawn_at_the_scored_size(
    with_crowds: Callable[..., Index], small_index: Index, ref_id: int, crowds: list[int], kept: list[int]
) -> None:
    opened = with_crowds(*crowds)
    target, _, size = locate_ref(opened, ref_id)
    for name in ("rela", "grefcoco"):
        rule = protocol.load(name).score
        truth = rule.ground_truth_mask(opened, target, size)
        parts = [rule.ground_truth_mask(small_index, ann_id, size) for ann_id in kept]
        assert truth == rle.merge(parts, rule.size(size))
    union = protocol.load("original").score.ground_truth_mask(opened, target, size)
    everything = draw_union(small_index, opened.members(target), "union", size)
    assert np.array_equal(rle.decode(union, size), everything)


# other files


def test_the_key_no_target_is_optional(sets_root: Path, tmp_path: Path, refs: Refs) -> None:
    without = [{key: value for key, value in ref.items() if key != "no_target"} for ref in refs]
    assert read(sets_root, tmp_path, without).annotations.equals(read(sets_root, tmp_path, refs).annotations)


def test_a_file_that_is_no_json_is_named(sets_root: Path, tmp_path: Path) -> None:
    (tmp_path / "refs.json").write_text("[{")
    with pytest.raises(InputError, match=r"refs\.json is not JSON \(.*\)\. Take refs"):
        refer.read(tmp_path / "refs.json", sets_root / "sets" / "instances.json")
    (tmp_path / "refs.json").write_text("{}")
    with pytest.raises(InputError, match=r"refs\.json holds no list of refs but a dict"):
        refer.read(tmp_path / "refs.json", sets_root / "sets" / "instances.json")


def test_a_broken_mask_of_one_of_several_is_named(sets_root: Path, tmp_path: Path) -> None:
    instances = json.loads((sets_root / "sets" / "instances.json").read_text())
    next(one for one in instances["annotations"] if one["id"] == 12)["segmentation"] = [[1.0, 2.0]]
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(InputError, match="annotation 12 of .*, which ref 2 refers to, has no polygon of three points"):
        refer.read(sets_root / "sets" / "grefs(unc).json", tmp_path / "instances.json")


def test_missing_grefcoco_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"grefcoco needs the file .*grefs\(unc\)\.json.*henghuiding/gRefCOCO"):
        index.load(datasets.load("grefcoco"), tmp_path)
