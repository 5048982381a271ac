"""--dry-run: what a command would do, checked and printed, and nothing that is started or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

RunCommand = Callable[..., tuple[int, str, str]]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_described_and_nothing_is_written(
    run_command: RunCommand, data_options: list[str], short_training: list[str], tmp_path: Path
) -> None:
    options = ["--method", "lts", *data_options, "--seed", "0,1", "--split", "val,testA", *short_training]
    code, out, err = run_command("run", *options, "--dry-run", "--json")
    assert code == 0, err
    first, second = json.loads(out)
    assert first["training"] == {
        "datasets": ["small"],
        "expressions": 10,
        "epochs": 1,
        "finished_epochs": 0,
        "steps": 2,
        "batch_size": 4,
    }
    assert (first["evaluated"], first["protocols"], first["parameters"] > 1000) == (
        {"val": 4, "testA": 3},
        ["original"],
        True,
    )
    assert (first["seed"], second["seed"], first["variants"]) == (0, 1, ["tiny"])
    assert first["folder"] == "runs/lts-tiny-small-seed0-DATE-TIME"
    code, out, err = run_command("run", *options, "--dry-run")
    assert "steps       2 of 4 expressions" in out and "Nothing was run or written." in out
    assert not list(tmp_path.iterdir())


def test_train_is_described_without_an_evaluation(
    run_command: RunCommand, data_options: list[str], short_training: list[str], tmp_path: Path
) -> None:
    code, out, err = run_command(
        "train", "--method", "lts", *data_options, "--limit", "2", "--dry-run", *short_training
    )
    assert code == 0 and "evaluation" not in out and "the first 2 images of every split" in out, err
    assert not list(tmp_path.iterdir())


def test_references_are_described(run_command: RunCommand, data_options: list[str], tmp_path: Path) -> None:
    code, out, err = run_command("run", "--method", "reference/whole-image", *data_options, "--dry-run")
    assert code == 0 and "reference/whole-image" in out and "val (4 expressions)" in out, err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_and_a_resumed_run_are_described_and_stay_as_they_are(
    run_command: RunCommand, data_options: list[str], trained: Path
) -> None:
    run = trained.parents[1]
    before = files(run)
    code, out, err = run_command("run", "--checkpoint", trained, *data_options, "--dry-run")
    assert code == 0 and "training" not in out and "network" in out, err
    code, out, err = run_command("run", "--resume", run, "--dry-run", "--json")
    (resumed,) = json.loads(out)
    assert code == 0 and resumed["resumed"] and resumed["training"]["finished_epochs"] == 1, err
    assert resumed["training"]["steps"] == 0 and files(run) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.batch_size=64"], "There are 10 training expressions in an epoch"),
        (["model.glove=nowhere.txt"], "There is no GloVe file at nowhere.txt"),
        (["--runs", "file"], "cannot be written: Not a directory"),
        (["--images", "nowhere"], "There is no folder nowhere"),
        (["--split", "test"], "Unknown split of small 'test'"),
    ],
)
def test_what_a_run_would_refuse_is_refused(
    run_command: RunCommand,
    data_options: list[str],
    short_training: list[str],
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "file").touch()
    arguments = ["--method", "lts", *data_options, *short_training, *options]
    code, out, err = run_command("run", *arguments, "--dry-run")
    assert (code, out) == (2, "") and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_plan_is_described_line_by_line(
    run_command: RunCommand, data_options: list[str], short_training: list[str], trained: Path, tmp_path: Path
) -> None:
    runs = trained.parents[2]
    before = files(runs)
    line = " ".join(["risbench run --method lts", *data_options, *short_training, "--runs", str(runs)])
    lines = [f"{line} --split val", f"{line} --split val --seed 1", f"{line} --split testA --seed 1"]
    (tmp_path / "plan.txt").write_text("\n".join(lines))
    code, out, err = run_command("run", "--plan", "plan.txt", "--dry-run", "--json")
    assert code == 0, err
    assert [entry["status"] for entry in json.loads(out)] == [
        f"continues in {trained.parents[1]}",
        "starts",
        "continues what plan.txt, line 2 starts",
    ]
    code, out, err = run_command("run", "--plan", "plan.txt", "--dry-run")
    assert code == 0 and "Runs to do: 3, 3 of unknown duration." in out, err
    assert files(runs) == before and [path.name for path in tmp_path.iterdir()] == ["plan.txt"]

    (tmp_path / "plan.txt").write_text(f"{line} --dry-run")
    assert "A line of a plan takes no --dry-run" in run_command("run", "--plan", "plan.txt")[2]
