"""Making and replacing a baseline: what an update shows, and what it never destroys."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from risbench.gate import baseline as baselines
from risbench.runs.job import Job

RunCommand = Callable[..., tuple[int, str, str]]


def test_an_update_shows_what_it_changes(
    run_check: RunCommand,
    predictions_baseline: Path,
    small_card: Path,
    shift_ground_truth: Callable[[tuple[int, int]], None],
) -> None:
    again = ("--update", "--baseline", predictions_baseline, "--dataset", small_card, "--format", "json")
    before = predictions_baseline.read_text()
    assert json.loads(run_check(*again)[1])["tables"][0]["rows"] == []
    assert {**json.loads(predictions_baseline.read_text()), "created": ""} == {**json.loads(before), "created": ""}
    shift_ground_truth((1, 0))
    rows = json.loads(run_check(*again)[1])["tables"][0]["rows"]
    was = json.loads(before)["scores"]["original"]["oIoU"]
    (oiou,) = [row for row in rows if row["number"] == "oIoU, original"]
    assert oiou["was"] == was and oiou["is"] == baselines.read(predictions_baseline).scores["original"]["oIoU"] != was
    assert run_check("--baseline", predictions_baseline, "--dataset", small_card)[0] == 0


def test_an_update_trains_every_seed_again(run_check: RunCommand, runs_baseline: Path, small_card: Path) -> None:
    before = runs_baseline.read_text()
    code, text, err = run_check("--update", "--baseline", runs_baseline, "--dataset", small_card, "--format", "json")
    assert code == 0 and json.loads(text)["tables"][0]["rows"] == [], text + err
    ours, theirs = json.loads(before)["training"], json.loads(runs_baseline.read_text())["training"]
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_an_update_leaves_the_old_baseline_whatever_fails(
    run_check: RunCommand,
    predictions_baseline: Path,
    oracle_file: Path,
    small_card: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def whole() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}

    def failing(source: Path, target: Path) -> None:
        if Path(target) == predictions_baseline.resolve():
            raise OSError(28, "No space left on device")
        replaced(source, target)

    before, replaced = whole(), os.replace
    monkeypatch.setattr(os, "replace", failing)
    assert run_check("--update", "--baseline", predictions_baseline, oracle_file, "--dataset", small_card)[0] == 2
    assert whole() == before


def test_an_update_replaces_nothing_but_a_baseline(run_check: RunCommand, oracle_file: Path, small_card: Path) -> None:
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("years")
    for _ in range(2):
        code, _, err = run_check("--update", "--baseline", "precious.json", oracle_file, "--dataset", small_card)
        assert code == 2 and "precious, where the files of precious.json go, is something else" in err
        assert Path("precious/thesis.txt").read_text() == "years"
        Path("precious.json").write_text("{}")


def test_runs_that_are_not_one_training_are_refused(
    run_check: RunCommand, five_runs: list[Path], tmp_path: Path
) -> None:
    new = ("--update", "--baseline", "new.json")
    code, _, err = run_check(*new, *five_runs[:4], five_runs[0])
    assert code == 2 and "have the seeds 0, 1, 2, 3, 0: give each seed once" in err
    other = tmp_path / "other"
    shutil.copytree(five_runs[4], other)
    Job.read(other).model_copy(update={"overrides": ["train.epochs=2"]}).write(other)
    code, _, err = run_check(*new, *five_runs[:4], other)
    assert code == 2 and "The runs differ in overrides" in err
    assert not Path("new.json").exists() and not Path("new").exists()
