"""Baselines on the small data set, and planted faults."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from risbench.data import rle
from risbench.data.index import Index
from risbench.runs.evaluation import evaluate
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train
from risbench.scoring import predictions_file, references
from risbench.scoring.protocol import ScoreHalf

RunCommand = Callable[..., tuple[int, str, str]]
SHORT = ["train.batch_size=4", "train.per_image=1", "train.epochs=1", "image.size=64"]


@pytest.fixture
def run_check(run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, small_root: Path) -> RunCommand:
    """Run `risbench check` on the small data set."""
    monkeypatch.setenv("RISBENCH_DATA", str(small_root))
    return partial(run_command, "check")


@pytest.fixture
def oracle_file(small_index: Index, tmp_path: Path) -> Path:
    """Predictions of an oracle with their data set and split."""
    path = tmp_path / "oracle.parquet"
    predictions_file.write(path, references.predict("oracle-8", small_index, "val"))
    return path


@pytest.fixture
def predictions_baseline(run_check: RunCommand, oracle_file: Path, small_card: Path) -> Path:
    """A baseline of predictions alone."""
    code, _, err = run_check("--update", "--baseline", "kept.json", oracle_file, "--dataset", small_card)
    assert (code, err) == (0, "")
    return Path("kept.json")


@pytest.fixture(scope="session")
def five_runs(small_root: Path, small_card: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One training with five seeds."""
    folder, folders = tmp_path_factory.mktemp("runs"), []
    for seed in range(5):
        job = Job(method="lts", dataset=str(small_card), data_root=str(small_root), splits=["val"], overrides=SHORT)
        run = open_run(job.model_copy(update={"seed": seed}), folder)
        evaluate(run, train(run))
        folders.append(run.folder)
    return folders


@pytest.fixture
def runs_baseline(run_check: RunCommand, five_runs: list[Path], small_card: Path) -> Path:
    """A baseline of five seeds."""
    code, _, err = run_check("--update", "--baseline", "trained.json", *five_runs, "--dataset", small_card)
    assert (code, err) == (0, "")
    return Path("trained.json")


@pytest.fixture
def shift_ground_truth(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], None]:
    """Move the ground truth by some pixels down and right."""
    original = ScoreHalf.ground_truth_mask

    def shift(step: tuple[int, int]) -> None:
        def shifted(self: ScoreHalf, index: Index, ann_id: int, image_size: rle.Size) -> bytes:
            mask = rle.decode(original(self, index, ann_id, image_size), self.size(image_size))
            return rle.encode(np.roll(mask, step, axis=(0, 1)))

        monkeypatch.setattr(ScoreHalf, "ground_truth_mask", shifted)

    return shift


@pytest.fixture
def swap_splits(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Exchange two splits of every data set."""
    split: Callable[..., Any] = Index.split

    def swap(first: str, second: str) -> None:
        other = {first: second, second: first}
        monkeypatch.setattr(Index, "split", lambda self, name: split(self, other.get(name, name)))

    return swap
