"""Today's predictions and trainings of what a baseline has recorded."""

from __future__ import annotations

from pathlib import Path

from risbench.gate.baseline import Baseline, DataLocation, Training
from risbench.runs.evaluation import evaluate, predict_to_file
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train


def predict(baseline: Baseline, training: Training, location: DataLocation, checkpoint: Path, output: Path) -> None:
    """Write the predictions of a checkpoint on the split of a baseline."""
    predict_to_file(_job(baseline, location, method=training.method, checkpoint=str(checkpoint)), output)


def train_and_evaluate(baseline: Baseline, training: Training, seed: int, location: DataLocation, runs: Path) -> Path:
    """Train with a seed, evaluate on the split of the baseline, and return the folder of the run."""
    job = _job(baseline, location, seed=seed, **training.model_dump(include={"method", "variants", "overrides"}))
    run = open_run(job, runs)
    evaluate(run, train(run))
    return run.folder


def _job(baseline: Baseline, location: DataLocation, **settings: object) -> Job:
    evaluated = {"splits": [baseline.split], "protocols": [baseline.protocol]}
    return Job.model_validate({**evaluated, **location._asdict(), **settings})
