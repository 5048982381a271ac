"""--resume as a user meets it: places may change beside it, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    """A copy of the small data set with its card, in the folder in which the commands run."""
    return shutil.copytree(small_root, tmp_path / "root")


@pytest.fixture
def begun(run_command: RunCommand, trained: Path, root: Path, tmp_path: Path) -> Path:
    """An evaluation of a checkpoint with relative places, of which nothing but its folder is left."""
    shutil.copytree(trained, tmp_path / "trained")
    places = ["--dataset", "root/small.toml", "--data-root", "root", "--checkpoint", "trained"]
    code, _, err = run_command("run", *places, "--split", "val")
    assert code == 0, err
    folder = next((tmp_path / "runs").iterdir())
    shutil.rmtree(folder / "records")
    return folder


def test_a_run_goes_on_from_another_folder(
    run_command: RunCommand, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = run_command("run", "--resume", begun)
    assert code == 0, err
    assert (begun / "records" / "val-original.json").is_file()


def test_a_run_whose_places_have_all_moved_goes_on_with_the_new_ones(
    run_command: RunCommand, begun: Path, root: Path, tmp_path: Path
) -> None:
    shutil.move(root, tmp_path / "new")
    shutil.move(tmp_path / "trained", tmp_path / "weights")
    assert run_command("run", "--resume", begun)[0] == 2
    places = ["--dataset", "new/small.toml", "--data-root", "new", "--checkpoint", "weights"]
    code, _, err = run_command("run", "--resume", begun, *places)
    assert code == 0, err
    index = json.loads((begun / "records" / "val-original.json").read_bytes())["index"]
    shutil.rmtree(begun / "records")
    assert run_command("run", "--resume", begun)[0] == 0  # the run keeps the new places
    assert json.loads((begun / "records" / "val-original.json").read_bytes())["index"] == index


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--init", "trained"], "was begun without --init: leave that out"),
        (["--dataset", "mini"], "give --dataset only for a card that has moved"),
        (["--checkpoint", "nowhere"], "nowhere is not a checkpoint"),
        (["--data-root", "nowhere"], "nowhere does not exist"),
        (["--images", "nowhere"], "There is no folder"),
    ],
)
def test_a_wrong_place_is_refused(run_command: RunCommand, begun: Path, arguments: list[str], words: str) -> None:
    code, _, err = run_command("run", "--resume", begun, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1
    assert not (begun / "records").exists()


def test_other_weights_in_the_place_of_a_checkpoint_are_refused(
    run_command: RunCommand, begun: Path, tmp_path: Path, short_training: list[str]
) -> None:
    places = ["--dataset", "root/small.toml", "--data-root", "root"]
    code, out, err = run_command("train", "--method", "lts", *places, *short_training, "--seed", "1", "--runs", "more")
    assert code == 0, err
    shutil.rmtree(tmp_path / "trained")
    shutil.copytree(out.strip(), tmp_path / "trained")
    code, _, err = run_command("run", "--resume", begun)
    assert code == 2 and "was begun with the checkpoint" in err and "of --checkpoint, and today there is" in err


def test_the_same_weights_with_another_recipe_are_another_checkpoint(
    run_command: RunCommand, begun: Path, tmp_path: Path
) -> None:
    recipe, facts = tmp_path / "trained" / "recipe.toml", tmp_path / "trained" / "checkpoint.json"
    text = recipe.read_text()
    recipe.write_text(re.sub(r"threshold = \S+", "threshold = 0.9", text))
    assert recipe.read_text() != text
    stated = json.loads(facts.read_bytes())
    stated["files"]["recipe.toml"] = hashlib.sha256(recipe.read_bytes()).hexdigest()
    facts.write_text(json.dumps(stated))
    code, _, err = run_command("run", "--resume", begun)
    assert code == 2 and "was begun with the checkpoint" in err and "and today there is" in err


def test_an_evaluation_goes_on_with_its_images_only(
    run_command: RunCommand, begun: Path, root: Path, tmp_path: Path
) -> None:
    others = shutil.copytree(root / "images" / "small", tmp_path / "others")
    for path in others.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + bytes(1))  # the sizes stay
    code, _, err = run_command("run", "--resume", begun, "--images", others)
    assert code == 2 and "was begun with images of small val" in err


def test_an_evaluation_that_fails_at_once_leaves_no_folder(
    run_command: RunCommand, trained: Path, root: Path, tmp_path: Path
) -> None:
    image = sorted((root / "images" / "small").iterdir())[3]  # the one of val
    image.write_bytes(b"no image")
    places = ["--dataset", "root/small.toml", "--data-root", "root", "--checkpoint", trained]
    code, _, err = run_command("run", *places, "--split", "val")
    assert code == 2 and str(image.name) in err and "Nothing of the run is kept." in err
    assert not list((tmp_path / "runs").iterdir())
