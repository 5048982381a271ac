"""The record of one measurement: the metrics, and everything needed to reproduce and to judge them."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

import risbench
from risbench import errors, files
from risbench.data.index import Index
from risbench.data.pretrained import Pretrained, upgraded
from risbench.errors import InputError
from risbench.scoring import metrics, parquet, statistics
from risbench.scoring.bounds import Ends, Percent
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.protocol import Protocol
from risbench.scoring.score import Score, score_predictions
from risbench.scoring.slices import KINDS, SliceMetrics

_log = logging.getLogger(__name__)
_REPOSITORY = Path(__file__).parents[2]
_LIBRARIES = ("numpy", "pandas", "pyarrow", "pycocotools", "torch", "torchvision", "timm", "transformers")


class Record(BaseModel):
    """One method on one split under one protocol with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    method: str  # floors and ceilings: reference/<name>
    variants: list[str]
    dataset: str
    split: str
    protocol: str
    seed: Annotated[int, Field(ge=0)] | None
    n: int = Field(ge=1)  # expressions
    metrics: dict[str, Percent | None]
    intervals: dict[str, Ends]  # by metric: low and high end at 95 %, over images
    slices: dict[str, dict[str, SliceMetrics]] = {}  # by name and value
    card: str  # sha256 of the card's file
    index: str  # sha256 of the annotation files
    partial: bool = False
    limit: int = Field(default=0, ge=0)  # images of the split that are evaluated, the first ones; 0: all
    training_limit: int = Field(default=0, ge=0)  # images of each split in training; 0: all
    resized: bool = False  # masks of the image's size were resized to the protocol's size
    control: str = ""  # how the method was broken on purpose
    training_data: list[str]
    leaked: Percent | None = None  # of the expressions whose image was trained on; None: not known
    recipe: dict[str, Any]
    checkpoint: str  # sha256 of the weights
    pretrained: tuple[Pretrained, ...] = Field(default=(), strict=False)  # what training began with; (): from scratch
    code: str = ""  # sha256 of the method's code that predicted; records from before 0.3 do not have it
    training_code: str = ""  # sha256 of the method's code that trained the weights
    commit: str
    versions: dict[str, str]
    device: str
    cost: dict[str, Annotated[float | int, Field(ge=0, allow_inf_nan=False)] | None]
    created: str  # UTC

    @property
    def is_trained(self) -> bool:
        """Whether weights were trained; otherwise (train.epochs=0) they were evaluated as they are, zero-shot."""
        train = self.recipe.get("train")
        return not (isinstance(train, dict) and train.get("epochs") == 0)

    @model_validator(mode="before")
    @classmethod
    def _prose_becomes_data(cls, values: Any) -> Any:
        """Read old records, which describe the pretrained weights in words."""
        return upgraded(values)

    @model_validator(mode="before")
    @classmethod
    def _kinds_are_a_slice(cls, values: Any) -> Any:
        """Read old records, whose only slice was the kind of expression."""
        if not isinstance(values, dict) or "kinds" not in values:
            return values
        rest = {key: value for key, value in values.items() if key != "kinds"}
        return {**rest, "slices": {KINDS.name: values["kinds"]} if values["kinds"] else {}}


def make(score: Score, index: Index, header: Header, protocol: Protocol, **details: Any) -> Record:
    """Return the record of a score; `details` are fields that predictions files lack: seed, pretrained, cost, ..."""
    summary = score.summary
    known: dict[str, Any] = {
        **header.model_dump(include={"method", "variants", "recipe", "checkpoint", "code", "training_limit"}),
        **{key: summary[key] for key in ("dataset", "split", "protocol", "n")},
        "metrics": {name: summary[name] for name in metrics.names(protocol.score)},
        "intervals": statistics.intervals(score.rows, protocol),
        "slices": summary["slices"],
        "card": index.card.file_sha256,
        "index": index.hash,
        "partial": summary.get("partial", False),
        "limit": summary.get("limit", 0),
        "resized": summary.get("resized", False),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    unknown: dict[str, Any] = {"seed": None, "training_data": [], "cost": {}}
    return Record(**{**unknown, **environment(), **known, **details})


def score_and_write(
    folder: Path | None, predictions: Predictions, index: Index, split: str, protocol: Protocol, **details: Any
) -> Record:
    """Score predictions of a run, and write rows/ and records/ below its folder; without a folder nothing is written.

    `details` are those of `make`.
    """
    score = score_predictions(predictions, index, split, protocol, boundaries=True)
    assert predictions.header is not None  # a run always writes one
    record = make(score, index, predictions.header, protocol, **details)
    name = f"{split}-{protocol.name}" + ("-permuted" if record.control else "")
    if folder is not None:
        parquet.write(folder / "rows" / f"{name}.parquet", pa.Table.from_pandas(score.rows, preserve_index=False))
        write(folder / "records" / f"{name}.json", record)
    return record


def environment() -> dict[str, Any]:
    """Return commit and versions of this process, and the device cpu, which a caller on another device replaces."""
    versions = {"risbench": risbench.__version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"commit": _commit(), "versions": versions, "device": "cpu"}


def _commit() -> str:
    """Return the commit of this checkout, "+dirty" if tracked files differ from it; "" for an installed package."""
    if not (_REPOSITORY / ".git").exists():  # git would find a repository around the environment
        return ""
    commit = _git("rev-parse", "HEAD")
    return commit + ("+dirty" if commit and _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=_REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def write(path: Path, record: Record) -> None:
    """Write a record as JSON, whole or not at all."""
    files.write_text(path, json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=1) + "\n")


def read(path: Path) -> Record:
    """Read a record. Raises InputError with the wrong key or value."""
    try:
        read_record = Record.model_validate(files.parse_json(files.read_bytes(path)))
        read_record.model_dump_json()  # fails for half a pair of surrogates, which no document can hold
        return read_record
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"The record {path} cannot be read: {error.strerror}. Give a record of a run.") from None
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise errors.unknown(f"key in the record {path}:", str(first["loc"][0]), Record.model_fields) from None
        reason = errors.defect(error)
    except PydanticSerializationError:
        reason = "half a pair of surrogates stands in its text"
    except ValueError as error:
        reason = f"Invalid JSON ({error})"
    raise InputError(f"{path} is not a record: {reason}. Copy it again, or move it away.")


def default_folders(runs: Path) -> list[Path]:
    """Return results/records and the folder of runs, where they exist."""
    return [folder for folder in (Path("results/records"), runs) if folder.is_dir()]


def find(folders: Sequence[Path]) -> list[Record]:
    """Return all records in and below folders, by path, without copies. Raises InputError for a damaged record."""
    paths = sorted({path.resolve() for folder in folders for path in _json_files(folder)})
    return list({record.model_dump_json(): record for record in map(read, filter(_is_record, paths))}.values())


def _is_record(path: Path) -> bool:
    """Whether a JSON file is a record: it has the main keys of one, or is damaged, so that `read` can say why."""
    try:
        values = json.loads(path.read_bytes()) if path.stat().st_size <= files.TEXT_LIMIT else None
    except (OSError, ValueError, RecursionError):
        return True
    is_record = isinstance(values, dict) and {"method", "protocol", "metrics"} <= values.keys()
    if not is_record:
        _log.warning("%s is not a record: left out.", path)
    return is_record


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one that holds records.")
    paths = (path for path in folder.rglob("*.json") if path.is_file())
    return [path for path in paths if "checkpoints" not in path.relative_to(folder).parts]
