"""Slices: labels counted by hand and by brute force, what is unknown, and parts that add up to the whole."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from risbench import datasets
from risbench.data import index as indices
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.errors import InputError
from risbench.scoring import metrics, protocol, references, slices, statistics
from risbench.scoring.score import score_predictions
from risbench.scoring.slices import (
    AREA,
    BORDER,
    CROWDING,
    DEFAULT_SLICES,
    DISTRACTORS,
    KIND_WORDS,
    KINDS,
    LENGTH,
    PIECES,
    SLICES,
    Slice,
)

ORIGINAL, TRAIN = protocol.load("original"), protocol.load("lavt-train")
CARD = """
name = "many"
title = "Many objects"
folder = "many"
refs = "refs(unc).p"
instances = "instances.json"
images = "images"
partition = "unc"
max_words = 15
where = "tests/test_slices.py draws it."
licence = "Apache-2.0"
citation = "none"

[splits]
train = {}
val = { images = COUNT, source = "tests/test_slices.py" }
"""
BOX = [[2, 2, 12, 2, 12, 12, 2, 12]]

Objects = list[dict[str, Any]]
Make = Callable[..., Index]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Open the index of these objects, of which those with a `split` are referents; or a partial copy of it."""

    def made(objects: Objects, partial: bool = False, side: int = 20) -> Index:
        images = sorted({thing["image_id"] for thing in objects})
        annotations = [{"iscrowd": 0, "segmentation": BOX, **thing} for thing in objects]
        (tmp_path / "many").mkdir(exist_ok=True)
        sizes = [{"id": image, "height": side, "width": side, "file_name": f"{image}.jpg"} for image in images]
        instances = {"images": sizes, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
        (tmp_path / "many" / "instances.json").write_text(json.dumps(instances))
        refs = [ref(thing) for thing in objects if thing.get("split")]
        (tmp_path / "many" / "refs(unc).p").write_bytes(pickle.dumps(refs))
        evaluated = len({thing["image_id"] for thing in objects if thing.get("split") == "val"})
        (tmp_path / "many.toml").write_text(CARD.replace("COUNT", str(evaluated + partial)))
        return indices.load(datasets.load(str(tmp_path / "many.toml")), tmp_path, partial)

    return made


def ref(thing: dict[str, Any]) -> dict[str, Any]:
    key = thing["id"]
    sentences = [{"sent_id": 2 * key + k, "raw": "this", "sent": "this"} for k in range(1 + key % 2)]
    return {
        "ref_id": key,
        "ann_id": key,
        "image_id": thing["image_id"],
        "split": thing["split"],
        "sentences": sentences,
    }


def objects_of(*categories: int, referents: int = 1, image_id: int = 7) -> Objects:
    """Objects of one image; the first `referents` are referred to."""
    return [
        {
            "id": 100 * image_id + k,
            "image_id": image_id,
            "category_id": category,
            "split": "val" if k < referents else "",
        }
        for k, category in enumerate(categories)
    ]


def labelled(index: Index, slice_: Slice) -> dict[int, str]:
    """The labels of val by the annotation that is referred to."""
    split = index.split("val")
    return dict(zip(split.ann_id.tolist(), slices.labels(index, split)[slice_.name], strict=True))


def distractors(index: Index) -> dict[int, str]:
    return labelled(index, DISTRACTORS)


@pytest.mark.parametrize(
    ("categories", "expected"), [((1,), "0"), ((1, 2, 2), "0"), ((1, 2, 1), "1"), ((1, 1, 1), "2"), ((1,) * 6, "3+")]
)
def test_others_of_the_category_in_the_image_are_counted(
    make: Make, categories: tuple[int, ...], expected: str
) -> None:
    elsewhere = objects_of(1, 1, 1, 1, 1, image_id=8)
    assert distractors(make(objects_of(*categories) + elsewhere))[700] == expected


def test_a_crowd_of_the_category_counts_as_many_and_one_of_another_as_none(make: Make) -> None:
    own, other = objects_of(1, 1), objects_of(1, 2, image_id=8)
    for crowd in (own[1], other[1]):
        crowd.update(iscrowd=1, segmentation={"size": [20, 20], "counts": [300, 100]})
    assert distractors(make(own + other)) == {700: "3+", 800: "0"}


def drawn(seed: int) -> Objects:
    """Two hundred objects of four categories in forty images, some of them crowds, half of them referred to."""
    dice = random.Random(seed)
    crowd = {"iscrowd": 1, "segmentation": {"size": [20, 20], "counts": [300, 100]}}
    objects: Objects = []
    for key in dice.sample(range(10_000), 200):
        thing = {"id": key, "image_id": dice.randrange(40), "category_id": dice.choice([1, 1, 1, 2, 5, 90])}
        objects.append({**thing, "split": dice.choice(["", "", "val", "train"]), **(crowd if key % 15 == 0 else {})})
    return objects


def by_brute_force(objects: Objects, partial: bool) -> dict[int, str]:
    labels = {}
    for thing in objects:
        if thing["split"] != "val":
            continue
        image = [other for other in objects if other["image_id"] == thing["image_id"]]
        others = [o for o in image if o["category_id"] == thing["category_id"] and o["id"] != thing["id"]]
        many = len(others) >= 3 or any(other.get("iscrowd") for other in others)
        cut_down = partial and all(other["split"] for other in image)
        labels[thing["id"]] = "unknown" if cut_down else "3+" if many else str(len(others))
    return labels


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_labels_are_those_of_a_count_by_brute_force(make: Make, seed: int, partial: bool) -> None:
    objects = drawn(seed)
    expected = by_brute_force(objects, partial)
    assert distractors(make(objects, partial)) == expected
    assert set(expected.values()) == {"0", "1", "2", "3+"} | ({"unknown"} if partial else set())


def crowding_by_brute_force(objects: Objects, partial: bool) -> dict[int, str]:
    labels = {}
    for thing in objects:
        image = [other for other in objects if other["image_id"] == thing["image_id"]]
        number = sum(10 if other.get("iscrowd") else 1 for other in image)
        cut_down = partial and all(other["split"] for other in image)
        if thing["split"] == "val":
            labels[thing["id"]] = "unknown" if cut_down else "1-4" if number < 5 else "5-9" if number < 10 else "10+"
    return labels


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_objects_of_the_image_are_those_of_a_count_by_brute_force(make: Make, seed: int, partial: bool) -> None:
    objects = drawn(seed)
    expected = crowding_by_brute_force(objects, partial)
    assert labelled(make(objects, partial), CROWDING) == expected
    assert {"1-4", "5-9", "10+"} <= set(expected.values())


MASKS = {  # the runs of an image of 100 x 100, column by column; the object's size, touching the border, its pieces
    1: ([5, 1, 9994], "small", "yes", "one"),  # in the first column
    2: ([9950, 10, 40], "small", "yes", "one"),  # in the last column
    3: ([100, 1, 9899], "small", "yes", "one"),  # in the first row
    4: ([199, 1, 9800], "small", "yes", "one"),  # in the last row
    5: ([101, 98, 9801], "small", "no", "one"),  # between them
    6: ([150, 10, 200, 10, 9630], "small", "no", "several"),  # two columns with an empty one between them
    7: ([150, 1023, 8827], "small", "yes", "one"),  # from the middle of a column through several others
    8: ([150, 1024, 8826], "medium", "yes", "one"),
    9: ([0, 9215, 785], "medium", "yes", "one"),
    10: ([784, 9216], "large", "yes", "one"),
    11: ([10000], "unknown", "unknown", "unknown"),
}


def test_masks_are_divided_by_area_border_and_pieces_and_an_empty_one_is_unknown(make: Make) -> None:
    masks = {key: {"size": [100, 100], "counts": runs} for key, (runs, *_) in MASKS.items()}
    thing = {"category_id": 1, "split": "val"}
    index = make([{**thing, "id": key, "image_id": key, "segmentation": masks[key]} for key in MASKS], side=100)
    labels = zip(*(labelled(index, slice_).values() for slice_ in (AREA, BORDER, PIECES)), strict=True)
    assert list(labels) == [(area, border, pieces) for _, area, border, pieces in MASKS.values()]


def test_in_a_partial_copy_an_image_with_nothing_but_referents_is_unknown(make: Make) -> None:
    single, several, more = (objects_of(1, 1, referents=n, image_id=n + 6) for n in (1, 2, 1))
    single, more = single[:1], objects_of(1, 1, 1, referents=2, image_id=9)
    objects = single + several + more
    assert distractors(make(objects)) == {700: "0", 800: "1", 801: "1", 900: "2", 901: "2"}
    assert distractors(make(objects, partial=True)) == {
        **dict.fromkeys([700, 800, 801], "unknown"),
        **dict.fromkeys([900, 901], "2"),
    }


def test_referents_of_other_splits_are_referents_too(make: Make) -> None:
    objects = objects_of(1, 1)
    objects[1]["split"] = "train"
    assert distractors(make(objects, partial=True)) == {700: "unknown"}


def test_an_image_of_which_an_annotation_was_left_out_is_unknown(make: Make) -> None:
    objects = objects_of(1, 2) + objects_of(1, 2, image_id=8)
    objects[1]["segmentation"] = None
    index = make(objects)
    assert distractors(index) == {700: "unknown", 800: "0"}
    assert index.completely_annotated_images().tolist() == [8]


def test_of_the_real_sample_ten_images_are_unknown_and_five_are_counted(shared: Path) -> None:
    sample = indices.load(datasets.load("refcoco"), shared / "data" / "refcoco_sample", partial=True)
    by_image: dict[int, set[str]] = {}
    for split in map(sample.split, sample.split_names()):
        for image_id, label in zip(
            split.image_id.tolist(), slices.labels(sample, split)[DISTRACTORS.name], strict=True
        ):
            by_image.setdefault(image_id, set()).add(label)
    cut_down = [15195, 40346, 120431, 352357, 370802, 389145, 464174, 486606, 491707, 561454]
    assert by_image == {
        **{image_id: {"unknown"} for image_id in cut_down},
        154: {"2"},  # three zebras
        100667: {"2", "3+"},  # three persons, four bananas
        322517: {"3+"},
        370162: {"3+"},  # persons, among them a crowd
        379349: {"1"},
    }


def test_the_record_of_the_real_sample_counts_unknown_distractors(shared: Path) -> None:
    sample = indices.load(datasets.load("refcoco"), shared / "data" / "refcoco_sample", partial=True)
    predictions = references.predict("largest-object", sample, "testA")
    parts = score_predictions(predictions, sample, "testA", ORIGINAL).summary["slices"]
    assert KINDS.name not in parts  # RefCOCO does not tell kinds of expression
    assert {value: part["n"] for value, part in parts[DISTRACTORS.name].items()} == {"2": 9, "3+": 3, "unknown": 30}


@pytest.mark.parametrize("chosen", [ORIGINAL, TRAIN])
def test_parts_add_up_to_the_whole(make: Make, chosen: protocol.Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MIN_IMAGES", 2)
    index = make(drawn(5), partial=True)
    scored = score_predictions(references.predict("random-object", index, "val", protocol=chosen), index, "val", chosen)
    parts = scored.summary["slices"][DISTRACTORS.name]
    assert list(parts) == list(DISTRACTORS.values)
    assert sum(part["n"] for part in parts.values()) == scored.summary["n"] == len(scored.rows)
    of_parts = [metrics.Sums.from_rows(rows, chosen.score) for _, rows in scored.rows.groupby(DISTRACTORS.name)]
    assert sum(of_parts, metrics.Sums()) == metrics.Sums.from_rows(scored.rows, chosen.score)
    for value, rows in scored.rows.groupby(DISTRACTORS.name):
        part = parts[str(value)]
        assert part["oIoU"] == 100 * rows["intersection"].sum() / rows["union"].sum()
        assert part["n"] == len(rows)
        low, high = part["intervals"]["oIoU"]
        assert low <= part["oIoU"] <= high


def test_expressions_without_a_kind_are_unknown_where_others_have_one(small_index: Index) -> None:
    split = small_index.split("val")
    assert slices.labels(small_index, split)[KINDS.name] == split.kind
    some = replace(split, kind=["", *split.kind[1:]])
    assert slices.labels(small_index, some)[KINDS.name] == ["unknown", *split.kind[1:]]
    assert KINDS.name not in slices.labels(small_index, replace(split, kind=[""] * 4))


def test_a_slice_is_an_entry_of_a_table_and_nothing_else(small_index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def words(index: Index, split: Split) -> list[str]:
        return ["more" if len(sent.split()) > 1 else "one" for sent in split.sent]

    monkeypatch.setattr(slices, "SLICES", (Slice("words", "how many", ("one", "more"), words),))
    predictions = references.predict("whole-image", small_index, "testB")
    parts = score_predictions(predictions, small_index, "testB", ORIGINAL).summary["slices"]
    assert {name: {value: part["n"] for value, part in values.items()} for name, values in parts.items()} == {
        "words": {"one": 1, "more": 2}
    }


def test_values_stand_in_the_order_of_the_slice_and_others_follow() -> None:
    assert DISTRACTORS.ordered(["unknown", "3+", "0", "3+", "9"]) == ["0", "3+", "unknown", "9"]
    assert KINDS.ordered(["size", "colour"]) == ["colour", "size"]


def test_names_of_slices_are_no_columns_of_counts() -> None:
    names = [slice_.name for slice_ in slices.SLICES]
    assert len(set(names)) == len(names)
    assert not {*names} & {"sent_id", "ref_id", "image_id", *metrics.MaskCounts._fields}
    assert all(slice_.meaning for slice_ in slices.SLICES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "0"),
        ("...", "0"),
        ("cat", "1"),
        ("the 2nd kid's bat", "4-5"),
        ("a b c d e f g h", "8-10"),
        ("a " * 11, "11+"),
    ],
)
def test_length_is_counted_in_words(small_index: Index, text: str, expected: str) -> None:
    expression = small_index.split("val").take(np.array([0]))
    assert LENGTH.labels(small_index, replace(expression, sent=[text])) == [expected]


def test_text_slices_of_the_real_expressions_are_counted(small_index: Index, real_expressions: list[str]) -> None:
    texts = replace(small_index.split("val"), sent=real_expressions)
    lengths, kinds = LENGTH.labels(small_index, texts), KIND_WORDS.labels(small_index, texts)
    assert lengths and kinds and len(lengths) == len(kinds) == len(real_expressions) == 21586
    assert Counter(lengths) == {
        "1": 2088,
        "2": 5695,
        "3": 5113,
        "4-5": 5545,
        "6-7": 2038,
        "8-10": 872,
        "11+": 235,
    }
    assert Counter(kind for several in kinds for kind in several.split(", ")) == {
        "place": 13496,
        "colour": 5087,
        "size": 588,
        "relation": 1322,
        "ordinal": 940,
        "negation": 211,
        "none": 4272,
    }


def test_an_expression_counts_for_each_of_its_values(small_index: Index) -> None:
    scored = score_predictions(
        references.predict("largest-object", small_index, "testA"), small_index, "testA", ORIGINAL
    )
    assert scored.rows[KIND_WORDS.name].tolist() == ["size", "colour", "place, size, negation"]
    parts = scored.summary["slices"][KIND_WORDS.name]
    assert {value: part["n"] for value, part in parts.items()} == {"place": 1, "colour": 1, "size": 2, "negation": 1}
    sizes = scored.rows.iloc[[0, 2]]
    assert parts["size"]["oIoU"] == 100 * sizes["intersection"].sum() / sizes["union"].sum()


def test_slices_are_chosen_by_name() -> None:
    assert slices.choose([]) == DEFAULT_SLICES
    assert slices.choose(["object-size", "kind-of-expression"]) == (AREA, KINDS)
    assert slices.choose(["object-size", "all"]) == SLICES
    with pytest.raises(InputError, match="Unknown slice 'object-sizes'. Did you mean 'object-size'.*all"):
        slices.choose(["object-sizes"])
