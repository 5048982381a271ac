"""What a baseline holds, made again by today's code: the masks of its weights, and its training."""

from __future__ import annotations

from pathlib import Path

from risbench import predictions
from risbench import run as running
from risbench.baseline import CHECKPOINT, Baseline, Training, Where
from risbench.job import Job
from risbench.predictions import Predictions


def masks(baseline: Baseline, dataset: str, where: Where, folder: Path, scratch: Path) -> Predictions:
    """The answers of the pinned weights in the folder of a baseline to its split."""
    file = scratch / "masks.parquet"
    running.predict_to(_job(baseline, dataset, where, checkpoint=str(folder / CHECKPOINT)), file)
    return predictions.read(file)


def train(baseline: Baseline, training: Training, seed: int, dataset: str, where: Where, runs: Path) -> Path:
    """Train with a seed, evaluate on the split of the baseline, and return the folder of the run."""
    asked = {"method": training.method, "variants": training.variants, "overrides": training.overrides, "seed": seed}
    run = running.start(_job(baseline, dataset, where, **asked), runs)
    run.evaluate(run.train(resume=False))
    return run.folder


def _job(baseline: Baseline, dataset: str, where: Where, **more: object) -> Job:
    asked = {"dataset": dataset, "splits": [baseline.split], "protocols": [baseline.protocol]}
    return Job.model_validate({**asked, **where._asdict(), **more})
