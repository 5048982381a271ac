"""Baselines: what a change of code must not change, or not beyond chance; `risbench check` holds them against today.

NAME.json says which numbers were measured. The folder NAME beside it is laid out as that of a run, and holds what can
be measured again: predictions, rows under every protocol, and pinned weights.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from risbench import errors
from risbench.analysis import sides
from risbench.data import source
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.runs.job import Job
from risbench.scoring import metrics, predictions, protocol, record
from risbench.scoring import score as scoring
from risbench.scoring.predictions import Predictions
from risbench.scoring.record import Record
from risbench.scoring.score import Score

Number = int | float | None

SEEDS = 5  # fewer say too little of how far chance alone moves a training
FLIPPED = 1e-5  # share of pixels that may differ where another machine rounds otherwise
MOVED = 1e-3  # share of peaks
CHECKPOINT = "checkpoints/best"  # as in the folder of a run

_IDS = ("sent_id", "ref_id", "image_id")
_ROWS = (*_IDS, *metrics.Counts._fields, *metrics.Edges._fields, *metrics.Nothing._fields)

_MAY_DIFFER = {"seed", "splits", "protocols", "data_root", "images"}
_ENTRIES = {"predictions", "rows", "checkpoints"}
_SUMS = ("n", "intersection", "union")


class Where(NamedTuple):
    """Where a data set lies."""

    data_root: str = ""
    images: str = ""
    partial: bool = False


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Seed(_Part):
    """What one training came to."""

    seed: int
    metrics: dict[str, Number]


class Training(_Part):
    """A short training, and what it came to with several seeds."""

    method: str
    variants: list[str]
    overrides: list[str]
    seeds: list[Seed] = Field(min_length=SEEDS)  # the weights in the folder are those of the first


class Baseline(_Part):
    """NAME.json."""

    format: Literal[1] = 1
    dataset: str
    split: str
    protocol: str  # under which weights answer and trainings are compared
    index: str  # sha256 of the annotation files
    scores: dict[str, dict[str, Number]]  # of the predictions: sums and metrics by protocol
    flipped: int | None = None  # pixels of all masks that may differ when the pinned weights run again; None: none are
    moved: int = 0  # expressions of which the peak may differ, too
    training: Training | None = None
    commit: str
    versions: dict[str, str]
    device: str
    created: str  # UTC

    @model_validator(mode="after")
    def _seeds_have_what_is_guarded(self) -> Baseline:
        for seed in self.training.seeds if self.training else []:
            for name in guarded(self.protocol):
                if seed.metrics.get(name) is None:
                    raise ValueError(f"the training with seed {seed.seed} has no {name}")
        return self


def read(path: Path) -> Baseline:
    """Read a baseline."""
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        cure = "give NAME.json; risbench check --update --baseline NAME.json RUN ... makes one"
        raise InputError(f"The baseline {path} cannot be read ({error.strerror}): {cure}.") from None
    except ValidationError as error:
        raise InputError(f"{path} is no baseline ({errors.defect(error)}): make it again with --update.") from None


def folder_of(path: Path) -> Path:
    """Where the files of a baseline lie."""
    return path.with_suffix("")


def predictions_file(baseline: Baseline, folder: Path) -> Path:
    """Where the predictions of a baseline lie."""
    return folder / "predictions" / f"{baseline.split}-{baseline.protocol}.parquet"


def predictions_of(baseline: Baseline, folder: Path) -> Predictions:
    """The predictions of a baseline."""
    return predictions.read(predictions_file(baseline, folder))


def rows_file(baseline: Baseline, folder: Path, under: str) -> Path:
    """Where the rows lie that the predictions had under a protocol."""
    return folder / "rows" / f"{baseline.split}-{under}.parquet"


def rows_of(baseline: Baseline, folder: Path, under: str) -> pd.DataFrame:
    """The rows that the predictions had under a protocol, by sent_id."""
    return kept_rows(sides.table(rows_file(baseline, folder, under)))


def guarded(under: str) -> tuple[str, str]:
    """The overall and the mean IoU of a protocol: others follow them, and each more is one more false alarm."""
    return ("oIoU", "mIoU") if protocol.load(under).score.no_target == "refused" else ("cIoU", "gIoU")


def of_seeds(training: Training, metric: str) -> list[float]:
    """What each seed came to in a metric that is guarded."""
    return [float(value) for seed in training.seeds if (value := seed.metrics[metric]) is not None]


def kept_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """What a baseline keeps of rows: identities and counts."""
    return rows[[name for name in _ROWS if name in rows]]


def measured(summary: dict[str, Any]) -> dict[str, Number]:
    """What a baseline keeps of a score."""
    return {name: summary[name] for name in (*_SUMS, *metrics.NAMES, *metrics.RULED) if name in summary}


def score(found: Predictions, index: Index, split: str, name: str, under: str) -> Score:
    """Score predictions under a protocol; boundaries, which take long, under that of the baseline only."""
    return scoring.score(found, index, split, protocol.load(name), boundaries=name == under)


# making one


def make(path: Path, sources: Sequence[Path], dataset: str, split: str, under: str, where: Where) -> Baseline:
    """Write a baseline of the runs of one training with several seeds, or of one predictions file.

    Data set, split and protocol are those that runs and files name; a file that names none needs them.
    """
    _refuse_others_folder(path, sources)
    if len(sources) == 1 and sources[0].is_file():
        return _of_file(path, sources[0], dataset, split, under, where)
    for run in sources:
        if not run.is_dir():
            raise InputError(f"{run} is no folder of a run: give folders such as runs/ID, or one predictions file.")
    if len(sources) < SEEDS:
        raise InputError(
            f"A baseline is made of one predictions file, or of {SEEDS} or more runs of one training with different "
            f"seeds, not of {len(sources)}: risbench run --method NAME --seed 0,1,2,3,4 makes them."
        )
    return _of_runs(path, sources, dataset, split or "val", under, where)


def _refuse_others_folder(path: Path, sources: Sequence[Path]) -> None:
    """Refuse to replace a folder that is not a baseline's, or that holds what the new one is made of."""
    folder = folder_of(path)
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and (not path.exists() or not folder.is_dir() or entries - _ENTRIES):
        raise InputError(f"{folder}, where the files of {path} go, is something else: give the baseline another name.")
    for source_ in sources:
        if source_.is_dir() and source_.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{source_} lies in {folder}, which is to be replaced: give the baseline another name.")


