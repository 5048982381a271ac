"""Annotation files of the `refer` layout: what is read from them, and every defect by its id."""

from __future__ import annotations

import json
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from risbench.data import refer, rle
from risbench.errors import InputError

Change = Callable[[list[Any], dict[str, Any]], None]


def nothing(refs: list[Any], instances: dict[str, Any]) -> None: ...


@pytest.fixture
def read(small_root: Path, tmp_path: Path) -> Callable[[Change], refer.Columns]:
    """Read the small data set after a change to its refs and instances."""

    def changed(change: Change) -> refer.Columns:
        refs = pickle.loads((small_root / "small" / "refs(unc).p").read_bytes())
        instances = json.loads((small_root / "small" / "instances.json").read_text())
        change(refs, instances)
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs))
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        return refer.read(tmp_path / "refs(unc).p", tmp_path / "instances.json")

    return changed


def annotation(instances: dict[str, Any], ann_id: int) -> Any:
    return next(a for a in instances["annotations"] if a["id"] == ann_id)


def ref(refs: list[Any], ann_id: int) -> Any:
    return next(r for r in refs if r["ann_id"] == ann_id)


def mask(columns: refer.Columns, ann_id: int, rule: str, size: rle.Size) -> rle.Mask:
    row = columns.annotations.column("ann_id").to_pylist().index(ann_id)
    counts = columns.annotations.column(rule)[row].as_py()
    return rle.decode(counts, size)


def segmented(segmentation: Any, ann_id: int = 11) -> Change:
    def change(refs: list[Any], instances: dict[str, Any]) -> None:
        annotation(instances, ann_id)["segmentation"] = segmentation

    return change


def test_expressions_are_sorted_by_split_image_and_sentence(read: Callable[[Change], refer.Columns]) -> None:
    rows = read(lambda refs, instances: refs.reverse()).expressions.to_pylist()
    keys = [(row["split"], row["image_id"], row["sent_id"]) for row in rows]
    assert keys == sorted(keys)
    assert len(rows) == 20


def test_raw_and_sent_are_both_kept(read: Callable[[Change], refer.Columns]) -> None:
    row = next(r for r in read(nothing).expressions.to_pylist() if r["ref_id"] == 111)
    assert (row["raw"], row["sent"], row["kind"]) == ("The RED thing!!", "the red thing", "colour")
    assert (row["ann_id"], row["image_id"], row["height"], row["width"]) == (11, 1, 48, 64)


def test_kind_is_empty_where_the_files_have_none(read: Callable[[Change], refer.Columns]) -> None:
    def without_kinds(refs: list[Any], instances: dict[str, Any]) -> None:
        for sentence in (s for r in refs for s in r["sentences"]):
            del sentence["kind"], sentence["tokens"]

    assert set(read(without_kinds).expressions.column("kind").to_pylist()) == {""}


def test_union_and_once_of_overlapping_boxes(read: Callable[[Change], refer.Columns]) -> None:
    times = np.zeros((48, 64), dtype=int)
    times[4:24, 4:24] += 1
    times[14:34, 14:34] += 1
    columns = read(nothing)
    assert np.array_equal(mask(columns, 11, "union", (48, 64)), times > 0)
    assert np.array_equal(mask(columns, 11, "once", (48, 64)), times == 1)


def test_once_drops_pixels_that_three_parts_cover(read: Callable[[Change], refer.Columns]) -> None:
    times = np.zeros((64, 64), dtype=int)
    times[6:26, 6:36] += 1
    times[16:36, 20:50] += 1
    times[20:50, 10:24] += 1
    assert times.max() == 3
    assert np.array_equal(mask(read(nothing), 51, "once", (64, 64)), times == 1)


def test_once_is_kept_only_where_parts_overlap(read: Callable[[Change], refer.Columns]) -> None:
    rows = read(nothing).annotations.to_pylist()
    assert [row["ann_id"] for row in rows if row["once"] is not None] == [11, 51]
    assert [row["area"] for row in rows if row["ann_id"] in (11, 12)] == [700, 288]


def test_run_lengths_and_their_compressed_string_are_the_same_mask(read: Callable[[Change], refer.Columns]) -> None:
    expected = np.zeros((60, 40), dtype=bool)
    expected[5:35, 2:5] = True
    assert np.array_equal(mask(read(nothing), 21, "union", (60, 40)), expected)
    string = {"size": [60, 40], "counts": rle.encode(expected).decode()}
    assert np.array_equal(mask(read(segmented(string, 21)), 21, "union", (60, 40)), expected)


def test_empty_runs_are_written_out_of_a_mask(read: Callable[[Change], refer.Columns]) -> None:
    with_empty_run = {"size": [60, 40], "counts": [125, 10, 0, 20, 30, 30, 30, 30, 2125]}
    columns = read(segmented(with_empty_run, 21))
    row = columns.annotations.column("ann_id").to_pylist().index(21)
    counts = columns.annotations.column("union")[row].as_py()
    assert counts == rle.from_counts([125, 30, 30, 30, 30, 30, 2125], (60, 40))


