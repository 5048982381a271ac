"""Baselines: numbers that a change of code must not change, or not beyond chance.

NAME.json holds the numbers. The folder NAME beside it has the layout of a run's folder, and holds what can be measured
again: predictions, rows under every protocol, and pinned weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from risbench import errors, files, methods
from risbench.analysis.run_rows import read_rows
from risbench.data import rle
from risbench.errors import InputError
from risbench.scoring import metrics, parquet, predictions_file, protocol
from risbench.scoring.bounds import Percent
from risbench.scoring.predictions import Predictions

Number = int | float | None

MIN_SEEDS = 5  # fewer do not show how far chance alone moves a training
CHECKPOINT = "checkpoints/best"  # as in the folder of a run

_IDS = ("sent_id", "ref_id", "image_id")
_COLUMNS = (
    *_IDS,
    *metrics.MaskCounts._fields,
    *metrics.BoundaryCounts._fields,
    *metrics.NoTargetFlags._fields,
    metrics.CROWD,
)
_SUMS = ("n", "intersection", "union")


class DataLocation(NamedTuple):
    """The arguments of `source.open_index`; "" leaves the data set to the baseline or its sources."""

    dataset: str = ""
    data_root: str = ""
    images: str = ""
    partial: bool = False


def _check_score(score: dict[str, Number]) -> dict[str, Number]:
    """Refuse sums and metrics that no predictions can have."""
    n, intersection, union = (score.get(name) for name in _SUMS)
    if not (isinstance(n, int) and isinstance(intersection, int) and isinstance(union, int)):
        raise ValueError(f"{', '.join(_SUMS)} are not all whole numbers")
    if not 1 <= n <= parquet.MAX_ROWS or not 0 <= intersection <= union <= n * rle.MAX_PIXELS:
        raise ValueError(f"{', '.join(_SUMS)} {(n, intersection, union)!s:.80} are of no predictions")
    _METRICS.validate_python({name: value for name, value in score.items() if name not in _SUMS})
    return score


Metrics = dict[str, Percent | None]
Score = Annotated[dict[str, Number], AfterValidator(_check_score)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
_METRICS: TypeAdapter[Metrics] = TypeAdapter(Metrics)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SeedResult(_Part):
    """The metrics of one training."""

    seed: Count
    metrics: Metrics


class Training(_Part):
    """A short training, and its metrics with several seeds."""

    method: str
    variants: list[str]
    overrides: list[str]
    seeds: list[SeedResult] = Field(min_length=MIN_SEEDS)  # the weights in the folder are those of the first


class Baseline(_Part):
    """NAME.json."""

    format: Literal[1] = 1
    dataset: str
    split: str
    protocol: str  # of the pinned weights and the trainings
    index: str  # sha256 of the annotation files
    scores: dict[str, Score]  # of the predictions: sums and metrics by protocol
    flipped: Count | None = None  # pixels of all masks that may differ when the weights run again; None: no weights
    moved: Count = 0  # expressions whose peak may differ
    training: Training | None = None
    commit: str
    versions: dict[str, str]
    device: str
    created: str  # UTC

    @model_validator(mode="after")
    def _seeds_have_guarded_metrics(self) -> Baseline:
        for seed in self.training.seeds if self.training else []:
            for name in guarded_metrics(self.protocol):
                if seed.metrics.get(name) is None:
                    raise ValueError(f"the training with seed {seed.seed} has no {name}")
        return self


def read(path: Path) -> Baseline:
    """Read a baseline; raises InputError when the file is missing or damaged."""
    try:
        baseline = Baseline.model_validate(files.parse_json(files.read_bytes(path)))
    except InputError:
        raise
    except OSError as error:
        cure = "give NAME.json; risbench check --update --baseline NAME.json RUN ... makes one"
        raise InputError(f"The baseline {path} cannot be read ({error.strerror}): {cure}.") from None
    except ValueError as error:
        reason = errors.defect(error) if isinstance(error, ValidationError) else f"Invalid JSON: {error}"
        raise InputError(f"{path} is no baseline ({reason}): make it again with --update.") from None
    if baseline.training is None:
        return baseline
    method = methods.from_file(baseline.training.method, path, cure="RISBENCH_METHODS=PATH")
    return baseline.model_copy(update={"training": baseline.training.model_copy(update={"method": method})})


def folder_of(path: Path) -> Path:
    """Return the folder of a baseline's files."""
    return path.with_suffix("")


def predictions_path(baseline: Baseline, folder: Path) -> Path:
    """Return the path of a baseline's predictions."""
    return folder / "predictions" / f"{baseline.split}-{baseline.protocol}.parquet"


def stored_predictions(baseline: Baseline, folder: Path) -> Predictions:
    """Read the predictions of a baseline."""
    return predictions_file.read(predictions_path(baseline, folder))


def rows_path(baseline: Baseline, folder: Path, protocol_name: str) -> Path:
    """Return the path of a baseline's rows under a protocol."""
    return folder / "rows" / f"{baseline.split}-{protocol_name}.parquet"


def stored_rows(baseline: Baseline, folder: Path, protocol_name: str) -> pd.DataFrame:
    """Read the rows of a baseline under a protocol, ordered by sent_id."""
    return kept_columns(read_rows(rows_path(baseline, folder, protocol_name)))


def guarded_metrics(protocol_name: str) -> tuple[str, str]:
    """Return the overall and the mean IoU of a protocol; more metrics would only add false alarms."""
    return ("oIoU", "mIoU") if protocol.load(protocol_name).score.no_target == "refused" else ("cIoU", "gIoU")


def seed_values(training: Training, metric: str) -> list[float]:
    """Return a guarded metric of every seed."""
    return [float(value) for seed in training.seeds if (value := seed.metrics[metric]) is not None]


def kept_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of rows that a baseline keeps: ids and counts."""
    return rows[[name for name in _COLUMNS if name in rows]]


def kept_numbers(summary: dict[str, Any]) -> dict[str, Number]:
    """Return the numbers of a score that a baseline keeps."""
    return {name: summary[name] for name in (*_SUMS, *metrics.NAMES, *metrics.NO_TARGET_METRICS) if name in summary}
