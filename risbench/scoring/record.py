"""The record of one measurement: the numbers, and everything needed to make and to judge them again."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

import risbench
from risbench import errors
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import metrics, statistics
from risbench.scoring import score as scoring
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.protocol import Protocol
from risbench.scoring.score import Score
from risbench.scoring.slices import KINDS, Part

_log = logging.getLogger(__name__)
_REPOSITORY = Path(__file__).parents[2]
_LIBRARIES = ("numpy", "pandas", "pyarrow", "pycocotools", "torch", "torchvision", "timm", "transformers")


class Record(BaseModel):
    """One method on one split under one protocol with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    method: str  # floors and ceilings: reference/<name>
    variants: list[str]
    dataset: str
    split: str
    protocol: str
    seed: int | None
    n: int  # expressions
    metrics: dict[str, FiniteFloat | None]  # percent
    intervals: dict[str, list[float]]  # 95 %, over images: low, high
    slices: dict[str, dict[str, Part]] = {}  # by name and value
    card: str  # sha256 of the card's file
    index: str  # sha256 of the annotation files
    partial: bool = False
    resized: bool = False  # masks of the images' size were brought to the protocol's
    control: str = ""  # what was done to break the method on purpose
    training_data: list[str]
    leaked: float | None = None  # percent of the expressions whose image is in a training set that was at hand
    recipe: dict[str, Any]
    checkpoint: str  # sha256 of the weights
    weights: str  # which pretrained weights were loaded
    commit: str
    versions: dict[str, str]
    device: str
    cost: dict[str, float | int | None]
    created: str  # UTC

    @model_validator(mode="before")
    @classmethod
    def _kinds_are_a_slice(cls, values: Any) -> Any:
        """Read records of the time when kinds of expression were the only slice."""
        if not isinstance(values, dict) or "kinds" not in values:
            return values
        others = {key: value for key, value in values.items() if key != "kinds"}
        return {**others, "slices": {KINDS.name: values["kinds"]} if values["kinds"] else {}}


def of(scored: Score, index: Index, header: Header, protocol: Protocol, **more: Any) -> Record:
    """The record of a score; `more` names what a predictions file does not know, such as seed, weights and cost."""
    summary = scored.summary
    known: dict[str, Any] = {
        **header.model_dump(include={"method", "variants", "recipe", "checkpoint"}),
        **{key: summary[key] for key in ("dataset", "split", "protocol", "n")},
        "metrics": {name: summary[name] for name in metrics.names(protocol.score)},
        "intervals": statistics.intervals(scored.rows, protocol),
        "slices": summary["slices"],
        "card": index.card.file_sha256,
        "index": index.hash,
        "partial": index.partial,
        "resized": summary.get("resized", False),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    unknown: dict[str, Any] = {"seed": None, "training_data": [], "weights": "", "cost": {}}
    return Record(**{**unknown, **environment(), **known, **more})


def keep(folder: Path | None, found: Predictions, index: Index, split: str, protocol: Protocol, **more: Any) -> Record:
    """Score predictions of a run and write rows/ and records/ below its folder; None writes nothing."""
    scored = scoring.score(found, index, split, protocol, boundaries=True)
    assert found.header is not None  # a run writes its headers itself
    made = of(scored, index, found.header, protocol, **more)
    name = f"{split}-{protocol.name}" + ("-permuted" if made.control else "")
    if folder is not None:
        rows = folder / "rows" / f"{name}.parquet"
        rows.parent.mkdir(parents=True, exist_ok=True)
        scored.rows.to_parquet(rows.with_suffix(".tmp"), index=False)
        os.replace(rows.with_suffix(".tmp"), rows)
        write(folder / "records" / f"{name}.json", made)
    return made


def environment() -> dict[str, Any]:
    """Commit, versions and device (a caller that uses another one says so) of this process."""
    versions = {"risbench": risbench.__version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"commit": _commit(), "versions": versions, "device": "cpu"}


def _commit() -> str:
    """The commit of this checkout, "+dirty" when tracked files differ from it; "" for an installed package."""
    if not (_REPOSITORY / ".git").exists():  # git would answer for a repository around the environment
        return ""
    commit = _git("rev-parse", "HEAD")
    return commit + ("+dirty" if commit and _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], cwd=_REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.strip()


def write(path: Path, record: Record) -> None:
    """Write a record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read(path: Path) -> Record:
    """Read a record."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"The record {path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise errors.unknown(f"key in the record {path}:", str(first["loc"][0]), Record.model_fields) from None
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} is not a record: {place + ': ' if place else ''}{first['msg']}.") from None


def find(folders: Sequence[Path]) -> list[Record]:
    """All records in and below these folders by path, a copy of another one left out; a damaged one is an error."""
    paths = sorted({path.resolve() for folder in folders for path in _json_files(folder)})
    return list({record.model_dump_json(): record for record in map(read, filter(_is_meant, paths))}.values())


def _is_meant(path: Path) -> bool:
    """Whether a JSON file is meant as a record: an object with what each of them has, or damaged, for all one knows."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return True
    meant = isinstance(values, dict) and {"method", "protocol", "metrics"} <= values.keys()
    if not meant:
        _log.warning("%s is no record: left out.", path)
    return meant


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one that holds records.")
    return [path for path in folder.rglob("*.json") if "checkpoints" not in path.relative_to(folder).parts]
