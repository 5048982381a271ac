"""The annotation files: values out of range are refused by their place, oddities with one reading are findings."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from risbench import files
from risbench.data import annotation_files, pictures, refer, rle, segmentation
from risbench.errors import InputError

Refs = list[dict[str, Any]]
Change = Callable[[Refs], object]
ChangeInstances = Callable[[dict[str, Any]], object]


@pytest.fixture
def refs(sets_root: Path) -> Refs:
    """The refs of the file, for tests that change them."""
    refs: Refs = json.loads((sets_root / "sets" / "grefs(unc).json").read_text())
    return refs


@pytest.fixture
def instances(sets_root: Path) -> dict[str, Any]:
    """The content of instances.json, for tests that change it."""
    instances: dict[str, Any] = json.loads((sets_root / "sets" / "instances.json").read_text())
    return instances


def read(sets_root: Path, folder: Path, refs: Refs, name: str = "refs.json") -> refer.Columns:
    (folder / name).write_bytes(pickle.dumps(refs) if name.endswith(".p") else json.dumps(refs).encode())
    return refer.read(folder / name, sets_root / "sets" / "instances.json")


def read_instances(sets_root: Path, folder: Path, instances: dict[str, Any]) -> refer.Columns:
    (folder / "instances.json").write_text(json.dumps(instances))
    return refer.read(sets_root / "sets" / "grefs(unc).json", folder / "instances.json")


# values out of range


@pytest.mark.parametrize("name", ["refs.json", "refs.p"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda refs: refs[1].update(ref_id=2**64), "ref number 1 of .* at 'ref_id': Input should be less than"),
        (
            lambda refs: refs[1].update(ref_id=-1),
            "ref -1 of .* at 'ref_id': Input should be greater than or equal to 0",
        ),
        (lambda refs: refs[1].update(ref_id="2"), "ref number 1 of .* at 'ref_id': Input should be a valid integer"),
        (lambda refs: refs[1].update(ref_id=True), "ref number 1 of .* at 'ref_id': Input should be a valid integer"),
        (lambda refs: refs[1].update(image_id=2**63), "ref 2 of .* at 'image_id': Input should be less than"),
        (lambda refs: refs[1].update(image_id=1.0), "ref 2 of .* at 'image_id': Input should be a valid integer"),
        (lambda refs: refs[1].update(split=None), "ref 2 of .* at 'split': Input should be a valid string"),
        (lambda refs: refs[1].update(split="v" * 1001), "ref 2 of .* at 'split': String should have at most 1000"),
        (lambda refs: refs[1].update(sentences={}), "ref 2 of .* at 'sentences': Input should be a valid list"),
        (lambda refs: refs[1].update(sentences=[3]), r"ref 2 of .* at 'sentences\.0': Input should be an object"),
        (
            lambda refs: refs[1]["sentences"][1].update(sent_id=2**63),
            r"ref 2 of .* at 'sentences\.1\.sent_id': Input should be less than",
        ),
        (
            lambda refs: refs[1]["sentences"][1].update(sent_id=-5),
            r"ref 2 of .* at 'sentences\.1\.sent_id': Input should be greater than",
        ),
        (
            lambda refs: refs[1]["sentences"][0].update(raw="a \ud800 cup"),
            r"ref 2 of .* at 'sentences\.0\.raw': Input should be a valid string",
        ),
        (
            lambda refs: refs[1]["sentences"][0].update(sent="x" * 10_001),
            r"ref 2 of .* at 'sentences\.0\.sent': String should have at most 10000 characters",
        ),
        (
            lambda refs: refs[1]["sentences"][0].update(kind=3),
            r"ref 2 of .* at 'sentences\.0\.kind': Input should be a valid string",
        ),
    ],
)
def test_a_value_out_of_range_names_the_ref_and_the_place(
    sets_root: Path, tmp_path: Path, refs: Refs, change: Change, message: str, name: str
) -> None:
    change(refs)
    with pytest.raises(InputError, match=message + ".* one release"):
        read(sets_root, tmp_path, refs, name)


@pytest.mark.parametrize("key", ["ref_id", "image_id", "ann_id"])
def test_an_id_of_thousands_of_digits_is_refused(sets_root: Path, tmp_path: Path, refs: Refs, key: str) -> None:
    refs[1][key] = 1 << 20_000  # more digits than Python turns into text
    with pytest.raises(InputError, match=f"The ref (number 1|2) of .* is wrong at '{key}'"):
        read(sets_root, tmp_path, refs, "refs.p")
    (tmp_path / "refs.json").write_text('[{"ref_id": ' + "9" * 5000 + "}]")
    with pytest.raises(InputError, match=r"refs\.json is not JSON \(it holds a number of more than 4300 digits\)"):
        refer.read(tmp_path / "refs.json", sets_root / "sets" / "instances.json")


def test_a_list_that_holds_itself_many_times_is_refused(sets_root: Path, tmp_path: Path, refs: Refs) -> None:
    value: Any = 1
    for _ in range(60):
        value = [value, value]
    for key, message in (("ann_id", "Input should be a valid integer"), ("sentences", r"'sentences\.0': Input should")):
        with pytest.raises(InputError, match=f"The ref 2 of .* is wrong at .*{message}"):
            read(sets_root, tmp_path, [refs[0], {**refs[1], key: value}], "refs.p")


def test_a_small_pickle_cannot_hold_more_expressions_or_text_than_memory(
    sets_root: Path, tmp_path: Path, refs: Refs
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentences = [{"sent_id": 1, "raw": "cup", "sent": "cup"}] * 5000
    with pytest.raises(InputError, match="holds 5,001,.* expressions and annotations of refs; at most 4,194,304 are"):
        read(sets_root, tmp_path, [{**refs[0], "sentences": sentences}] * 1000, "refs.p")
    sentence = {"raw": "x" * 10_000, "sent": "x" * 10_000}
    refs[0]["sentences"] = [{"sent_id": 1000 + number, **sentence} for number in range(14_000)]
    with pytest.raises(InputError, match=r"holds 280,\d{3},\d{3} characters of text; at most 268,435,456 are read"):
        read(sets_root, tmp_path, refs, "refs.p")
    assert (tmp_path / "refs.p").stat().st_size < 1_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inst: inst["images"][0].update(id=2**63), r"'images\.0\.id': Input should be less than"),
        (lambda inst: inst["images"][0].update(id=-1), r"'images\.0\.id': Input should be greater than or equal to 0"),
        (lambda inst: inst["images"][0].update(width=65_536), r"'images\.0\.width': Input should be less than"),
        (lambda inst: inst["images"][0].update(height=True), r"'images\.0\.height': Input should be a valid integer"),
        (lambda inst: inst["annotations"][0].update(id=-1), r"'annotations\.0\.id': Input should be greater than"),
        (lambda inst: inst["annotations"][0].update(category_id=-1), r"'annotations\.0\.category_id': Input should"),
        (lambda inst: inst["annotations"][0].update(iscrowd=2), r"'annotations\.0\.iscrowd': Input should be less"),
        (
            lambda inst: inst["categories"][0].update(name="\udfff"),
            r"'categories\.0\.name': Input should be a valid str",
        ),
        (lambda inst: inst["categories"][0].update(id=10**400), r"'categories\.0\.id': Input should be less than"),
    ],
)
def test_a_value_of_the_instances_out_of_range_is_named(
    sets_root: Path, tmp_path: Path, instances: dict[str, Any], change: ChangeInstances, message: str
) -> None:
    change(instances)
    with pytest.raises(InputError, match=rf"instances\.json is wrong at {message}.* one release"):
        read_instances(sets_root, tmp_path, instances)


@pytest.mark.parametrize(
    "file_name",
    [
        "",
        ".",
        "/etc/passwd",
        "../a.jpg",
        "a/../../b.jpg",
        "a\\..\\b.jpg",
        "a/",
        "C:a.jpg",
        "a\0.jpg",
        "a\ud800.jpg",
        "a//b",
    ],
)
def test_file_names_stay_in_the_folder_of_the_images(
    sets_root: Path, tmp_path: Path, instances: dict[str, Any], file_name: str
) -> None:
    instances["images"][3]["file_name"] = file_name
    with pytest.raises(InputError, match=r"is wrong at 'images\.3\.file_name': Input should be"):
        read_instances(sets_root, tmp_path, instances)


@pytest.mark.parametrize("file_name", ["a.jpg", "train2014/a.jpg", "./a.jpg", "a..b.jpg", "..a.jpg", "日本.png"])
def test_file_names_in_and_below_the_folder_are_read(
    sets_root: Path, tmp_path: Path, instances: dict[str, Any], file_name: str
) -> None:
    instances["images"][0]["file_name"] = file_name
    assert file_name in read_instances(sets_root, tmp_path, instances).images.column("file_name").to_pylist()


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]],
        {"size": [65_535, 65_535], "counts": [65_535**2]},
        {"size": [65_535, 65_535], "counts": "PPPPP7"},
    ],
)
def test_an_image_of_more_pixels_than_any_is_refused_before_they_take_memory(
    sets_root: Path, tmp_path: Path, instances: dict[str, Any], segmentation: Any
) -> None:
    instances["images"][0].update(height=65_535, width=65_535)
    instances["annotations"][0]["segmentation"] = segmentation
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"image 1 of .* has 65535 x 65535 pixels; .* at most 89,478,485\. "):
        read_instances(sets_root, tmp_path, instances)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_masks_of_the_largest_image_take_the_memory_of_their_runs(
    sets_root: Path, tmp_path: Path, instances: dict[str, Any]
) -> None:
    side = int(rle.MAX_PIXELS**0.5)
    instances["images"][0].update(height=side, width=side)
    boxes = [[0.0, 0.0, 9000.0, 0.0, 9000.0, 9000.0], [0.0, 0.0, 0.0, 9000.0, 9000.0, 9000.0]]
    runs = {"size": [side, side], "counts": [100, 0, 5, side * side - 105]}
    instances["annotations"][0]["segmentation"], instances["annotations"][1]["segmentation"] = boxes, runs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = read_instances(sets_root, tmp_path, instances).annotations.to_pylist()
    assert next(row["area"] for row in rows if row["ann_id"] == 12) == side * side - 105
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; one mask has 90 MB


@pytest.mark.parametrize("name", ["refs.json", "refs.p"])
def test_a_pipe_a_device_and_a_folder_never_hang(sets_root: Path, tmp_path: Path, name: str) -> None:
    instances_file = sets_root / "sets" / "instances.json"
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is a device or a pipe, no regular file: give the path"):
        refer.read(tmp_path / name, instances_file)
    with pytest.raises(InputError, match="is a device or a pipe, no regular file: give the path"):
        refer.read(sets_root / "sets" / "grefs(unc).json", Path("/dev/zero"))


def test_the_sizes_of_files_are_bounded(sets_root: Path, tmp_path: Path) -> None:
    for name in ("refs.json", "refs.p"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(5 * 2**30)  # takes no place on the disk
        with pytest.raises(InputError, match="has 5,368,709,120 bytes; at most 4,294,967,296 are read"):
            refer.read(tmp_path / name, sets_root / "sets" / "instances.json")


def test_the_documentation_states_the_limits() -> None:
    text = (
        (Path(__file__).parents[2] / "docs" / "data.md").read_text().partition("## Limits")[2].partition("## Leaks")[0]
    )
    limits = [
        rle.MAX_PIXELS,
        rle.MAX_CHARACTERS,
        annotation_files.MAX_SENTENCE,
        annotation_files.MAX_TEXT,
        annotation_files.MAX_EXPRESSIONS,
        segmentation.MAX_COORDINATE,
        segmentation.MAX_POLYGONS,
        segmentation.MAX_OUTLINE,
    ]
    assert [limit for limit in limits if f"| {limit:,}" not in text] == []
    assert f"| {files.DATA_LIMIT // 2**30} GiB |" in text and f"| {pictures.MAX_BYTES // 2**20} MiB |" in text


# oddities with one reading


def read_changed(sets_root: Path, folder: Path, refs: Refs, change: Change) -> tuple[refer.Columns, refer.Columns]:
    """Read refs before and after a change."""
    before = read(sets_root, folder, refs)
    change(refs)
    return before, read(sets_root, folder, refs)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda refs: refs[1].update(ann_id=[11, 12, 11]), "1 refs list an annotation twice, which counts once: 2"),
        (lambda refs: refs[2].update(ann_id=[-1, -1]), "1 refs list an annotation twice, which counts once: 3"),
        (
            lambda refs: refs[1].update(no_target=True),
            "1 refs have a no_target that contradicts their ann_id, which holds: 2",
        ),
        (
            lambda refs: refs[2].update(no_target=0),
            "1 refs have a no_target that contradicts their ann_id, which holds: 3",
        ),
        (lambda refs: refs[2].update(ann_id=-1), ""),
        (lambda refs: refs[0].update(ann_id=11), ""),
        (lambda refs: refs[2].update(no_target=1), ""),
        (lambda refs: refs[1].update(no_target=0), ""),
        (lambda refs: refs[1].update(no_target=None), ""),
        (lambda refs: refs.append(refs[1]), "1 refs stand twice with one target, and are read as one: 2"),
        (
            lambda refs: refs.append({**refs[1], "ann_id": [11, 12], "sentences": refs[1]["sentences"][:1]}),
            "1 refs stand twice with one target, and are read as one: 2",
        ),
        (
            lambda refs: refs[1]["sentences"].append(refs[1]["sentences"][0]),
            "1 sentences stand twice alike, and count once: 20",
        ),
        (
            lambda refs: refs[1]["sentences"][0].pop("sent"),
            "1 expressions have no `sent`; their raw text is read in its place: 20",
        ),
        (
            lambda refs: refs[1]["sentences"][0].update(sent=None),
            "1 expressions have no `sent`; their raw text is read in its place: 20",
        ),
    ],
)
def test_an_oddity_with_one_reading_is_a_finding_and_changes_nothing(
    sets_root: Path, tmp_path: Path, refs: Refs, change: Change, finding: str
) -> None:
    before, after = read_changed(sets_root, tmp_path, refs, change)
    assert after.expressions.equals(before.expressions) and after.annotations.equals(before.annotations)
    assert (finding in after.findings) if finding else after.findings == before.findings == []


def test_a_ref_in_two_parts_has_the_sentences_of_both(sets_root: Path, tmp_path: Path, refs: Refs) -> None:
    whole = read(sets_root, tmp_path, refs)
    first, second = refs[1]["sentences"]
    refs[1:2] = [{**refs[1], "sentences": [first]}, {**refs[1], "sentences": [second]}]
    halves = read(sets_root, tmp_path, refs)
    assert halves.expressions.equals(whole.expressions)
    assert halves.findings == ["1 refs stand twice with one target, and are read as one: 2"]


def test_a_ref_id_of_two_splits_is_two_refs(sets_root: Path, tmp_path: Path, refs: Refs) -> None:
    refs[7]["ref_id"] = 1  # train and val
    columns = read(sets_root, tmp_path, refs)
    assert columns.findings == ["1 refs have an id that a ref of another split has too: 1"]
    rows = [row for row in columns.expressions.to_pylist() if row["ref_id"] == 1]
    assert {(row["split"], row["ann_id"]) for row in rows} == {("train", 11), ("val", 41)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda refs: refs[1].update(ref_id=1), "ref 1 stands twice in the split 'train' of .*different targets"),
        (lambda refs: refs[1]["sentences"][0].update(sent_id=10), "sentence 10 stands twice in the split 'train'"),
        (lambda refs: refs[1]["sentences"][0].update(sent_id=21), "sentence 21 stands twice in the split 'train'"),
    ],
)
def test_one_id_for_two_things_of_a_split_is_refused(
    sets_root: Path, tmp_path: Path, refs: Refs, change: Change, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_changed(sets_root, tmp_path, refs, change)


def test_sent_ids_are_free_to_stand_in_two_splits(sets_root: Path, tmp_path: Path, refs: Refs) -> None:
    refs[7]["sentences"][0]["sent_id"] = 10
    assert read(sets_root, tmp_path, refs).findings == []


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
def test_what_stands_twice_alike_in_the_instances_counts_once(
    sets_root: Path, tmp_path: Path, refs: Refs, instances: dict[str, Any], kind: str
) -> None:
    before = read(sets_root, tmp_path, refs)
    instances[kind].append(instances[kind][1])
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    after = refer.read(tmp_path / "refs.json", tmp_path / "instances.json")
    assert after.annotations.equals(before.annotations) and after.images.equals(before.images)
    one = {"images": "image", "annotations": "annotation", "categories": "category"}[kind]
    assert after.findings == [
        f"1 {one} ids stand twice alike in instances.json, and count once: {instances[kind][1]['id']}"
    ]
