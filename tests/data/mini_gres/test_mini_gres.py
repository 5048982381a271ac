"""The mini-gres data set: pinned by hashes, clear by its programs, and in the files of gRefCOCO."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from risbench import datasets
from risbench.data import flips, rle, source
from risbench.data.mini import make as mini
from risbench.data.mini import writing
from risbench.data.mini.language import SHARES, Picture
from risbench.data.mini.scene import FAMILIES, Thing
from risbench.data.mini_gres import make as mini_gres
from risbench.data.mini_gres.language import NONE, SEVERAL
from risbench.data.mini_gres.program import members
from risbench.errors import InputError

FEW = {"train": 4, "val": 2}
KINDS = (*SHARES, *SEVERAL, *NONE)


class Made(NamedTuple):
    """The data set of seed 0 as it lies on disk."""

    root: Path
    refs: list[dict[str, Any]]
    instances: dict[str, Any]
    pictures: dict[int, Picture]  # by image, from its annotations alone
    annotations: dict[int, list[int]]  # by image

    @property
    def sentences(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(ref, sentence) for ref in self.refs for sentence in ref["sentences"]]


@pytest.fixture(scope="module")
def made(cache: Path) -> Made:
    root = cache / "data"
    mini_gres.make(root)
    refs, instances = mini_gres.LAYOUT.read(root)
    shapes = {category["id"]: category["name"] for category in instances["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    things, annotations = defaultdict(list), defaultdict(list)
    for entry in instances["annotations"]:
        size = sizes[entry["image_id"]]
        mask = rle.decode(rle.merge(rle.from_polygons(entry["segmentation"], size), size), size)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        thing = Thing(shapes[entry["category_id"]], **entry["attributes"], box=box, area=int(mask.sum()))
        things[entry["image_id"]].append(thing)
        annotations[entry["image_id"]].append(entry["id"])
    pictures = {image: Picture(found, *sizes[image], target=-1) for image, found in things.items()}
    return Made(root, refs, instances, pictures, dict(annotations))


def target(ref: dict[str, Any]) -> str:
    return "none" if ref["ann_id"] == [-1] else "one" if len(ref["ann_id"]) == 1 else "several"


def test_the_contents_have_the_hashes_of_the_card(made: Made) -> None:
    pins = datasets.load("mini-gres").sha256
    assert writing.annotations_sha256(mini_gres.LAYOUT, made.root) == pins["annotations"]
    assert writing.pixels_sha256(mini_gres.LAYOUT, made.root) == pins["pixels"]


def test_card_states_counts_and_shares_of_kinds(made: Made) -> None:
    card = datasets.load("mini-gres")
    for split, stated in card.splits.items():
        refs = [ref for ref in made.refs if ref["split"] == split]
        sentences = sum(len(ref["sentences"]) for ref in refs)
        counted = {"images": len({ref["image_id"] for ref in refs}), "refs": len(refs), "expressions": sentences}
        assert {name: count.n for name, count in stated.counts().items()} == counted
    kinds = Counter(sentence["kind"] for _, sentence in made.sentences)
    assert card.kinds == {kind: round(100 * kinds[kind] / kinds.total(), 1) for kind in KINDS}
    assert max(len(sentence["tokens"]) for _, sentence in made.sentences) <= card.max_words
    shares = Counter(target(ref) for ref, _ in made.sentences)
    stated_shares = {word: f"{round(100 * count / shares.total())} %" for word, count in shares.items()}
    for words in ("one object ({one})", "several ({several})", "none ({none})"):
        assert words.format(**stated_shares) in " ".join(card.notes.split())


def test_every_split_holds_every_kind_near_its_share(made: Made) -> None:
    for split in mini_gres.IMAGES:
        kinds = Counter(sentence["kind"] for ref, sentence in made.sentences if ref["split"] == split)
        for shares in (SHARES, SEVERAL, NONE):
            whole = sum(kinds[kind] for kind in shares)
            assert all(abs(100 * kinds[kind] / whole - wanted) < 5 for kind, wanted in shares.items()), split


def test_reader_of_grefcoco_reads_it_without_an_oddity(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    index = source.open_index("mini-gres", str(made.root))
    assert not caplog.records
    val, refs = index.split("val"), {ref["ref_id"]: ref for ref in made.refs}
    assert len(val) == 900
    numbers = index.num_objects(val.ann_id).tolist()
    assert numbers == [len([k for k in refs[ref_id]["ann_id"] if k >= 0]) for ref_id in val.ref_id.tolist()]
    assert {"none", "one", "several"} == {target(refs[ref_id]) for ref_id in val.ref_id.tolist()}


def test_every_program_refers_to_its_objects_by_the_annotations_alone(made: Made) -> None:
    for ref, sentence in made.sentences:
        found = members(sentence["program"], made.pictures[ref["image_id"]])
        assert found is not None, sentence["raw"]
        assert ([made.annotations[ref["image_id"]][k] for k in found] or [-1]) == ref["ann_id"], sentence["raw"]


def test_kinds_say_how_many_objects_are_meant(made: Made) -> None:
    kinds = {
        name: {s["kind"] for ref, s in made.sentences if target(ref) == name} for name in ("one", "several", "none")
    }
    assert kinds == {"one": set(SHARES), "several": set(SEVERAL), "none": set(NONE)}


def test_number_words_are_true_of_the_targets(made: Made) -> None:
    numbers = {"both": 2, "two": 2, "three": 3, "four": 4}
    seen: Counter[str] = Counter()
    for ref, sentence in made.sentences:
        for word in set(sentence["tokens"]) & set(numbers):
            assert len(ref["ann_id"]) == numbers[word] and target(ref) == "several", sentence["raw"]
            seen[word] += 1
    assert set(seen) == set(numbers)


def test_words_alone_do_not_tell_that_nothing_is_meant(made: Made) -> None:
    """All words of the expressions for none are words of expressions for objects, and most of their nouns are there."""
    words = {
        name: {t for ref, s in made.sentences if target(ref) == name for t in s["tokens"]}
        for name in ("one", "none", "several")
    }
    assert words["none"] <= words["one"] | words["several"]
    absent = [(ref, s) for ref, s in made.sentences if s["kind"] == "absent"]
    shapes = [{pair[2] for pair in filters(s["program"]) if pair[1] == "shape"} for _, s in absent]
    there = [{thing.shape for thing in made.pictures[ref["image_id"]].things} for ref, _ in absent]
    assert sum(named <= seen for named, seen in zip(shapes, there, strict=True)) > 0.5 * len(absent)


def filters(program: Any) -> list[list[Any]]:
    """The parts of a program that name an attribute."""
    if not isinstance(program, list):
        return []
    return [program] * (program[0] == "filter") + [part for inner in program for part in filters(inner)]


def test_every_image_has_refs_for_one_object_for_several_and_for_none(made: Made) -> None:
    targets = defaultdict(set)
    for ref in made.refs:
        targets[ref["image_id"]].add(target(ref))
    assert len(targets) == sum(mini_gres.IMAGES.values())
    assert all(found == {"one", "several", "none"} for found in targets.values())
    distinct = {(ref["image_id"], *ref["ann_id"]) for ref in made.refs}
    assert len(distinct) == len(made.refs)  # expressions for the same objects are one ref


def test_test_splits_refer_to_one_family_of_classes_each(made: Made) -> None:
    families = {category["id"]: category["supercategory"] for category in made.instances["categories"]}
    referred: defaultdict[str, set[str]] = defaultdict(set)
    for ref in made.refs:
        referred[ref["split"]] |= {families[category] for category in ref["category_id"] if category >= 0}
    assert referred == {"train": set(FAMILIES), "val": set(FAMILIES), "testA": {"round"}, "testB": {"angular"}}


def test_refs_have_the_keys_of_grefcoco(made: Made) -> None:
    keys = {"sent_ids", "file_name", "ann_id", "ref_id", "image_id", "split", "sentences", "category_id", "no_target"}
    categories = {entry["id"]: entry["category_id"] for entry in made.instances["annotations"]} | {-1: -1}
    files = {image["id"]: image["file_name"] for image in made.instances["images"]}
    for ref in made.refs:
        assert set(ref) == keys and ref["no_target"] == (ref["ann_id"] == [-1])
        assert ref["category_id"] == [categories[ann_id] for ann_id in ref["ann_id"]]
        assert ref["file_name"] == files[ref["image_id"]]
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
    assert [s["sent_id"] for _, s in made.sentences] == list(range(len(made.sentences)))


def test_sentences_are_the_raw_ones_cleaned(made: Made) -> None:
    for _, sentence in made.sentences:
        cleaned = "".join(c for c in sentence["raw"].lower() if c not in ".,!")
        assert sentence["sent"] == cleaned == " ".join(sentence["tokens"])
        assert not re.search(r"\b(\w+) \1\b", cleaned), cleaned  # no word twice in a row


def test_no_image_is_one_of_mini(made: Made, tmp_path: Path) -> None:
    """Of its first 40: the others are drawn from other dice in the same way."""
    mini._generate(tmp_path, 0, {"train": 40})
    ours, others = (
        {hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}
        for folder in (made.root / "images" / "mini-gres", tmp_path / "images" / "mini")
    )
    assert len(ours) == sum(mini_gres.IMAGES.values()) and len(others) == 40 and ours.isdisjoint(others)


def mirrored(program: Any) -> Any:
    """A program with left and right exchanged."""
    if isinstance(program, list):
        return [mirrored(part) for part in program]
    exchanged = {"left": "right", "right": "left"}
    return re.sub("left|right", lambda side: exchanged[side[0]], program) if isinstance(program, str) else program


def mirrored_picture(picture: Picture) -> Picture:
    boxes = [(picture.width - x - width, y, width, height) for x, y, width, height in (t.box for t in picture.things)]
    return picture._replace(things=[t._replace(box=box) for t, box in zip(picture.things, boxes, strict=True)])


def test_exchanged_words_refer_to_the_same_objects_of_the_mirrored_scene(made: Made) -> None:
    sided: Counter[str] = Counter()
    for ref, sentence in made.sentences:
        if sentence["kind"] in SHARES:  # tests/data/mini/test_mini_flips.py examines these
            continue
        exchanged, program = flips.exchange(sentence["raw"]), mirrored(sentence["program"])
        assert exchanged is not None, sentence["raw"]
        assert sides(exchanged) == sides(program), sentence["raw"]
        picture = made.pictures[ref["image_id"]]
        assert members(program, mirrored_picture(picture)) == members(sentence["program"], picture), sentence["raw"]
        sided[sentence["kind"]] += bool(sides(program))
    assert {kind for kind, count in sided.items() if count > 20} == {*SEVERAL, *NONE} - {"group", "absent"}


def sides(text: Any) -> Counter[str]:
    return Counter(re.findall("left|right", str(text).lower()))


def test_a_program_with_an_object_on_the_border_is_unclear() -> None:
    thing = Thing(
        "square", "red", "plain", "large", (30, 10, 10, 10), 100
    )  # its centre is 3 pixels right of the middle
    far = thing._replace(box=(50, 10, 10, 10))
    half = ["half", "left", ["all"]]
    assert members(half, Picture([thing, far], 64, 64, -1)) is None
    assert members(half, Picture([far], 64, 64, -1)) == []
    assert members(["half", "right", ["all"]], Picture([far, far], 64, 64, -1)) == [0, 1]
    blue = far._replace(colour="blue", box=(30, 40, 10, 10))
    beside = ["beside", "left_of", ["filter", "colour", "red", ["all"]], ["filter", "colour", "blue", ["all"]]]
    assert members(beside, Picture([far, blue], 64, 64, -1)) == []  # it lies right of it
    assert members(beside, Picture([thing, blue], 64, 64, -1)) is None  # it lies above it
    assert members(beside, Picture([far, blue, blue], 64, 64, -1)) is None  # two anchors
    union = ["union", ["filter", "colour", "red", ["all"]], ["filter", "colour", "blue", ["all"]]]
    assert members(union, Picture([far, blue], 64, 64, -1)) == [0, 1]
    assert members(union, Picture([far, far, blue], 64, 64, -1)) is None


def test_a_seed_repeats_its_data_set_and_another_seed_makes_another(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        mini_gres._generate(tmp_path / name, seed, FEW)
    contents = [
        (
            writing.annotations_sha256(mini_gres.LAYOUT, tmp_path / name),
            writing.pixels_sha256(mini_gres.LAYOUT, tmp_path / name),
        )
        for name in ("one", "two", "other")
    ]
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0] and contents[0][1] != contents[2][1]
    assert not mini_gres._generate(tmp_path / "one", 3, FEW)
    with pytest.raises(InputError, match="holds mini-gres of seed 3, not 4. Name another folder"):
        mini_gres._generate(tmp_path / "one", 4, FEW)


def test_a_data_set_with_other_hashes_than_the_card_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_gres, "IMAGES", FEW)
    with pytest.raises(InputError, match="generated annotations of mini-gres have the sha256"):
        mini_gres.make(tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_data_are_made_again_in_the_cache_and_refused_elsewhere(tmp_path: Path) -> None:
    mini_gres._generate(tmp_path, 3, FEW)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "mini-gres" / "grefs(unc).json").write_text("[]")
    with pytest.raises(InputError, match="mini-gres in .* is incomplete, damaged or changed"):
        mini_gres._generate(tmp_path, 3, FEW)
    assert mini_gres._generate(tmp_path, 3, FEW, repair=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
