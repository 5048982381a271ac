"""The mini data set: pinned by hashes, unambiguous by its programs, and as hard as its statistics claim."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from risbench import datasets
from risbench.data import rle, source
from risbench.data.mini import make as mini
from risbench.data.mini import writing
from risbench.data.mini.language import NOUNS, SHARES
from risbench.data.mini.program import referent
from risbench.data.mini.scene import COLOURS, FAMILIES, Thing
from risbench.data.mini.writing import Layout
from risbench.data.rle import Mask
from risbench.errors import InputError

FEW = {"train": 4, "val": 2}


class Made(NamedTuple):
    """The data set of seed 0 as it lies on disk."""

    root: Path
    refs: list[dict[str, Any]]
    instances: dict[str, Any]
    masks: dict[int, Mask]  # by annotation
    objects: dict[int, list[dict[str, Any]]]  # annotations by image

    @property
    def sentences(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(ref, sentence) for ref in self.refs for sentence in ref["sentences"]]


@pytest.fixture(scope="module")
def made(cache: Path) -> Made:
    root = cache / "data"
    mini.make(root)
    refs = pickle.loads((root / "mini" / "refs(unc).p").read_bytes())
    instances = json.loads((root / "mini" / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    objects = defaultdict(list)
    masks = {}
    for annotation in instances["annotations"]:
        objects[annotation["image_id"]].append(annotation)
        size = sizes[annotation["image_id"]]
        masks[annotation["id"]] = rle.decode(rle.merge(rle.from_polygons(annotation["segmentation"], size), size), size)
    return Made(root, refs, instances, masks, dict(objects))


def facts(made: Made, annotation: dict[str, Any]) -> Thing:
    """Return the object as programs see it, from its annotation and its mask alone."""
    shapes = {category["id"]: category["name"] for category in made.instances["categories"]}
    mask = made.masks[annotation["id"]]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
    return Thing(shapes[annotation["category_id"]], **annotation["attributes"], box=box, area=int(mask.sum()))


def leaves(program: Any) -> Iterator[tuple[str, str]]:
    """Yield the attributes and values that a program names."""
    if isinstance(program, list):
        if program[0] in ("filter", "not"):
            yield program[1], program[2]
        for part in program[1:]:
            yield from leaves(part)


def regions(mask: Mask) -> int:
    """Count the connected regions; pixels that touch at a corner are connected."""
    rest = {tuple(pixel) for pixel in np.argwhere(mask).tolist()}
    count = 0
    while rest:
        count += 1
        front = [rest.pop()]
        while front:
            row, column = front.pop()
            near = {(row + r, column + c) for r, c in itertools.product((-1, 0, 1), repeat=2)} & rest
            rest -= near
            front += near
    return count


def share(hits: list[bool]) -> float:
    return 100 * sum(hits) / len(hits)


def test_the_contents_have_the_hashes_of_the_card(made: Made) -> None:
    pins = datasets.load("mini").sha256
    assert writing.annotations_sha256(mini.LAYOUT, made.root) == pins["annotations"]
    assert writing.pixels_sha256(mini.LAYOUT, made.root) == pins["pixels"]


def test_card_states_counts_and_shares_of_kinds(made: Made) -> None:
    card = datasets.load("mini")
    for split, stated in card.splits.items():
        refs = [ref for ref in made.refs if ref["split"] == split]
        sentences = sum(len(ref["sentences"]) for ref in refs)
        counted = {"images": len({ref["image_id"] for ref in refs}), "refs": len(refs), "expressions": sentences}
        assert {name: count.n for name, count in stated.counts().items()} == counted
    kinds = [sentence["kind"] for _, sentence in made.sentences]
    assert card.kinds == {kind: round(share([k == kind for k in kinds]), 1) for kind in SHARES}
    assert max(len(sentence["tokens"]) for _, sentence in made.sentences) <= card.max_words


def test_reader_of_refcoco_reads_it(made: Made) -> None:
    index = source.open_index("mini", str(made.root))
    val = index.split("val")
    sentences = {s["sent_id"]: s for ref, s in made.sentences if ref["split"] == "val"}
    assert dict(zip(val.sent_id.tolist(), val.kind, strict=True)) == {k: s["kind"] for k, s in sentences.items()}
    assert dict(zip(val.sent_id.tolist(), val.sent, strict=True)) == {k: s["sent"] for k, s in sentences.items()}
    ann_id = int(val.ann_id[0])
    size = index.image_size(int(val.image_id[0]))
    assert rle.area(index.ground_truth(ann_id, "union"), size) == made.masks[ann_id].sum()


def test_every_program_refers_to_its_object_by_the_annotations_alone(made: Made) -> None:
    things = {
        image: [facts(made, annotation) for annotation in annotations] for image, annotations in made.objects.items()
    }
    for ref, sentence in made.sentences:
        number = referent(sentence["program"], things[ref["image_id"]])
        assert made.objects[ref["image_id"]][number]["id"] == ref["ann_id"], sentence["raw"]


def test_words_name_the_attributes_of_the_program_and_no_others(made: Made) -> None:
    words = {noun: ("shape", shape) for shape, nouns in NOUNS.items() for noun in nouns}
    words |= {colour: ("colour", colour) for colour in COLOURS} | {"plain": ("pattern", "plain")}
    words |= dict.fromkeys(("striped", "stripes"), ("pattern", "striped"))
    words |= dict.fromkeys(("dotted", "dots"), ("pattern", "dotted"))
    words |= dict.fromkeys(("big", "large"), ("size", "large")) | dict.fromkeys(("small", "tiny"), ("size", "small"))
    for _, sentence in made.sentences:
        word_pairs = {words[token] for token in sentence["tokens"] if token in words}
        program_pairs = set(leaves(sentence["program"]))
        assert {pair for pair in word_pairs if pair[0] != "size"} == {
            pair for pair in program_pairs if pair[0] != "size"
        }
        if "large" in sentence["tokens"] and "size" in dict(program_pairs):
            assert ("size", "large") in program_pairs


def test_words_name_the_side_of_the_program(made: Made) -> None:
    words = {"left": "left leftmost", "right": "right rightmost"}
    words |= {"top": "top upper highest", "bottom": "bottom lower lowest"}
    for _, sentence in made.sentences:
        if sentence["program"][0] in ("extreme", "ordinal"):
            for side in sentence["program"][-2].split():
                assert set(words[side].split()) & set(sentence["tokens"]), sentence["raw"]


def test_every_split_holds_every_kind_near_its_share(made: Made) -> None:
    for split in mini.IMAGES:
        kinds = Counter(sentence["kind"] for ref, sentence in made.sentences if ref["split"] == split)
        for kind, wanted in SHARES.items():
            assert abs(100 * kinds[kind] / kinds.total() - wanted) < 2.5, (split, kind)


def test_class_alone_does_not_tell_the_referent_in_most_expressions(made: Made) -> None:
    classes = {image: Counter(a["category_id"] for a in annotations) for image, annotations in made.objects.items()}
    assert share([classes[ref["image_id"]][ref["category_id"]] > 1 for ref, _ in made.sentences]) >= 60


def test_images_are_small_and_hold_four_to_seven_objects_some_behind_others(made: Made) -> None:
    sides = {side for image in made.instances["images"] for side in (image["height"], image["width"])}
    counts = {len(annotations) for annotations in made.objects.values()}
    touching = [
        any((np.pad(a, 1)[1:-1, 2:] & b).any() or (np.pad(a, 1)[2:, 1:-1] & b).any() for a, b in pairs)
        for annotations in made.objects.values()
        for pairs in [list(itertools.permutations([made.masks[annotation["id"]] for annotation in annotations], 2))]
    ]
    assert (min(sides), max(sides), counts) == (64, 96, {4, 5, 6, 7})
    assert share(touching) > 50


def test_annotations_are_whole_visible_and_never_cover_each_other(made: Made) -> None:
    for image in made.instances["images"]:
        annotations = made.objects[image["id"]]
        masks = [made.masks[annotation["id"]] for annotation in annotations]
        assert sum(masks[1:], masks[0].astype(int)).max() == 1
        for annotation in annotations:
            thing = facts(made, annotation)
            assert (annotation["area"], tuple(annotation["bbox"])) == (thing.area, thing.box)
            assert thing.area >= 30


def test_a_tenth_of_the_refs_lies_in_several_parts(made: Made) -> None:
    assert share([regions(made.masks[ref["ann_id"]]) > 1 for ref in made.refs]) >= 10


def test_some_refs_have_polygons_that_overlap(made: Made) -> None:
    by_id = {annotation["id"]: annotation for annotation in made.instances["annotations"]}
    hits = []
    for ref in made.refs:
        size = made.masks[ref["ann_id"]].shape
        parts = rle.from_polygons(by_id[ref["ann_id"]]["segmentation"], (size[0], size[1]))
        hits.append(sum(rle.area(part, (size[0], size[1])) for part in parts) > made.masks[ref["ann_id"]].sum())
    assert 2 <= share(hits) <= 15


def test_test_splits_hold_one_family_of_classes_each_and_the_others_both(made: Made) -> None:
    families = {category["id"]: category["supercategory"] for category in made.instances["categories"]}
    referred = {split: {families[r["category_id"]] for r in made.refs if r["split"] == split} for split in mini.IMAGES}
    assert referred == {"train": set(FAMILIES), "val": set(FAMILIES), "testA": {"round"}, "testB": {"angular"}}
    assert all(
        {families[a["category_id"]] for a in annotations} == set(FAMILIES) for annotations in made.objects.values()
    )


def test_no_image_is_in_two_splits(made: Made) -> None:
    splits = defaultdict(set)
    for ref in made.refs:
        splits[ref["image_id"]].add(ref["split"])
    files = [(made.root / "images" / "mini" / image["file_name"]) for image in made.instances["images"]]
    assert {len(annotations) for annotations in splits.values()} == {1}
    assert len({file.read_bytes() for file in files}) == len(files) == sum(mini.IMAGES.values())


def test_plain_objects_show_the_colour_that_their_annotation_names(made: Made) -> None:
    palette = np.array(list(COLOURS.values()))
    for image in made.instances["images"][::10]:
        with Image.open(made.root / "images" / "mini" / image["file_name"]) as picture:
            pixels = np.asarray(picture).astype(int)
        nearest = np.abs(pixels[:, :, None] - palette).sum(-1).argmin(-1)
        for annotation in made.objects[image["id"]]:
            if annotation["attributes"]["pattern"] == "plain":
                seen = Counter(nearest[made.masks[annotation["id"]]].tolist())
                assert list(COLOURS)[seen.most_common(1)[0][0]] == annotation["attributes"]["colour"]


def test_background_never_has_the_colour_of_an_object(made: Made) -> None:
    palette = np.array(list(COLOURS.values()))
    for image in made.instances["images"][::10]:
        with Image.open(made.root / "images" / "mini" / image["file_name"]) as picture:
            pixels = np.asarray(picture).astype(int)
        objects = np.logical_or.reduce([made.masks[annotation["id"]] for annotation in made.objects[image["id"]]])
        assert np.abs(pixels[~objects][:, None] - palette).max(-1).min() > 40


def test_refs_have_the_keys_of_refcoco(made: Made) -> None:
    keys = {"sent_ids", "file_name", "ann_id", "ref_id", "image_id", "split", "sentences", "category_id"}
    assert all(set(ref) == keys for ref in made.refs)
    assert all(set(s) == {"tokens", "raw", "sent_id", "sent", "kind", "program"} for _, s in made.sentences)
    assert [s["sent_id"] for _, s in made.sentences] == list(range(len(made.sentences)))
    assert all(ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]] for ref in made.refs)


def test_sentences_are_the_raw_ones_cleaned(made: Made) -> None:
    for _, sentence in made.sentences:
        cleaned = "".join(c for c in sentence["raw"].lower() if c not in ".,!")
        assert sentence["sent"] == cleaned == " ".join(sentence["tokens"])
    assert 10 < share([sentence["raw"] != sentence["sent"] for _, sentence in made.sentences]) < 40


def test_objects_have_several_wordings_from_a_small_vocabulary(made: Made) -> None:
    assert all(2 <= len({s["sent"] for s in ref["sentences"]}) == len(ref["sentences"]) <= 4 for ref in made.refs)
    assert 60 <= len({token for _, sentence in made.sentences for token in sentence["tokens"]}) <= 85


def test_a_seed_repeats_its_data_set_and_another_seed_makes_another(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        mini._generate(tmp_path / name, seed, FEW)
    hashes = [
        (writing.annotations_sha256(mini.LAYOUT, tmp_path / n), writing.pixels_sha256(mini.LAYOUT, tmp_path / n))
        for n in ("one", "two", "other")
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0][0] != hashes[2][0] and hashes[0][1] != hashes[2][1]


def test_a_data_set_with_other_hashes_than_the_card_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "IMAGES", FEW)
    with pytest.raises(InputError, match="generated annotations of mini have the sha256"):
        mini.make(tmp_path)
    assert not list(tmp_path.iterdir())


def test_several_threads_may_make_it_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: mini._generate(tmp_path / "shared", 3, FEW), range(4)))
    mini._generate(tmp_path / "alone", 3, FEW)
    assert writing.pixels_sha256(mini.LAYOUT, tmp_path / "shared") == writing.pixels_sha256(
        mini.LAYOUT, tmp_path / "alone"
    )
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["images", "mini"]


def test_interrupted_run_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(layout: Layout, draft: Path, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "move_into_place", interrupt)
        mini._generate(tmp_path, 3, FEW)
    assert list(tmp_path.iterdir()) == []
    mini._generate(tmp_path, 3, FEW)
    assert (tmp_path / "mini" / "instances.json").is_file()


def test_an_existing_data_set_is_kept_and_another_seed_refused(tmp_path: Path) -> None:
    mini._generate(tmp_path, 3, FEW)
    before = (tmp_path / "mini" / "instances.json").stat().st_mtime_ns
    mini.make(tmp_path, 3)
    assert (tmp_path / "mini" / "instances.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds mini of seed 3, not 4. Name another folder"):
        mini.make(tmp_path, 4)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/mini cannot be written: .*Give a path that can be written"):
        mini.make(tmp_path / "file")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "an image": lambda root: flip_a_bit(root / "images" / "mini" / "mini_000000000003.png"),
    "the annotations": lambda root: flip_a_bit(root / "mini" / "instances.json"),
    "the hashes": lambda root: flip_a_bit(root / "mini" / "sha256.json"),
    "a missing image": lambda root: (root / "images" / "mini" / "mini_000000000003.png").unlink(),
    "no images": lambda root: shutil.rmtree(root / "images"),
    "missing refs": lambda root: (root / "mini" / "refs(unc).p").unlink(),
    "missing hashes": lambda root: (root / "mini" / "sha256.json").unlink(),
    "a pipe": lambda root: pipe(root / "mini" / "instances.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_are_made_again_in_the_cache_and_refused_elsewhere(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert mini._generate(tmp_path, 3, FEW)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    DAMAGES[damage](tmp_path)
    with pytest.raises(InputError, match=r"is incomplete, damaged or changed \(.*Delete .*mini and .*images.mini, or"):
        mini._generate(tmp_path, 3, FEW)
    assert not caplog.records
    assert mini._generate(tmp_path, 3, FEW, repair=True)
    assert ["it is made again" in record.getMessage() for record in caplog.records] == [True]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not mini._generate(tmp_path, 3, FEW, repair=True)


def test_the_advice_about_damaged_data_helps(tmp_path: Path) -> None:
    mini._generate(tmp_path, 3, FEW)
    flip_a_bit(tmp_path / "mini" / "instances.json")
    shutil.rmtree(tmp_path / "mini")
    shutil.rmtree(tmp_path / "images" / "mini")
    assert mini._generate(tmp_path, 3, FEW)


def test_the_cached_data_set_is_repaired_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    repairs = []
    monkeypatch.setattr(mini, "make", lambda root, repair: repairs.append((root, repair)))
    monkeypatch.setenv("RISBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RISBENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="data root .*cache.data does not exist"):
        source.open_index("mini")
    run_command("data", "make", "mini")
    run_command("data", "make", "mini", "--data-root", tmp_path / "own")
    cache = tmp_path / "cache" / "data"
    assert repairs == [(cache, True), (cache, True), (tmp_path / "own", False)]
