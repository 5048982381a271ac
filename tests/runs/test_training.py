"""What a training shows and stores on its way: its progress, and the masks of its validation."""

from __future__ import annotations

import io
import itertools
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from risbench import progress
from risbench.engine.train import Trainer
from risbench.runs import training
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.scoring.prediction_parts import PredictionParts


@pytest.fixture
def job(small_root: Path, small_card: Path, short_training: list[str]) -> Job:
    return Job(method="lts", dataset=str(small_card), overrides=short_training, data_root=str(small_root))


def test_the_progress_is_that_of_the_whole_run(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of two steps; whoever looks at the clock finds it a minute later. A resumed run goes on counting."""
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=file, force_terminal=False, width=200))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=itertools.count(0.0, 60.0).__next__))
    step, fails_at = Trainer._step, [3]

    def failing(self: Trainer, *arguments: Any) -> Any:
        fails_at[0] -= 1
        if fails_at[0] == 0:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", failing)
    run = open_run(job.model_copy(update={"overrides": [*job.overrides, "train.epochs=2"]}), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        training.train(run)
    training.train(open_run(Job.read(run.folder), tmp_path, resume=run.folder))
    lines = [line for line in file.getvalue().splitlines() if line.endswith(" left") and line.startswith("epoch")]
    counted = [re.fullmatch(r"(epoch ./2, step . of 4), \S+/s, \d:\d\d:\d\d left", line) for line in lines]
    expected = [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert [found and found[1] for found in counted] == [f"epoch {epoch}/2, step {n} of 4" for epoch, n in expected]


def test_validation_stores_its_masks_once_at_the_end(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = []

    class Recorded(PredictionParts):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seconds.append(self._seconds)

    monkeypatch.setattr("risbench.engine.predict.PredictionParts", Recorded)
    run = open_run(job, tmp_path)
    training.train(run)
    assert seconds == [math.inf]
    assert [path.name for path in (run.folder / "predictions").iterdir()] == ["validation.parquet"]
