"""Baselines: what a change of code must not change, or not beyond chance; `risbench check` holds them against today.

NAME.json says which numbers were measured. The folder NAME beside it is laid out as that of a run, and holds what can
be measured again: predictions, rows under every protocol, and pinned weights.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from risbench import errors, metrics, predictions, protocol, record, scoring
from risbench.data import source
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.predictions import Predictions
from risbench.scoring import Score

Number = int | float | None

SEEDS = 5  # fewer say too little of how far chance alone moves a training
FLIPPED = 1e-5  # share of pixels that may differ where another machine rounds otherwise
CHECKPOINT = "checkpoints/best"  # as in the folder of a run

_IDS = ("sent_id", "ref_id", "image_id")
_ROWS = (*_IDS, *metrics.Counts._fields, *metrics.Edges._fields, *metrics.Nothing._fields)

_MAY_DIFFER = ("seed", "splits", "protocols", "data_root", "images")
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
    seconds: float  # of the first, validation left out


class Baseline(_Part):
    """NAME.json."""

    format: Literal[1] = 1
    dataset: str
    split: str
    protocol: str  # under which weights answer and trainings are compared
    index: str  # sha256 of the annotation files
    scores: dict[str, dict[str, Number]]  # of the predictions: sums and metrics by protocol
    flipped: int | None = None  # pixels of all masks that may differ when the pinned weights run again; None: none are
    training: Training | None = None
    commit: str
    versions: dict[str, str]
    device: str
    created: str  # UTC


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
    """The rows that the predictions had under a protocol."""
    path = rows_file(baseline, folder, under)
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # Arrow's errors are such
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read ({reason}): restore it, or make the baseline again.") from None
    missing = [name for name in (*_IDS, *metrics.Counts._fields) if name not in rows]
    if missing:
        raise InputError(f"{path} holds no rows ({missing[0]} is missing): restore it, or make the baseline again.")
    return kept_rows(rows)


def guarded(under: str) -> tuple[str, str]:
    """The overall and the mean IoU of a protocol: others follow them, and each more is one more false alarm."""
    return ("oIoU", "mIoU") if protocol.load(under).score.no_target == "refused" else ("cIoU", "gIoU")


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


def make(path: Path, sources: Sequence[Path], dataset: str, split: str, where: Where) -> Baseline:
    """Write a baseline of the runs of one training with several seeds, or of one predictions file.

    Data set and split are those that runs and files name; a file that names none needs them.
    """
    runs = [folder for folder in sources if folder.is_dir()]
    if not runs and len(sources) == 1:
        return _of_file(path, sources[0], dataset, split, where)
    if len(runs) < len(sources) or len(runs) < SEEDS:
        raise InputError(
            f"A baseline is made of one predictions file, or of {SEEDS} or more runs of one training with different "
            f"seeds, not of {len(runs)}: risbench run --method NAME --seed 0,1,2,3,4 makes them."
        )
    return _of_runs(path, runs, split or "val", where)


def _of_file(path: Path, file: Path, dataset: str, split: str, where: Where) -> Baseline:
    found = predictions.read(file)
    dataset, split = dataset or _said(found, "dataset"), split or _said(found, "split")
    if not dataset or not split:
        raise InputError(f"{file} does not say what it predicts: give --dataset and --split.")
    index, under = source.open_index(dataset, *where), protocol.names()[0]
    scores = _scores(found, index, split, under)
    return _write(path, found, scores, None, _baseline(index, split, under, scores))


def _said(found: Predictions, name: str) -> str:
    return str(getattr(found.header, name)) if found.header else ""


def _of_runs(path: Path, runs: Sequence[Path], split: str, where: Where) -> Baseline:
    """A baseline of runs that differ by their seeds; the predictions and the weights are those of the first."""
    jobs = [_job(run) for run in runs]
    job, under = jobs[0], jobs[0]["protocols"][0]
    apart = [key for key in job if key not in _MAY_DIFFER and any(other.get(key) != job[key] for other in jobs)]
    if apart:
        raise InputError(f"The runs differ in {', '.join(apart)}: give runs of one training with different seeds.")
    seeds = [one["seed"] for one in jobs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"The runs have the seeds {', '.join(map(str, seeds))}: give each seed once.")
    if job["checkpoint"] or job["init"]:
        raise InputError(f"{runs[0]} was not trained from its recipe alone: give runs without --checkpoint and --init.")
    records = [record.read(run / "records" / f"{split}-{under}.json") for run in runs]
    found = predictions.read(runs[0] / "predictions" / f"{split}-{under}.parquet")
    index = source.open_index(job["dataset"], *where)
    training = Training(
        method=job["method"],
        variants=job["variants"],
        overrides=job["overrides"],
        seeds=[Seed(seed=seed, metrics=one.metrics) for seed, one in zip(seeds, records, strict=True)],
        seconds=records[0].cost["training_seconds"] or 0.0,
    )
    pixels = int((found.height.astype(np.int64) * found.width).sum())
    scores = _scores(found, index, split, under)
    base = _baseline(index, split, under, scores, flipped=int(FLIPPED * pixels), training=training)
    return _write(path, found, scores, runs[0] / CHECKPOINT, base)


def _job(run: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run} is not the folder of a run ({error}): give folders such as runs/ID.") from None


def _scores(found: Predictions, index: Index, split: str, under: str) -> dict[str, Score]:
    """Scores under every protocol that can score the predictions."""
    scores = {}
    for chosen in scoring.suitable(index, split):
        try:
            scores[chosen.name] = score(found, index, split, chosen.name, under)
        except InputError:
            if chosen.name == under:
                raise
    return scores


def _baseline(index: Index, split: str, under: str, scores: Mapping[str, Score], **more: Any) -> Baseline:
    return Baseline(
        dataset=index.card.name,
        split=split,
        protocol=under,
        index=index.hash,
        scores={name: measured(one.summary) for name, one in scores.items()},
        **more,
        **record.environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _write(
    path: Path, found: Predictions, scores: Mapping[str, Score], pinned: Path | None, base: Baseline
) -> Baseline:
    """Write the folder, then NAME.json; the old folder goes when the new one is whole."""
    folder = folder_of(path)
    new = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        predictions.write(predictions_file(base, new), found)
        (new / "rows").mkdir()
        for name, one in scores.items():
            kept_rows(one.rows).to_parquet(rows_file(base, new, name), index=False)
        if pinned:
            shutil.copytree(pinned, new / CHECKPOINT, ignore=shutil.ignore_patterns("state.pt"))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(base.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return base
