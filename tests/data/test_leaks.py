"""Leaks: overlaps counted by brute force, files of image ids, and the share in a record."""

from __future__ import annotations

import csv
import io
import os
import pickle
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from risbench import datasets
from risbench.cli.data import app
from risbench.data import leaks, source
from risbench.errors import InputError

Refs = list[dict[str, Any]]


@pytest.fixture
def root(small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root of the data sets one and two, divided at random; three, of the same images, has no files there."""
    root = Path(shutil.copytree(small_root, tmp_path / "root"))
    dice = random.Random(3)
    about = (root / "small.toml").read_text().split("[splits]")[0]
    splits = "[splits]\ntrain = { evaluation = false }\nval = {}\ntestA = {}\ntestB = {}\n"
    for name in ("one", "two", "three"):
        (root / f"{name}.toml").write_text(about.replace('"small"', f'"{name}"') + splits)
    for name in ("one", "two"):
        shutil.copytree(root / "small", root / name)
        refs = refs_of(root, name)
        for ref in refs:
            ref["split"] = dice.choice(["train", "train", "val", "testA", "testB"])
        (root / name / "refs(unc).p").write_bytes(pickle.dumps(refs))
    monkeypatch.setattr(datasets, "_cards", lambda: {name: root / f"{name}.toml" for name in ("one", "two", "three")})
    return root


def refs_of(root: Path, name: str) -> Refs:
    refs: Refs = pickle.loads((root / name / "refs(unc).p").read_bytes())
    return refs


def trained(refs: Refs) -> set[int]:
    return {ref["image_id"] for ref in refs if ref["split"] == "train"}


def shared(refs: Refs, split: str, ids: set[int]) -> tuple[int, int, int, int]:
    """Count images, shared images, expressions and shared expressions of a split."""
    images = {ref["image_id"] for ref in refs if ref["split"] == split}
    expressions = [ref["image_id"] for ref in refs if ref["split"] == split for _ in ref["sentences"]]
    return len(images), len(images & ids), len(expressions), sum(image in ids for image in expressions)


NUMBERS = ("images", "shared images", "expressions", "shared expressions")


def test_every_evaluation_split_is_compared_with_every_training_set_of_its_images(root: Path) -> None:
    table = leaks.table("", [], str(root))
    refs = {name: refs_of(root, name) for name in ("one", "two")}
    expected = {
        (f"{training} train", name, split): shared(refs[name], split, trained(refs[training]))
        for training in refs
        for name in refs
        for split in {ref["split"] for ref in refs[name]} - {"train"}
    }
    rows = table.as_dicts()
    keys = [(str(row["training set"]), str(row["data set"]), str(row["split"])) for row in rows]
    assert dict(zip(keys, [tuple(row[name] for name in NUMBERS) for row in rows], strict=True)) == expected
    assert len(keys) == len(expected) and any(count[1] for count in expected.values())
    for row, count in zip(rows, (expected[key] for key in keys), strict=True):
        assert row["shared images %"] == 100 * count[1] / count[0]
        assert row["shared expressions %"] == 100 * count[3] / count[2]
    assert "Not below the data root, and not compared: three." in table.notes


def test_a_card_by_its_path_is_compared_with_those_of_the_same_images(root: Path) -> None:
    rows = leaks.table(str(root / "small.toml"), [], str(root)).as_dicts()
    assert {row["data set"] for row in rows} == {"small"}
    assert {row["training set"] for row in rows} == {"small train", "one train", "two train"}
    assert {row["shared images"] for row in rows if row["training set"] == "small train"} == {0}

    elsewhere = (root / "small.toml").read_text().replace("images/small", "images/others")
    (root / "small.toml").write_text(elsewhere)
    rows = leaks.table(str(root / "small.toml"), [], str(root)).as_dicts()
    assert {row["training set"] for row in rows} == {"small train"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ids.txt", "4\n\n 5 \n999\n4\n"),
        ("ids.json", "[4, 5, 999, 4]"),
        ("instances_train2014.json", '{"info": {}, "images": [{"id": 4, "height": 1}, {"id": 5}, {"id": 999}]}'),
    ],
)
def test_image_ids_of_a_file_are_a_training_set(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)
    assert leaks.image_ids(root / name).tolist() == [4, 5, 999]
    rows = leaks.table(str(root / "small.toml"), [root / name], str(root)).as_dicts()
    mine = {row["split"]: row["shared expressions"] for row in rows if row["training set"] == str(root / name)}
    assert mine == {"val": 4, "testA": 3, "testB": 0}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty.txt", "\n"),
        ("names.txt", "4\nCOCO_train2014_000000000005.jpg"),
        ("negative.txt", "-4"),
        ("long.txt", "1" * 30),
        ("empty.json", "[]"),
        ("text.json", "4\n5"),
        ("names.json", '["4"]'),
        ("negative.json", "[-4]"),
        ("long.json", "[" + "1" * 30 + "]"),
        ("captions.json", '{"annotations": []}'),
        ("twice.json", '{"images": [{"id": 4}], "images": []}'),
        ("nested.json", "[" * 100_000),
        ("huge.json", f"[{'1' * 5000}]"),
        ("digits.txt", "4\n\u0665"),
    ],
)
def test_a_file_without_image_ids_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} holds no list of image ids: give"):
        leaks.image_ids(tmp_path / name)


def test_a_pipe_is_no_training_set(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ids.txt")
    with pytest.raises(InputError, match="ids.txt is a device or a pipe"):
        leaks.image_ids(tmp_path / "ids.txt")


def test_missing_training_sets_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.txt cannot be read: No such file"):
        leaks.table("", [tmp_path / "none.txt"], str(root))
    with pytest.raises(InputError, match="No data set lies below the data root"):
        leaks.table("", [], str(tmp_path / "nowhere"))
    only = [{**ref, "split": "val"} for ref in refs_of(root, "one")]
    for name in ("one", "two"):
        (root / name / "refs(unc).p").write_bytes(pickle.dumps(only))
    with pytest.raises(InputError, match="No training set of one lies below the data root: give one with --train FILE"):
        leaks.table("one", [], str(root))


def test_the_leaked_percentage_counts_expressions_on_training_images(root: Path) -> None:
    one, two = refs_of(root, "one"), refs_of(root, "two")
    index = source.open_index("one", str(root))
    known = ({"one", "ImageNet-1k"}, trained(one)), ({"one", "two", "BookCorpus"}, trained(one) | trained(two))
    for named, ids in (*known, (set(), set()), ({"English Wikipedia", "imagenet 22K"}, set())):
        for split in set(index.split_names()) - {"train"}:
            *_, expressions, on_shared = shared(one, split, ids)
            assert leaks.leaked_percent(named, index, split, str(root)) == 100 * on_shared / expressions


@pytest.mark.parametrize("name", ["three", "unknown", "LVIS", "COCO", "coco_val2017", "MS-COCO", "COCO without testA"])
def test_what_is_not_known_or_not_at_hand_makes_the_percentage_unknown(root: Path, name: str) -> None:
    """A number from the other training sets would be too low."""
    index = source.open_index("one", str(root))
    assert leaks.leaked_percent(["one", name], index, "val", str(root)) is None
    assert leaks.leaked_percent([name], index, "val", str(root)) is None


def test_a_damaged_or_incomplete_copy_makes_the_percentage_unknown(root: Path) -> None:
    index = source.open_index("one", str(root))
    assert leaks.leaked_percent(["one", "two"], index, "val", str(root)) is not None
    counted = (root / "two.toml").read_text()
    (root / "two.toml").write_text(counted.replace("train = { evaluation = false }", "train = { images = 9 }"))
    assert leaks.leaked_percent(["one", "two"], index, "val", str(root)) is None
    (root / "two.toml").write_text(counted)
    (root / "two" / "instances.json").write_text("damaged")
    assert leaks.leaked_percent(["one", "two"], index, "val", str(root)) is None
    (root / "three.toml").write_text("damaged")
    assert leaks.leaked_percent(["one", "three"], index, "val", str(root)) is None
    assert leaks.leaked_percent(["one"], index, "val", str(root)) is not None


def test_a_card_of_another_folder_of_images_shares_none(root: Path) -> None:
    index = source.open_index("one", str(root))
    elsewhere = (root / "three.toml").read_text().replace("images/small", "images/others")
    (root / "three.toml").write_text(elsewhere)
    alone = leaks.leaked_percent(["one"], index, "val", str(root))
    assert leaks.leaked_percent(["one", "three"], index, "val", str(root)) == alone is not None


@pytest.mark.parametrize("folder", ["", "annotations", "images/annotations", "coco/annotations"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("COCO", "instances_train2014.json"),
        ("MS COCO", "instances_train2017.json"),
        ("coco_train2014", "instances_train2014.json"),
        ("COCO 2017 train", "instances_train2017.json"),
    ],
)
def test_coco_is_counted_where_its_list_of_images_is_at_hand(root: Path, folder: str, name: str, file: str) -> None:
    index = source.open_index("one", str(root))
    ids = {2, 4, 5, 7_000}
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / file).write_text(f'{{"images": {[{"id": number} for number in ids]}}}'.replace("'", '"'))
    for split in set(index.split_names()) - {"train"}:
        *_, expressions, on_shared = shared(refs_of(root, "one"), split, ids | trained(refs_of(root, "one")))
        assert leaks.leaked_percent(["one", name], index, split, str(root)) == 100 * on_shared / expressions
    other = "COCO train2017" if "2014" in file else "COCO train2014"
    assert leaks.leaked_percent(["one", other], index, "val", str(root)) is None
    (root / folder / file).write_text("{}")
    assert leaks.leaked_percent(["one", name], index, "val", str(root)) is None


def test_ids_of_images_that_are_not_coco_s_are_not_compared_with_coco(root: Path) -> None:
    (root / "instances_train2014.json").write_text('{"images": [{"id": 999999}]}')
    index = source.open_index("one", str(root))
    assert leaks.leaked_percent(["COCO"], index, "val", str(root)) == 0
    for folder in ("one", "two"):
        path = root / folder / "instances.json"
        path.write_text(path.read_text().replace("COCO_train2014_000", "drawn_"))
    assert leaks.leaked_percent(["COCO"], source.open_index("one", str(root)), "val", str(root)) is None
    drawn = replace(index, card=index.card.model_copy(update={"generator": "mini"}))
    assert leaks.leaked_percent(["COCO"], drawn, "val", str(root)) is None


def test_the_command_prints_the_overlaps(root: Path) -> None:
    (root / "ids.txt").write_text("4\n6\n")
    options = ["--train", str(root / "ids.txt"), "--data-root", str(root), "--format", "csv"]
    answer = CliRunner().invoke(app, ["leaks", str(root / "small.toml"), *options])
    assert answer.exit_code == 0, answer.output
    rows = [row for row in csv.DictReader(io.StringIO(answer.output)) if row["training set"] == str(root / "ids.txt")]
    assert [(row["split"], row["shared images"]) for row in rows] == [("val", "1"), ("testA", "0"), ("testB", "1")]
    answer = CliRunner().invoke(app, ["leaks", str(root / "small.toml"), "--data-root", str(root)])
    assert answer.exit_code == 0 and "small train" in answer.output and re.search(r"\b0 +0\.00\b", answer.output)
