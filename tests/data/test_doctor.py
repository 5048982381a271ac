"""The doctor finds what is missing, damaged or odd, and nothing in a sound data set."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from risbench import datasets
from risbench.data import doctor, index
from risbench.data.index import Index

SOUND = [
    "train: 1 refs (2 expressions) have overlapping polygons: their ground truth depends on the protocol",
    "testA: 1 refs (2 expressions) have overlapping polygons: their ground truth depends on the protocol",
]
Change = Callable[[list[Any]], None]


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_root, tmp_path / "root"))


def examine(root: Path, change: Change | None = None, decode: bool = False) -> list[str]:
    """Findings of a changed data set, beside those of the sound one."""
    path = root / "small" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    if change:
        change(refs)
    path.write_bytes(pickle.dumps(refs))
    opened = index.load(datasets.load(str(root / "small.toml")), root, partial=True)
    return [finding for finding in doctor.examine(opened, decode) if finding not in SOUND]


def images(root: Path) -> Path:
    return root / "images" / "small"


def test_sound_data_has_overlapping_polygons_only(small_index: Index) -> None:
    assert doctor.examine(small_index, decode=True) == SOUND


def test_missing_images_are_named(root: Path) -> None:
    (images(root) / "COCO_train2014_000000000002.jpg").unlink()
    (images(root) / "COCO_train2014_000000000005.png").unlink()
    assert examine(root) == [
        f"2 of 6 images in {images(root)} are missing: COCO_train2014_000000000002.jpg, COCO_train2014_000000000005.png"
    ]


@pytest.mark.parametrize("limit", [2300, 1000])  # Pillow warns above its limit and raises above twice of it
def test_images_of_too_many_pixels_or_bits_are_found(root: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("I;16", (64, 48)).save(images(root) / "COCO_train2014_000000000001.jpg", format="PNG")
    assert examine(root)[0].endswith("have more than 8 bits a channel: COCO_train2014_000000000001.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert any(f"have more than {limit} pixels" in finding for finding in examine(root))


def test_truncated_jpeg_is_found_when_images_are_decoded(root: Path) -> None:
    path = images(root) / "COCO_train2014_000000000004.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    assert examine(root) == []
    assert examine(root, decode=True) == [f"1 of 6 images in {images(root)} cannot be read: {path.name}"]


def test_file_that_is_no_image_is_found(root: Path) -> None:
    path = images(root) / "COCO_train2014_000000000004.jpg"
    path.write_text("<html>not found</html>")
    assert examine(root) == [f"1 of 6 images in {images(root)} cannot be read: {path.name}"]


def test_image_of_another_size_is_found(root: Path) -> None:
    path = images(root) / "COCO_train2014_000000000004.jpg"
    Image.new("RGB", (33, 47)).save(path)  # width and height swapped
    assert examine(root) == [f"1 of 6 images in {images(root)} have another size than instances.json says: {path.name}"]


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
