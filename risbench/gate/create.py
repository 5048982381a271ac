"""Making a baseline from one predictions file, or from the runs of one training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from risbench import files
from risbench.data import source
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.gate import baseline as baselines
from risbench.gate.baseline import MIN_SEEDS, Baseline, DataLocation, SeedResult, Training
from risbench.runs.job import Job
from risbench.scoring import parquet, predictions_file, record
from risbench.scoring.predictions import Predictions
from risbench.scoring.record import Record
from risbench.scoring.score import Score, score_predictions, usable_protocols

_FLIPPED_SHARE = 1e-5  # of all pixels: so many may differ, since other machines round otherwise
_MOVED_SHARE = 1e-3  # of all peaks
_MAY_DIFFER = {"seed", "splits", "protocols", "data_root", "images", "method_path"}  # settings of runs of one training
_ENTRIES = {"predictions", "rows", "checkpoints"}  # of a baseline's folder


def create_baseline(
    path: Path, sources: Sequence[Path], location: DataLocation, split: str = "", protocol_name: str = ""
) -> Baseline:
    """Write a baseline of one predictions file, or of the runs of one training with several seeds.

    Data set, split and protocol are by default those that runs and files name. Raises InputError when a file names
    none, when the runs differ by more than their seeds, and when the folder of the baseline holds other files.
    """
    _refuse_other_folder(path, sources)
    if len(sources) == 1 and sources[0].is_file():
        return _from_predictions(path, sources[0], location, split, protocol_name)
    for run in sources:
        if not run.is_dir():
            raise InputError(f"{run} is no folder of a run: give folders such as runs/ID, or one predictions file.")
    if len(sources) < MIN_SEEDS:
        raise InputError(
            f"A baseline is made of one predictions file, or of {MIN_SEEDS} or more runs of one training with different"
            f" seeds, not of {len(sources)}: risbench run --method NAME --seed 0,1,2,3,4 makes them."
        )
    return _from_runs(path, sources, location, split or "val", protocol_name)


def _refuse_other_folder(path: Path, sources: Sequence[Path]) -> None:
    """Refuse to replace a folder that is not a baseline's, or that contains a source of the new baseline."""
    folder = baselines.folder_of(path)
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and (not path.exists() or not folder.is_dir() or entries - _ENTRIES):
        raise InputError(f"{folder}, where the files of {path} go, is something else: give the baseline another name.")
    for run in sources:
        if run.is_dir() and run.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{run} lies in {folder}, which is to be replaced: give the baseline another name.")


def _from_predictions(path: Path, file: Path, location: DataLocation, split: str, protocol_name: str) -> Baseline:
    predictions = predictions_file.read(file)
    header = predictions.header
    dataset = location.dataset or (header.dataset if header else "")
    split = split or (header.split if header else "")
    if not dataset or not split:
        raise InputError(f"{file} does not name its data set and split: give --dataset and --split.")
    index = source.open_index(*location._replace(dataset=dataset))
    scores = _score_under_all(predictions, index, split, protocol_name)
    baseline = _baseline(index, split, protocol_name or next(iter(scores)), scores, **record.environment())
    _write(path, baseline, predictions, scores)
    return baseline


def _from_runs(path: Path, runs: Sequence[Path], location: DataLocation, split: str, protocol_name: str) -> Baseline:
    """Make a baseline of runs that differ by their seeds; predictions and weights are those of the first run."""
    jobs = [Job.read(run) for run in runs]
    job, validation_protocol = jobs[0], jobs[0].protocols[0]
    if protocol_name and protocol_name != validation_protocol:
        raise InputError(f"{runs[0]} was trained and chosen under {validation_protocol!r}: leave --protocol out.")
    if job.checkpoint or job.init:
        raise InputError(f"{runs[0]} was not trained from its recipe alone: give runs without --checkpoint and --init.")
    records = [record.read(run / "records" / f"{split}-{validation_protocol}.json") for run in runs]
    _refuse_other_trainings(jobs, records)
    predictions = predictions_file.read(runs[0] / "predictions" / f"{split}-{validation_protocol}.parquet")
    index = source.open_index(*location._replace(dataset=location.dataset or job.dataset))
    scores = _score_under_all(predictions, index, split, validation_protocol)
    environment = {name: getattr(records[0], name) for name in ("commit", "versions", "device")}
    tolerances = _tolerances(predictions)
    training = _training(jobs, records)
    baseline = _baseline(index, split, validation_protocol, scores, **tolerances, training=training, **environment)
    _write(path, baseline, predictions, scores, runs[0] / baselines.CHECKPOINT)
    return baseline