def _of_file(path: Path, file: Path, dataset: str, split: str, under: str, where: Where) -> Baseline:
    found = predictions.read(file)
    dataset, split = dataset or _said(found, "dataset"), split or _said(found, "split")
    if not dataset or not split:
        raise InputError(f"{file} does not say what it predicts: give --dataset and --split.")
    index = source.open_index(dataset, *where)
    scores = _scores(found, index, split, under)
    base = _baseline(index, split, under or next(iter(scores)), scores, **record.environment())
    return _write(path, found, scores, None, base)


def _said(found: Predictions, name: str) -> str:
    return str(getattr(found.header, name)) if found.header else ""


def _of_runs(path: Path, runs: Sequence[Path], dataset: str, split: str, under: str, where: Where) -> Baseline:
    """A baseline of runs that differ by their seeds; the predictions and the weights are those of the first."""
    jobs = [Job.read(run) for run in runs]
    job, chosen = jobs[0], jobs[0].protocols[0]
    if under and under != chosen:
        raise InputError(f"{runs[0]} was trained and chosen under {chosen!r}: leave --protocol out.")
    if job.checkpoint or job.init:
        raise InputError(f"{runs[0]} was not trained from its recipe alone: give runs without --checkpoint and --init.")
    records = [record.read(run / "records" / f"{split}-{chosen}.json") for run in runs]
    _refuse_other_trainings(jobs, records)
    found = predictions.read(runs[0] / "predictions" / f"{split}-{chosen}.parquet")
    index = source.open_index(dataset or job.dataset, *where)
    training = Training(
        method=job.method,
        variants=job.variants,
        overrides=job.overrides,
        seeds=[Seed(seed=one.seed, metrics=kept.metrics) for one, kept in zip(jobs, records, strict=True)],
    )
    pixels = int((found.height.astype(np.int64) * found.width).sum())
    allowed = {"flipped": int(FLIPPED * pixels), "moved": int(MOVED * len(found))}
    scores = _scores(found, index, split, chosen)
    made = {name: getattr(records[0], name) for name in ("commit", "versions", "device")}
    base = _baseline(index, split, chosen, scores, **allowed, training=training, **made)
    return _write(path, found, scores, runs[0] / CHECKPOINT, base)


def _refuse_other_trainings(jobs: Sequence[Job], records: Sequence[Record]) -> None:
    """Refuse runs that differ by more than their seeds, or repeat one."""
    kept = [{**job.model_dump(exclude=_MAY_DIFFER), "protocols": job.protocols[0]} for job in jobs]
    measured_ = [(made.recipe, made.index, made.partial) for made in records]
    apart = [name for name in kept[0] if any(other[name] != kept[0][name] for other in kept)]
    if apart or any(other != measured_[0] for other in measured_):
        what = ", ".join(apart) or "their recipes or annotations"
        raise InputError(f"The runs differ in {what}: give runs of one training with different seeds.")
    seeds = [job.seed for job in jobs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"The runs have the seeds {', '.join(map(str, seeds))}: give each seed once.")


def _scores(found: Predictions, index: Index, split: str, under: str) -> dict[str, Score]:
    """Scores under every protocol that can score the predictions; of one, or without any the first, with boundaries."""
    scores: dict[str, Score] = {}
    refused = None
    for chosen in scoring.suitable(index, split):
        try:
            first = under or next(iter(scores), chosen.name)
            scores[chosen.name] = score(found, index, split, chosen.name, first)
        except InputError as error:
            refused = refused or error
            if chosen.name == under:
                raise
    if not scores and refused:
        raise refused
    return scores


def _baseline(index: Index, split: str, under: str, scores: Mapping[str, Score], **more: Any) -> Baseline:
    facts: dict[str, Any] = {"dataset": index.card.name, "split": split, "protocol": under, "index": index.hash}
    kept = {name: measured(one.summary) for name, one in scores.items()}
    return Baseline(**facts, scores=kept, **more, created=datetime.now(UTC).isoformat(timespec="seconds"))


def _write(
    path: Path, found: Predictions, scores: Mapping[str, Score], pinned: Path | None, base: Baseline
) -> Baseline:
    """Write the folder and NAME.json; whatever fails, the old ones stay."""
    folder, stamp = folder_of(path), uuid.uuid4().hex
    new, old = (folder.with_name(f".{folder.name}-{what}-{stamp}") for what in ("new", "old"))
    text = path.with_name(f".{path.name}-{stamp}")
    try:
        predictions.write(predictions_file(base, new), found)
        (new / "rows").mkdir()
        for name, one in scores.items():
            kept_rows(one.rows).to_parquet(rows_file(base, new, name), index=False)
        if pinned:
            shutil.copytree(pinned, new / CHECKPOINT, ignore=shutil.ignore_patterns("state.pt"))
        text.write_text(json.dumps(base.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        os.replace(text, path)
    except BaseException:
        if old.exists():
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(old, folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        text.unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)
    return base
