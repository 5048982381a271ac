"""`risbench segment`: the picture, the explanation and refused input."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

RunCommand = Callable[..., tuple[int, str, str]]


def test_segment_draws_a_picture(run_command: RunCommand, trained: Path, small_root: Path, tmp_path: Path) -> None:
    image = next((small_root / "images" / "small").glob("*.jpg"))
    output = tmp_path / "out" / "left.png"
    code, out, err = run_command("segment", image, "the left one", "--checkpoint", trained, "--output", output)
    assert code == 0, err
    with Image.open(output) as picture:
        assert picture.width >= 1000
    assert re.search(r"\d % of the image", out)


def test_segment_draws_explanations_or_refuses_a_word(
    run_command: RunCommand, trained: Path, small_root: Path, tmp_path: Path
) -> None:
    image = next((small_root / "images" / "small").glob("*.jpg"))
    code, out, err = run_command("segment", image, "the left one", "--checkpoint", trained, "--explain")
    assert code == 0 and "% of the image" in out, err
    with Image.open(tmp_path / "segment.png") as picture:
        assert picture.width >= 1500  # a third column: H_mask
    for word, message in (
        ("left", "LTS shows H_mask, a map of the whole sentence"),
        ("cup", "its words: the left one."),
    ):
        code, out, err = run_command(
            "segment", image, "the left one", "--checkpoint", trained, "--explain", "--word", word, "--output", "x.png"
        )
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1
        assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("options", [[], ["--explain"]])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_segment_draws_a_strip_of_pixels(
    run_command: RunCommand, trained: Path, size: tuple[int, int], options: list[str], tmp_path: Path
) -> None:
    Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "strip.png")
    code, _, err = run_command("segment", tmp_path / "strip.png", "the left one", "--checkpoint", trained, *options)
    assert code == 0, err
    with Image.open(tmp_path / "segment.png") as picture:
        assert max(picture.size) <= 2500


@pytest.mark.parametrize("output", [".", "picture", "picture.docx"])
def test_segment_checks_its_output_before_any_work(run_command: RunCommand, output: str) -> None:
    code, _, err = run_command("segment", "none.jpg", "a cup", "--checkpoint", "nowhere", "--output", output)
    assert code == 2 and f"--output {output} does not name a picture" in err


@pytest.mark.parametrize("with_picture", [False, True])
def test_segment_writes_the_mask_itself(
    run_command: RunCommand, trained: Path, small_root: Path, tmp_path: Path, with_picture: bool
) -> None:
    image = next((small_root / "images" / "small").glob("*.jpg"))
    options = ["--output", "picture.png"] if with_picture else []
    code, out, err = run_command(
        "segment", image, "the left one", "--checkpoint", trained, "--mask", "masks/left.PNG", *options
    )
    assert code == 0, err
    with Image.open(image) as photo, Image.open(tmp_path / "masks" / "left.PNG") as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", photo.size)
        covered = mask.histogram()
    assert sum(covered) == covered[0] + covered[255]
    assert f"{100 * covered[255] / sum(covered):.1f} % of the image" in out
    assert {path.name for path in tmp_path.iterdir()} == {"masks", *options[1:]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask", "mask.jpg"], "--mask mask.jpg does not name a mask: give a file that ends in .png"),
        (["--mask", "."], "--mask . does not name a mask"),
        (["--mask", "a.png", "--output", "a.png"], "--output and --mask both name a.png"),
        (["--mask", "a.png", "--explain"], "--explain draws into the picture"),
    ],
)
def test_segment_checks_its_mask_before_any_work(run_command: RunCommand, options: list[str], message: str) -> None:
    code, _, err = run_command("segment", "none.jpg", "a cup", "--checkpoint", "nowhere", *options)
    assert code == 2 and message in err and err.count("\n") == 1


def test_segment_proposes_no_option_that_it_lacks(run_command: RunCommand, trained: Path) -> None:
    code, _, err = run_command("segment", "none.jpg", "the left one", "--checkpoint", trained)
    assert code == 2 and "There is no image none.jpg" in err and "--images" not in err
