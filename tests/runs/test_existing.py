"""Existing runs: the folder of the same training, and whether the training is finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from risbench import recipe
from risbench.runs import existing
from risbench.runs.job import Job, training_settings

JOB = Job(method="lts", dataset="mini", variants=["filter"], seed=1, splits=["val"], overrides=["train.epochs=3"])


def make_folder(runs: Path, job: Job, epoch: int | None = None) -> Path:
    """Make a folder as a run of the job leaves it after some epochs."""
    folder = runs / f"run{len(list(runs.glob('*')))}"
    folder.mkdir(parents=True)
    job.write(folder)
    (folder / "recipe.toml").write_text(recipe.dumps(training_settings(job)[0]), encoding="utf-8")
    if epoch is not None:
        (folder / "checkpoints" / "last").mkdir(parents=True)
        (folder / "checkpoints" / "last" / "checkpoint.json").write_text(json.dumps({"epoch": epoch}))
    return folder


def find(job: Job, runs: Path) -> Path | None:
    settings, variants = training_settings(job)
    return existing.find_folder(job, variants, settings, runs)


@pytest.mark.parametrize(("epoch", "finished"), [(None, False), (2, False), (3, True)])
def test_a_run_is_trained_when_its_epochs_are_finished(tmp_path: Path, epoch: int | None, finished: bool) -> None:
    assert find(JOB, tmp_path) is None and not existing.is_trained(JOB, tmp_path)
    folder = make_folder(tmp_path, JOB, epoch)
    assert find(JOB, tmp_path) == folder and existing.is_trained(JOB, tmp_path) is finished


def test_other_splits_and_later_protocols_are_the_same_training(tmp_path: Path) -> None:
    make_folder(tmp_path, JOB, 3)
    same: list[dict[str, Any]] = [
        {"splits": ["testA"]},
        {"protocols": ["original", "lavt"]},
        {"variants": ["tiny", "filter"]},
        {"overrides": ["train.epochs=3", "train.workers=3"]},
    ]
    assert all(existing.is_trained(JOB.model_copy(update=change), tmp_path) for change in same)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 0},
        {"variants": []},
        {"protocols": ["lavt"]},
        {"partial": True},
        {"images": "elsewhere"},
        {"overrides": ["train.epochs=2"]},
    ],
)
def test_another_training_is_another_run(tmp_path: Path, change: dict[str, Any]) -> None:
    make_folder(tmp_path, JOB.model_copy(update=change), 3)
    assert find(JOB, tmp_path) is None and not existing.is_trained(JOB, tmp_path)


def test_evaluations_and_damaged_or_removed_runs_are_ignored(tmp_path: Path) -> None:
    make_folder(tmp_path, JOB.model_copy(update={"checkpoint": "somewhere"}), 3)
    gone = make_folder(tmp_path, JOB, 3)
    (gone / "run.toml").write_text((gone / "run.toml").read_text().replace('"lts"', '"gone"'))
    (make_folder(tmp_path, JOB) / "run.toml").write_text("no = ")
    make_folder(tmp_path, JOB, 3).rename(tmp_path / ".run.0a1b2c3d-1-ff.tmp")  # killed while it was made
    assert find(JOB, tmp_path) is None
    damaged = make_folder(tmp_path, JOB, 3) / "checkpoints" / "last" / "checkpoint.json"
    damaged.write_text("{")
    assert find(JOB, tmp_path) is not None and not existing.is_trained(JOB, tmp_path)
