"""The doctor finds what is missing, damaged or odd, and nothing in a sound data set."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from risbench import datasets
from risbench.data import doctor, index, pictures, rle
from risbench.data.doctor import Finding
from risbench.data.index import Index
from risbench.errors import InputError

OVERLAPS = "1 refs (2 expressions) have overlapping polygons: their ground truth depends on the protocol"
SOUND = [Finding("note", f"train: {OVERLAPS}"), Finding("note", f"testA: {OVERLAPS}")]
Change = Callable[[list[Any]], None]


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_root, tmp_path / "root"))


def examine(root: Path, change: Change | None = None, kind: str = "note") -> list[str]:
    """Findings of a changed data set, beside those of the sound one; all are of this kind."""
    path = root / "small" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    if change:
        change(refs)
    path.write_bytes(pickle.dumps(refs))
    opened = index.load(datasets.load(str(root / "small.toml")), root, partial=True)
    findings = [finding for finding in doctor.examine(opened) if finding not in SOUND]
    assert {finding.kind for finding in findings} <= {kind}
    return [finding.text for finding in findings]


def images(root: Path) -> Path:
    return root / "images" / "small"


def test_sound_data_has_overlapping_polygons_only(small_index: Index) -> None:
    assert doctor.examine(small_index) == SOUND


def test_missing_images_are_named(root: Path) -> None:
    (images(root) / "COCO_train2014_000000000002.jpg").unlink()
    (images(root) / "COCO_train2014_000000000005.png").unlink()
    assert examine(root, kind="wrong") == [
        f"2 of 6 images in {images(root)} are missing: COCO_train2014_000000000002.jpg, COCO_train2014_000000000005.png"
    ]


def test_images_of_too_many_pixels_or_bits_are_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("I;16", (64, 48)).save(images(root) / "COCO_train2014_000000000001.jpg", format="PNG")
    assert examine(root, kind="wrong")[0].endswith("have more than 8 bits a channel: COCO_train2014_000000000001.jpg")
    monkeypatch.setattr(rle, "MAX_PIXELS", 2300)
    assert any("have more than 2,300 pixels" in finding for finding in examine(root, kind="wrong"))


@pytest.mark.parametrize("share", [0.98, 0.8, 0.3])
def test_a_cut_jpeg_is_found_as_a_run_would_refuse_it(root: Path, share: float) -> None:
    path = images(root) / "COCO_train2014_000000000004.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert examine(root, kind="wrong") == [f"1 of 6 images in {images(root)} cannot be read: {path.name}"]
    with pytest.raises(InputError, match="cannot be read"):
        pictures.read(path)


def test_an_interrupted_examination_reads_no_further_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, size: rle.Size) -> None:
        started.append(path)
        time.sleep(0.05)  # so that the other images wait
        raise KeyboardInterrupt

    started: list[Path] = []
    monkeypatch.setattr(pictures, "read", interrupt)
    executor = ThreadPoolExecutor
    monkeypatch.setattr(doctor, "ThreadPoolExecutor", lambda: executor(1))
    opened = index.load(datasets.load(str(root / "small.toml")), root)
    with pytest.raises(KeyboardInterrupt):
        doctor.examine(opened)
    assert len(started) < 6


def test_file_that_is_no_image_is_found(root: Path) -> None:
    path = images(root) / "COCO_train2014_000000000004.jpg"
    path.write_text("<html>not found</html>")
    assert examine(root, kind="wrong") == [f"1 of 6 images in {images(root)} cannot be read: {path.name}"]


def test_image_of_another_size_is_found(root: Path) -> None:
    path = images(root) / "COCO_train2014_000000000004.jpg"
    Image.new("RGB", (33, 47)).save(path)  # width and height swapped
    assert examine(root, kind="wrong") == [
        f"1 of 6 images in {images(root)} have another size than instances.json says: {path.name}"
    ]


def test_difference_from_the_card_is_found(root: Path) -> None:
    assert examine(root, lambda refs: refs.pop()) == [
        "testB: 1 refs, but the card of small says 2 (tests/conftest.py)",
        "testB: 1 expressions, but the card of small says 3 (tests/conftest.py)",
    ]


def test_image_in_training_and_evaluation_is_found(root: Path) -> None:
    def mixed(refs: list[Any]) -> None:
        refs[1]["split"] = "val"

    text = (root / "small.toml").read_text().split("[splits]")[0]
    (root / "small.toml").write_text(
        text + "[splits]\ntrain = { evaluation = false }\nval = {}\ntestA = {}\ntestB = {}"
    )
    assert examine(root, mixed) == ["val: 1 of 2 images are also training images"]


def test_one_text_for_two_objects_is_found(root: Path) -> None:
    def same(refs: list[Any]) -> None:
        refs[6]["sentences"][0]["sent"] = refs[7]["sentences"][0]["sent"]

    assert examine(root, same) == ["val: 1 expressions refer to several targets in one image: image_id 4"]


def test_empty_and_long_texts_are_found(root: Path) -> None:
    def texts(refs: list[Any]) -> None:
        refs[6]["sentences"][0]["sent"], refs[7]["sentences"][0]["sent"] = " ", "very " * 15 + "long"

    assert examine(root, texts) == [
        "val: 1 expressions have an empty text: sent_id 590",
        "val: 1 expressions have more than 15 words",
    ]


def test_partial_copy_without_a_single_ref_is_examined(root: Path) -> None:
    findings = examine(root, lambda refs: refs.clear())
    assert findings[0] == "train: 0 images, but the card of small says 3 (tests/conftest.py)"
    assert len(findings) == 12


RunCommand = Callable[..., tuple[int, str, str]]


def test_the_command_exits_with_1_only_if_something_is_wrong(root: Path, run_command: RunCommand) -> None:
    arguments = ("data", "doctor", root / "small.toml", "--data-root", root)
    assert run_command(*arguments)[:2] == (0, f"note:  train: {OVERLAPS}\nnote:  testA: {OVERLAPS}\n")
    shutil.rmtree(images(root))
    code, out, _ = run_command(*arguments)
    assert code == 1
    assert out.startswith(f"wrong: 6 of 6 images in {images(root)} are missing: COCO_train2014_000000000001.jpg")


def test_a_faultless_data_set_is_called_so(root: Path, run_command: RunCommand) -> None:
    path = root / "small" / "instances.json"
    instances = json.loads(path.read_text())
    for annotation in instances["annotations"]:
        if isinstance(annotation["segmentation"], list):
            annotation["segmentation"] = annotation["segmentation"][:1]  # no overlaps
    path.write_text(json.dumps(instances))
    arguments = ("data", "doctor", root / "small.toml", "--data-root", root)
    assert run_command(*arguments)[:2] == (0, "Nothing is wrong or odd in small.\n")
    assert run_command(*arguments, "--json")[:2] == (0, "[]\n")


def test_findings_come_as_json(root: Path, run_command: RunCommand) -> None:
    (images(root) / "COCO_train2014_000000000002.jpg").unlink()
    code, out, _ = run_command("data", "doctor", root / "small.toml", "--data-root", root, "--json")
    assert code == 1
    assert [finding["kind"] for finding in json.loads(out)] == ["wrong", "note", "note"]
    assert json.loads(out)[0]["text"].endswith("are missing: COCO_train2014_000000000002.jpg")