def _refuse_other_trainings(jobs: Sequence[Job], records: Sequence[Record]) -> None:
    """Refuse runs that differ by more than their seeds, or repeat a seed."""
    settings = [{**job.model_dump(exclude=_MAY_DIFFER), "protocols": job.protocols[0]} for job in jobs]
    recorded = [(result.recipe, result.index, result.partial) for result in records]
    differing = [name for name in settings[0] if any(other[name] != settings[0][name] for other in settings)]
    if differing or any(other != recorded[0] for other in recorded):
        what = ", ".join(differing) or "their recipes or annotations"
        raise InputError(f"The runs differ in {what}: give runs of one training with different seeds.")
    seeds = [job.seed for job in jobs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"The runs have the seeds {', '.join(map(str, seeds))}: give each seed once.")


def _training(jobs: Sequence[Job], records: Sequence[Record]) -> Training:
    results = [SeedResult(seed=job.seed, metrics=result.metrics) for job, result in zip(jobs, records, strict=True)]
    return Training(method=jobs[0].method, variants=jobs[0].variants, overrides=jobs[0].overrides, seeds=results)


def _tolerances(predictions: Predictions) -> dict[str, int]:
    """Return how many pixels and peaks may differ when the weights run again."""
    pixels = int((predictions.height.astype(np.int64) * predictions.width).sum())
    return {"flipped": int(_FLIPPED_SHARE * pixels), "moved": int(_MOVED_SHARE * len(predictions))}


def _score_under_all(predictions: Predictions, index: Index, split: str, protocol_name: str) -> dict[str, Score]:
    """Score under every protocol that can score the predictions.

    Boundaries, which take long, are scored under one protocol only: `protocol_name`, or the first if it is "".
    """
    if predictions.header and (predictions.header.limit or predictions.header.training_limit):
        raise InputError("The predictions come from a run with --limit, and a baseline guards whole splits: run again.")
    scores: dict[str, Score] = {}
    refusal = None
    for protocol in usable_protocols(index, split):
        boundaries = protocol.name == (protocol_name or next(iter(scores), protocol.name))
        try:
            scores[protocol.name] = score_predictions(predictions, index, split, protocol, boundaries=boundaries)
        except InputError as error:
            refusal = refusal or error
            if protocol.name == protocol_name:
                raise
    if not scores and refusal:
        raise refusal
    return scores


def _baseline(index: Index, split: str, protocol_name: str, scores: Mapping[str, Score], **facts: Any) -> Baseline:
    numbers = {name: baselines.kept_numbers(score.summary) for name, score in scores.items()}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    names: dict[str, Any] = {"dataset": index.card.name, "split": split, "protocol": protocol_name, "index": index.hash}
    return Baseline(**names, scores=numbers, **facts, created=created)


def _write(
    path: Path,
    baseline: Baseline,
    predictions: Predictions,
    scores: Mapping[str, Score],
    checkpoint: Path | None = None,
) -> None:
    """Write the folder and NAME.json; the old ones stay if anything fails."""
    folder = baselines.folder_of(path)
    with files.scratch(folder) as scratch:
        new, old = scratch / "new", scratch / "old"
        predictions_file.write(baselines.predictions_path(baseline, new), predictions)
        for name, score in scores.items():
            rows = baselines.kept_columns(score.rows)
            parquet.write(baselines.rows_path(baseline, new, name), pa.Table.from_pandas(rows, preserve_index=False))
        if checkpoint:
            shutil.copytree(checkpoint, new / baselines.CHECKPOINT, ignore=shutil.ignore_patterns("state.pt"))
        files.sync(new)
        try:
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)
            files.write_text(path, json.dumps(baseline.model_dump(mode="json"), indent=1) + "\n")
        except BaseException:
            if old.exists():
                files.remove(folder)
                os.rename(old, folder)
            raise
