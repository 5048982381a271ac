"""The two endpoints of an explanation: numbers with their protocols and predictions, read from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from risbench.errors import InputError
from risbench.scoring import predictions_file, record
from risbench.scoring import protocol as protocols
from risbench.scoring.predictions import Predictions
from risbench.scoring.protocol import Protocol

_TRIED = 20  # files of a folder, to name a record in it


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One of the two numbers, and the predictions behind it."""

    name: str
    protocol: Protocol
    predictions: Predictions | None  # None: not beside the record
    dataset: str = ""  # "": the file does not say
    split: str = ""
    partial: bool = False
    recorded: float | None = None  # headline metric of a record in percent
    remark: str = ""
    limits: tuple[int, int] = (0, 0)  # numbers of images that the splits of evaluation and training are limited to


def read_endpoints(a: Path, b: Path | None, protocol: str) -> tuple[Endpoint, Endpoint]:
    """Read two files, each a record or predictions, or one predictions file under two protocols.

    `protocol` holds the protocols of the predictions files, separated by commas. Raises InputError when their number
    does not fit the files.
    """
    names = [name.strip() for name in protocol.split(",") if name.strip()]
    for folder in (path for path in (a, b) if path and path.is_dir()):
        raise InputError(f"{folder} is a folder: give a record of a run{_such_as(folder)}, or a predictions file.")
    if b is None:
        return _two_protocols(a, names)
    num_files = sum(not _is_record(path) for path in (a, b))
    if len(names) != num_files:
        raise InputError(_wrong_number(names, [path for path in (a, b) if not _is_record(path)]))
    unused = iter(names)
    first, second = (
        _from_record(path) if _is_record(path) else _from_predictions(path, protocols.load(next(unused)))
        for path in (a, b)
    )
    return first, second


def _such_as(folder: Path) -> str:
    """Name a record in a folder of runs or of records, if there is one."""
    for pattern in ("records/*.json", "*.json", "*/records/*.json", "*/*.json", "*/*/*.json"):
        for path in sorted(folder.glob(pattern))[:_TRIED]:
            try:
                record.read(path)
            except InputError:
                continue
            return f", such as {path}"
    return ""


def _wrong_number(names: Sequence[str], files: Sequence[Path]) -> str:
    """Say that there are too few or too many protocols for the predictions files."""
    if not files:
        return f"--protocol {','.join(names)} has no effect, since each record says its own: leave it out."
    each = f"{files[0]} is" if len(files) == 1 else f"{files[0]} and {files[1]} are each"
    problem = f"--protocol {','.join(names)} names {len(names)}" if names else "--protocol is missing"
    example = ",".join(protocols.names()[: len(files)])
    return f"{each} a predictions file, which needs a protocol, but {problem}: give --protocol {example}, for example."


def _is_record(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _two_protocols(path: Path, names: Sequence[str]) -> tuple[Endpoint, Endpoint]:
    """Read one predictions file under two protocols; the input half stays that of the first protocol."""
    if _is_record(path) or len(names) != 2:
        raise InputError(
            f"{path} alone: give another record, or two protocols for a predictions file, such as"
            " --protocol original,lavt."
        )
    first, second = map(protocols.load, names)
    a = _from_predictions(path, first)
    input_half = first.input
    if {first.input.sentences, second.input.sentences} == {"each", "random"}:
        # the randomly drawn sentences are among all of them
        input_half = input_half.model_copy(update={"sentences": second.input.sentences})
    if input_half == second.input:
        return a, replace(a, name=_name(path, second), protocol=second)
    return a, replace(
        a,
        name=f"{path} under the score half of {second.name}",
        protocol=second.model_copy(update={"input": input_half}),
        remark=(
            f"One file has one input half: what that of {second.name} changes cannot be separated, which needs"
            f" predictions made under {second.name}."
        ),
    )


def _from_record(path: Path) -> Endpoint:
    """Read a record of a run, and the predictions if they are beside it."""
    recorded = record.read(path)
    protocol = protocols.load(recorded.protocol)
    value = recorded.metrics.get(protocol.score.headline)
    if value is None:
        raise InputError(f"The record {path} has no {protocol.score.headline}, the headline of {protocol.name}.")
    file = path.parent.parent / "predictions" / f"{path.stem}.parquet"
    method = " ".join([recorded.method, *recorded.variants, *filter(None, [recorded.control])])
    return Endpoint(
        f"{path}, {method} under {protocol.name}",
        protocol,
        predictions_file.read(file) if file.is_file() else None,
        recorded.dataset,
        recorded.split,
        recorded.partial,
        value,
        limits=(recorded.limit, recorded.training_limit),
    )


def _from_predictions(path: Path, protocol: Protocol) -> Endpoint:
    predictions = predictions_file.read(path)
    header = predictions.header
    dataset, split = (header.dataset, header.split) if header else ("", "")
    limits = (header.limit, header.training_limit) if header else (0, 0)
    return Endpoint(_name(path, protocol), protocol, predictions, dataset, split, limits=limits)


def _name(path: Path, protocol: Protocol) -> str:
    return f"{path} under {protocol.name}"
