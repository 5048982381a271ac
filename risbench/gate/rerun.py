"""What a baseline holds, made again by today's code: the masks of its weights, and its training."""

from __future__ import annotations

from pathlib import Path

from risbench.gate.baseline import Baseline, Training, Where
from risbench.runs import run as running
from risbench.runs.job import Job


def masks(baseline: Baseline, training: Training, dataset: str, where: Where, pinned: Path, output: Path) -> None:
    """Write the answers of pinned weights to the split of their baseline."""
    running.predict_to(_job(baseline, dataset, where, method=training.method, checkpoint=str(pinned)), output)


def train(baseline: Baseline, training: Training, seed: int, dataset: str, where: Where, runs: Path) -> Path:
    """Train with a seed, evaluate on the split of the baseline, and return the folder of the run."""
    asked = {"method": training.method, "variants": training.variants, "overrides": training.overrides, "seed": seed}
    run = running.start(_job(baseline, dataset, where, **asked), runs)
    run.evaluate(run.train(resume=False))
    return run.folder


def _job(baseline: Baseline, dataset: str, where: Where, **more: object) -> Job:
    asked = {"dataset": dataset, "splits": [baseline.split], "protocols": [baseline.protocol]}
    return Job.model_validate({**asked, **where._asdict(), **more})