def test_crowds_are_marked(read: Callable[[Change], refer.Columns]) -> None:
    assert [row["ann_id"] for row in read(nothing).annotations.to_pylist() if row["crowd"]] == [33]


def test_another_category_in_the_ref_is_no_defect(read: Callable[[Change], refer.Columns]) -> None:
    assert read(lambda refs, instances: refs[0].update(category_id=77)).findings == []


def test_line_among_polygons_adds_nothing_and_is_reported(read: Callable[[Change], refer.Columns]) -> None:
    columns = read(segmented([[1.0, 1.0, 40.0, 40.0], [4.0, 4, 24, 4, 24, 24, 4, 24]]))
    assert mask(columns, 11, "union", (48, 64)).sum() == 400
    assert columns.findings == ["1 annotations have polygons of fewer than three points, which enclose nothing: 11"]


def test_mask_without_a_pixel_is_reported(read: Callable[[Change], refer.Columns]) -> None:
    columns = read(segmented([[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]]))
    assert columns.findings == ["1 annotations that a ref refers to have an empty mask: 11"]


def test_defect_that_no_ref_meets_is_reported_and_left_out(read: Callable[[Change], refer.Columns]) -> None:
    columns = read(segmented({"size": [1, 1], "counts": [1]}, 33))
    assert 33 not in columns.annotations.column("ann_id").to_pylist()
    assert columns.findings == ["1 annotations that no ref refers to are left out, because of their masks: 33"]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "has no segmentation"),
        ([], "has no polygon of three points"),
        ([[1.0, 1.0, 5.0, 5.0]], "has no polygon of three points"),
        ("polygon", "has no segmentation"),
        ([[1.0, 1.0, 5.0, 5.0, 9.0, 1.0, 3.0]], "has a polygon that is not a list of x, y"),
        ([1.0, 1.0, 5.0, 5.0, 9.0, 1.0], "has a polygon that is not a list of x, y"),
        ([[1.0, 1.0, "5", 5.0, 9.0, 1.0]], "something else than numbers"),
        ([[1.0, None, 5.0, 5.0, 9.0, 1.0]], "something else than numbers"),
        ([[1.0, True, 5.0, 5.0, 9.0, 1.0]], "something else than numbers"),
        ([[1.0, [[]], 5.0, 5.0, 9.0, 1.0]], "something else than numbers"),
        ([[1.0, 1e12, 5.0, 5.0, 9.0, 1.0]], "runs far out of its image"),
        ([[1.0, 1e300, 5.0, -1e300, 9.0, 1.0]], "runs far out of its image"),
        ([[1.0, 10**400, 5.0, 5.0, 9.0, 1.0]], "runs far out of its image"),
        ([[1, -(10**400), 5, 5, 9, 1]], "runs far out of its image"),
        ([[1.0, 1.0, 2.0, 1.0, 2.0, 2.0]] * 10_001, "has 10,001 polygons, more than 10,000"),
        ([[0.0, 0.0, 99999.0, 99999.0] * 10], "an outline of more than 1,048,576 pixels"),
        ([[0.0, 0.0, 99999.0, 0.0, 99999.0, 99999.0]] * 10, "an outline of more than 1,048,576 pixels"),
        ({"size": [64, 48], "counts": [3072]}, r"a mask of size \[64, 48\] on an image of size \[48, 64\]"),
        ({"counts": [3072]}, "a mask of size None"),
        ({"size": list(range(10**5)), "counts": [3072]}, r"a mask of size \[0, 1, 2, 3, 4, 5, \.\.\.\] on"),
        ({"size": [10**4200, 1], "counts": [3072]}, r"a mask of size \[1000+\.\.\.0+, 1\] on"),
        ({"size": [48, 64], "counts": [10**4200, 10**4200]}, "a run of more than the 3072 pixels"),
        ({"size": [48, 64], "counts": [True, 3071]}, "neither a string nor a list of run lengths"),
        ({"size": [48, 64], "counts": []}, "runs add up to 0 pixels"),
        ({"size": [48, 64], "counts": "\ud800"}, "has a broken mask"),
        ({"size": [48, 64], "counts": [3000, 3]}, "runs add up to 3003 pixels instead of 48 x 64"),
        ({"size": [48, 64], "counts": [3073, -1]}, "neither a string nor a list of run lengths"),
        ({"size": [48, 64], "counts": [3072.0]}, "neither a string nor a list of run lengths"),
        ({"size": [48, 64]}, "neither a string nor a list of run lengths"),
        ({"size": [48, 64], "counts": "zzz"}, "has a broken mask"),
        ({"size": [48, 64], "counts": "päö"}, "has a broken mask"),
        ({"size": [48, 64], "counts": ""}, "has a broken mask"),
    ],
)
def test_broken_mask_of_a_ref_names_annotation_ref_and_cure(
    read: Callable[[Change], refer.Columns], segmentation: Any, message: str
) -> None:
    with pytest.raises(InputError, match=rf"annotation 11 of .*instances\.json, .*ref 111 .*{message}.* one release"):
        read(segmented(segmentation))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda refs, _: ref(refs, 12).pop("ann_id"),
            r"ref 112 of .*refs\(unc\)\.p is wrong at 'ann_id': Field required",
        ),
        (lambda refs, _: ref(refs, 12).pop("ref_id"), r"ref number 1 of .* is wrong at 'ref_id': Field required"),
        (lambda refs, _: ref(refs, 12).update(ann_id="12"), "ref 112 .*'ann_id': Input should be a valid integer"),
        (lambda refs, _: ref(refs, 12)["sentences"][0].pop("raw"), r"ref 112 .*'sentences\.0\.raw': Field required"),
        (lambda refs, _: refs.insert(0, "a ref"), "ref number 0 .* is wrong: Input should be"),
        (
            lambda refs, _: ref(refs, 12).update(ann_id=13),
            "ref 112 .*annotation 13, which instances.json does not hold",
        ),
        (lambda refs, _: ref(refs, 12).update(image_id=2), "ref 112 .*image 2, but its annotation 12 lies on image 1"),
        (lambda _, inst: inst["images"].pop(0), "ref 111 .*image 1, which instances.json does not hold"),
        (
            lambda refs, _: ref(refs, 12).update(ref_id=111),
            r"The ref 111 stands twice in the split 'train' of .*refs\(unc\)\.p, with different targets",
        ),
        (
            lambda _, inst: inst["images"].append({**inst["images"][0], "height": 49}),
            r"The image 1 stands twice in .*instances\.json, with different contents",
        ),
        (
            lambda _, inst: inst["annotations"].append({**annotation(inst, 12), "iscrowd": 1}),
            "The annotation 12 stands twice in .*, with different contents",
        ),
        (
            lambda _, inst: inst["categories"].append({"id": 1, "name": "another"}),
            "The category 1 stands twice in .*, with different contents",
        ),
        (lambda _, inst: inst.pop("annotations"), r"instances\.json is wrong at 'annotations': Field required"),
        (lambda _, inst: inst["images"][2].pop("width"), r"is wrong at 'images\.2\.width': Field required"),
        (lambda _, inst: inst["images"][2].update(width=0), r"'images\.2\.width': Input should be greater than 0"),
        (
            lambda _, inst: inst["annotations"][3].update(image_id=1.5),
            r"'annotations\.3\.image_id': Input should be a valid int",
        ),
    ],
)
def test_defect_of_the_files_names_the_id_and_the_cure(
    read: Callable[[Change], refer.Columns], change: Change, message: str
) -> None:
    with pytest.raises(InputError, match=message + ".*one release"):
        read(change)


