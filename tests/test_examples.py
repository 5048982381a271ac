"""The example that draws masks: what it draws, and what it refuses."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from risbench.data import rle
from risbench.data.index import Index
from risbench.scoring import predictions_file, protocol, references
from risbench.scoring.predictions import Predictions

ROOT = Path(__file__).parents[1]
SENT_IDS = ("--sent-id", "490", "--sent-id", "480")  # two objects of one image


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("draw_masks", ROOT / "examples" / "draw_masks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_masks"] = module  # where its dataclass looks for its own types
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(small_index: Index, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("predictions")
    for method in ("oracle-64", "whole-image"):
        predictions_file.write(folder / f"{method}.parquet", references.predict(method, small_index, "testA"))
    return [str(folder / "oracle-64.parquet"), str(folder / "whole-image.parquet")]


@pytest.fixture
def where(small_card: Path, small_root: Path) -> list[str]:
    return ["--dataset", str(small_card), "--data-root", str(small_root)]


def test_a_row_holds_the_masks_and_ious_of_its_expression(
    example: Any, files: list[str], where: list[str], small_index: Index
) -> None:
    options = example.parser().parse_args([*files, *SENT_IDS, *where, "--output", "unused.png"])
    first, second = example.read_rows(options)
    assert (first.expression, second.expression) == ("red steps", "small square")
    for row, area in ((first, 1336), (second, 225)):
        assert row.image.shape == (64, 64, 3)
        oracle, whole = row.masks
        assert row.truth.sum() == area and (oracle == row.truth).all() and whole.all()
        assert row.ious == pytest.approx([1, area / 64**2])


def test_the_picture_has_the_panels_with_their_titles(example: Any, files: list[str], where: list[str]) -> None:
    options = example.parser().parse_args([*files, *SENT_IDS, *where, "--output", "unused.png"])
    figure = example.draw(example.read_rows(options), ["oracle", "whole"])
    titles = [axis.get_xlabel() for axis in figure.axes]
    assert titles[:4] == ["image", "ground truth", "oracle: IoU 100.0", "whole: IoU 32.6"]
    assert [part.get_suptitle() for part in figure.subfigs] == ["“red steps”", "“small square”"]


@pytest.mark.parametrize(("options", "mode"), [([], "RGB"), (["--palette"], "P")])
def test_a_png_is_written(
    example: Any, files: list[str], where: list[str], tmp_path: Path, options: list[str], mode: str
) -> None:
    output = tmp_path / "new" / "masks.png"
    assert example.main([*files, *SENT_IDS, *where, *options, "--output", str(output)]) == 0
    with Image.open(output) as picture:
        assert (picture.format, picture.mode) == ("PNG", mode)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert {(255, 255, 255), (255, 0, 0)} <= colours if mode == "RGB" else 10 < len(colours) <= 256


def test_a_mask_of_the_size_of_a_network_is_drawn_at_that_of_the_image(
    example: Any, where: list[str], small_index: Index, tmp_path: Path
) -> None:
    lavt = protocol.load("lavt")
    file = tmp_path / "whole.parquet"
    count = len(small_index.split("testA"))
    ids, mask = small_index.split("testA").sent_id.tolist(), rle.encode(np.ones(lavt.score.size((64, 64))))
    predictions_file.write(file, Predictions.build(None, ids, [(480, 480)] * count, [mask] * count, [None] * count))
    arguments = [str(file), *where, "--split", "testA", "--sent-id", "490", "--protocol", "lavt", "--output", "unused"]
    (row,) = example.read_rows(example.parser().parse_args(arguments))
    assert row.masks[0].shape == row.truth.shape == (64, 64) and row.masks[0].all()


def test_an_expression_without_a_target_has_a_row_too(
    example: Any, sets_index: Index, sets_root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "oracle.parquet"
    predictions_file.write(file, references.predict("oracle-64", sets_index, "val"))
    no_target = int(sets_index.split("val").sent_id[sets_index.split("val").sent.index("the dog")])
    where = ["--dataset", str(sets_root / "sets.toml"), "--data-root", str(sets_root), "--sent-id", str(no_target)]
    assert example.main([str(file), *where, "--protocol", "grefcoco", "--output", str(tmp_path / "masks.png")]) == 0
    assert (tmp_path / "masks.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sent-id", "5"], "No expression of testA that the protocol scores has sent_id 5. The nearest are "),
        (["--sent-id", "580", "--split", "val"], "oracle-64.parquet: The predictions were made with split 'testA'"),
        ([*SENT_IDS, "--names", "one"], "--names has 1 names for 2 files."),
        ([*SENT_IDS, "--output", "masks"], "--output masks does not name a picture."),
        ([*SENT_IDS, "--output", "/proc/masks.png"], "The picture /proc/masks.png cannot be written"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    example: Any,
    files: list[str],
    where: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert example.main([*files, *where, "--output", str(tmp_path / "masks.png"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_file_of_another_data_set_or_of_none_is_refused(
    example: Any,
    files: list[str],
    where: list[str],
    small_index: Index,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = references.predict("oracle-64", small_index, "testA")
    assert made.header
    other, nameless = tmp_path / "other.parquet", tmp_path / "nameless.parquet"
    predictions_file.write(other, replace(made, header=made.header.model_copy(update={"dataset": "mini"})))
    predictions_file.write(nameless, replace(made, header=None))
    output = ["--output", str(tmp_path / "masks.png"), *SENT_IDS]
    assert example.main([files[0], str(other), *where, *output]) == 2
    assert "other.parquet: The predictions were made with dataset 'mini'" in capsys.readouterr().err
    assert example.main([str(nameless), *where, *output]) == 2
    assert "nameless.parquet does not name its data set and split. Give --dataset and --split." in (
        capsys.readouterr().err
    )


def test_the_command_of_the_readme_names_files_that_exist(example: Any) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    command = re.search(r"python examples/draw_masks\.py (.+)", text)
    assert command
    options = example.parser().parse_args(shlex.split(command[1]))
    assert all((ROOT / path).is_file() for path in (*options.files, options.output))
    assert len(options.names.split(",")) == len(options.files)
