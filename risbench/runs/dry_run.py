"""Dry runs: a run is checked and its network built, as before the first step, and nothing of it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from risbench import files
from risbench.data import loader
from risbench.data.pretrained import describe
from risbench.engine import optim
from risbench.engine.checkpoint import Checkpoint
from risbench.runs.duration import estimate_duration
from risbench.runs.job import Job
from risbench.runs.opening import check_inputs, folder_name, prepare_run
from risbench.runs.run import Run
from risbench.runs.training import build_model, check_checkpoints, training_samples
from risbench.scoring.record import Record

_TIME = "DATE-TIME"  # stands for the time in the name of a folder that is not made


def describe_run(
    job: Job, runs: Path, records: Sequence[Record], resume: Path | None, evaluates: bool
) -> dict[str, Any]:
    """Check a job as `open_run` does, build its network, and return what would be done. Raises InputError."""
    run = prepare_run(job, runs, resume)
    splits = run.splits() if evaluates else []
    folder = resume or runs / folder_name(run, _TIME)
    files.check_writable(folder)
    if resume:
        check_inputs(run)
        check_checkpoints(run)
    description: dict[str, Any] = {
        "method": run.job.method or Checkpoint(Path(run.job.checkpoint)).facts.method,
        "variants": run.variants,
        "seed": None if run.job.checkpoint else run.job.seed,
        "dataset": run.index.card.name,
        "evaluated": {split: len(run.index.split(split)) for split in splits},
        "protocols": run.job.protocols,
        "limit": run.job.limit,
        "training": None,
        "folder": str(folder),
        "resumed": resume is not None,
        "seconds": None,
    }
    if run.job.checkpoint:
        model, _ = Checkpoint(Path(run.job.checkpoint), run.job.method).model()
    elif run.trains:
        description["training"], model = training, _ = _describe_training(run)
        description |= _estimate(run, splits, records, 1 - training["finished_epochs"] / training["epochs"])
    else:
        model, _ = build_model(run, [], [])
        description |= _estimate(run, splits, records, 0.0)
    return {
        **description,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": describe(model.pretrained),
        "pretrained": [one.model_dump(mode="json") for one in model.pretrained],
    }


def _describe_training(run: Run) -> tuple[dict[str, Any], Any]:
    """Return what a training would do, and its network with pretrained weights."""
    rows, train = run.training_rows, run.settings.train
    sources = [(index, index.split("train")) for index in run.training_indices]
    model, tokenizer = build_model(run, sources, rows)
    optim.parameter_groups(model, train)  # refuses train.rates of other names
    batches = loader.training_batches(training_samples(run, sources, rows, tokenizer), train.batch_size)
    last = run.folder / "checkpoints" / "last"
    finished = Checkpoint(last, run.job.method).facts.epoch or 0 if run.resumed and last.exists() else 0
    names = [index.card.name for index in run.training_indices]
    return {
        "datasets": names,
        "expressions": len(rows),
        "epochs": train.epochs,
        "finished_epochs": finished,
        "steps": len(batches) * (train.epochs - finished),
        "batch_size": train.batch_size,
    }, model


def _estimate(run: Run, splits: list[str], records: Sequence[Record], left: float) -> dict[str, Any]:
    """Return the time of the share of the epochs that is left and of the evaluation, if similar runs are recorded."""
    job = run.job.model_copy(update={"splits": splits})
    whole, evaluation = (estimate_duration(job, records, trained) for trained in (False, True))
    if whole is None or evaluation is None:
        return {}
    seconds = evaluation.seconds + left * (whole.seconds - evaluation.seconds)
    return {"seconds": round(seconds), "estimated_from": whole.basis}