def test_refs_that_are_no_list_are_refused(small_root: Path, tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps({"refs": []}))
    with pytest.raises(InputError, match=r"refs\(unc\)\.p holds no list of refs but a dict"):
        refer.read(tmp_path / "refs(unc).p", small_root / "small" / "instances.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON but empty"),
        ('{"images": [', r"is not JSON \(Expecting value.* one release"),
        ("<html>", "is not JSON but a web page"),
        ('{"images": [], "images": []}', r"is not JSON \(the key 'images' stands twice.* one release"),
        ('{"images": [NaN]}', r"is not JSON \(NaN is no number.* one release"),
        ("[" * 100_000, r"is not JSON \(it is nested too deeply.* one release"),
        ('{"images": ' + "9" * 5000 + "}", r"is not JSON \(.* one release"),
        ("[]", "is wrong: Input should be an object.* one release"),
        ('{"images": [[]], "annotations": [], "categories": []}', "is wrong at 'images.0': Input should be an object"),
        ('{"images": {}, "annotations": [], "categories": []}', "is wrong at 'images': Input should be a valid list"),
    ],
)
def test_broken_json_is_refused_in_one_sentence(small_root: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(InputError, match=rf"instances\.json {message}"):
        refer.read(small_root / "small" / "refs(unc).p", tmp_path / "instances.json")


def test_files_of_python_2_read_as_those_of_python_3(small_root: Path, tmp_path: Path) -> None:
    refs_file, instances_file = small_root / "small" / "refs(unc).p", small_root / "small" / "instances.json"

    content = bytearray(pickle.dumps(pickle.loads(refs_file.read_bytes()), protocol=2))
    for opcode, _, position in pickletools.genops(bytes(content)):
        if opcode.name == "BINUNICODE" and position is not None:
            content[position] = ord("T")  # BINSTRING, the byte string of Python 2, has the same layout
    (tmp_path / "refs(unc).p").write_bytes(content)
    old, new = (refer.read(path, instances_file) for path in (tmp_path / "refs(unc).p", refs_file))
    assert old.expressions.equals(new.expressions)
