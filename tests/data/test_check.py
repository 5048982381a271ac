"""The check of a data set of one's own: each demand in words, and what is wrong."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from risbench.data.check import check
from risbench.data.doctor import Finding

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_root, tmp_path / "root"))


def wrong(root: Path) -> list[str]:
    """Return the sentences about what is wrong."""
    return [finding.text for finding in check(str(root / "small.toml"), str(root)) if finding.kind == "wrong"]


def rewrite_card(root: Path, old: str, new: str) -> None:
    text = (root / "small.toml").read_text()
    assert old in text
    (root / "small.toml").write_text(text.replace(old, new))


def test_every_demand_is_said_of_a_sound_data_set(root: Path) -> None:
    assert list(check(str(root / "small.toml"), str(root))) == [
        Finding("ok", "The card of small has every key that is needed, and none that is unknown."),
        Finding("ok", f"{root / 'small'} holds refs(unc).p and instances.json, and both can be read."),
        Finding("ok", "train: 3 images, 6 refs, 10 expressions, as the card says."),
        Finding("ok", "val: 1 images, 2 refs, 4 expressions, as the card says."),
        Finding("ok", "testA: 1 images, 2 refs, 3 expressions, as the card says."),
        Finding("ok", "testB: 1 images, 2 refs, 3 expressions, as the card says."),
        Finding(
            "ok", f"{root / 'images' / 'small'} holds every image (6); risbench data doctor reads each to its end."
        ),
    ]


def test_every_defect_of_a_card_is_named(root: Path) -> None:
    rewrite_card(root, 'licence = "', 'license = "')
    rewrite_card(root, "max_words = 15", "max_words = 0")
    first, second, third = wrong(root)
    assert "'license'. Did you mean 'licence'" in first
    assert "max_words: Input should be greater than or equal to 1" in second
    assert "licence: Field required" in third


def test_a_card_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert [finding.kind for finding in check(str(tmp_path / "none.toml"))] == ["wrong"]
    assert "Unknown data set 'nothing'" in next(check("nothing")).text


def test_a_missing_or_damaged_file_is_named(root: Path) -> None:
    (root / "small" / "instances.json").write_text("{")
    assert [str(root / "small" / "instances.json") in text for text in wrong(root)] == [True]
    (root / "small" / "instances.json").unlink()
    assert "instances.json, which does not exist" in wrong(root)[0]


def test_splits_are_compared_in_both_directions(root: Path) -> None:
    path = root / "small" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    for ref in refs:
        ref["split"] = "test" if ref["split"] == "testA" else ref["split"]
    path.write_bytes(pickle.dumps(refs))
    assert wrong(root) == [
        "testA: the card has this split, but the files hold no expression of it.",
        "test: the files hold 1 images, 2 refs, 3 expressions, but the card has no [splits.test]. Add it.",
    ]


def test_a_count_is_wrong_with_a_source_and_a_note_without(root: Path) -> None:
    rewrite_card(root, "refs = 6, expressions = 10", "refs = { n = 7 }, expressions = 11")
    assert wrong(root) == ["train: the files hold 10 expressions, the card says 11 (tests/conftest.py)."]
    notes = [finding.text for finding in check(str(root / "small.toml"), str(root)) if finding.kind == "note"]
    assert notes == ["train: the files hold 6 refs, the card says 7 (no source is named, so that a run only warns)."]


def test_missing_images_are_counted(root: Path) -> None:
    (root / "images" / "small" / "COCO_train2014_000000000005.png").unlink()
    assert wrong(root) == [
        f"1 of 6 images are not in {root / 'images' / 'small'}, first COCO_train2014_000000000005.png."
    ]
    shutil.rmtree(root / "images")
    assert f"The folder of images {root / 'images' / 'small'} does not exist" in wrong(root)[0]


def test_roles_of_the_splits_are_examined(root: Path) -> None:
    rewrite_card(root, "evaluation = false, ", "")
    notes = [finding.text for finding in check(str(root / "small.toml"), str(root)) if finding.kind == "note"]
    assert notes == ["No method can be trained on it: there is no split train with evaluation = false."]


def test_the_command_exits_with_1_where_something_is_wrong(root: Path, run_command: RunCommand) -> None:
    arguments = ("data", "check", root / "small.toml", "--data-root", root)
    code, out, err = run_command(*arguments)
    assert (code, err) == (0, "")
    assert all(line.startswith("ok:    ") for line in out.splitlines())
    rewrite_card(root, 'images = "images/small"', 'images = "images/smell"')
    code, out, _ = run_command(*arguments, "--json")
    assert code == 1
    assert [finding["kind"] for finding in json.loads(out)] == ["ok"] * 6 + ["wrong"]
    assert run_command(*arguments, "--images", root / "images" / "small")[0] == 0


def test_the_example_of_the_documentation_meets_every_demand(tmp_path: Path, run_command: RunCommand) -> None:
    """The program of the page writes a data set that fits its card; its refs are JSON."""
    page = (Path(__file__).parents[2] / "docs" / "add-a-data-set.md").read_text(encoding="utf-8")
    (tmp_path / "toy.toml").write_text(re.findall(r'```toml title="toy.toml"\n(.*?)```', page, re.DOTALL)[0])
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    arguments = ("toy.toml", "--data-root", "toydata")
    code, out, err = run_command("data", "check", *arguments)
    assert (code, err, out.count("wrong:")) == (0, "", 0)
    assert "val: 1 images, 2 refs, 3 expressions, as the card says." in out
    assert run_command("data", "doctor", *arguments)[:2] == (0, "Nothing is wrong or odd in toy.\n")
    form = json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])
    (tmp_path / "toydata" / "toy" / "refs.json").write_text(json.dumps(form))
    (tmp_path / "toy.toml").write_text((tmp_path / "toy.toml").read_text().replace("refs = 2", "refs = 3"))
    assert run_command("data", "check", *arguments)[:2] == (0, out.replace("2 refs", "3 refs"))
