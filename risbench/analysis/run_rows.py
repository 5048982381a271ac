"""The rows of one run: read from a run's folder or a file of rows, or scored from a predictions file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from risbench.data import source
from risbench.errors import InputError
from risbench.scoring import predictions_file, record
from risbench.scoring import protocol as protocols
from risbench.scoring.metrics import MaskCounts, NoTargetFlags
from risbench.scoring.predictions import refuse_expressions
from risbench.scoring.record import Record
from risbench.scoring.score import score_predictions

_COLUMNS = ("sent_id", "image_id", *MaskCounts._fields)


@dataclass(frozen=True)
class RunOptions:
    """What is to be read, and where the data set lies; "" leaves it to the files."""

    dataset: str = ""
    split: str = ""
    protocol: str = ""
    data_root: str = ""
    partial: bool = False


@dataclass(frozen=True)
class RunRows:
    """The rows of one run by sent_id, and what is known about the run; "" is unknown."""

    path: Path
    rows: pd.DataFrame
    dataset: str
    split: str
    protocol: str
    method: str = ""
    record: Record | None = None
    partial: bool = False
    resized: bool = False
    checkpoint: str = ""  # sha256 of the weights


def open_run_rows(path: Path, options: RunOptions) -> RunRows:
    """Open the folder of a run, a file of rows, or a predictions file.

    Raises InputError when the file is damaged, or contradicts the options.
    """
    if path.is_dir():
        file = path / "rows" / f"{options.split}-{options.protocol}.parquet"
        if not file.is_file():
            raise InputError(
                f"{path} has no rows of {options.split} under {options.protocol!r}, but {_join(_rows_in(path))}: "
                "give another --split or --protocol, or evaluate it (risbench run --checkpoint)."
            )
        return _from_rows(file, options)
    if path.suffix == ".json":
        raise InputError(f"{path} is no predictions file: give the folder of the run, or its rows, not its record.")
    return _from_rows(path, options) if _has_rows(path) else _from_predictions(path, options)


def common_split(folders: Iterable[Path], protocol: str) -> str:
    """Return a split that has rows under the protocol in every folder: val, or else the first by name."""
    rows_in = {folder: _rows_in(folder) for folder in folders}
    common = set.intersection(*({split for split, name in rows if name == protocol} for rows in rows_in.values()))
    if not common:
        listing = "; ".join(f"{folder} has {_join(rows)}" for folder, rows in rows_in.items())
        raise InputError(f"No split has rows under {protocol!r} in all runs: {listing}. Give --protocol or other runs.")
    return min(common, key=lambda split: (split != "val", split))


def _rows_in(folder: Path) -> list[tuple[str, str]]:
    """Return split and protocol of every file of rows in the folder of a run."""
    stems = sorted(path.stem for path in folder.glob("rows/*.parquet"))
    return [(split, protocol) for split, _, protocol in (stem.partition("-") for stem in stems)]


def _join(splits_and_protocols: Sequence[tuple[str, str]]) -> str:
    return ", ".join("-".join(names) for names in splits_and_protocols) or "no rows"


def _has_rows(path: Path) -> bool:
    try:
        return "intersection" in pq.read_schema(path).names
    except (pa.ArrowException, OSError, ValueError):
        return False  # predictions_file.read says what is wrong with it


def _from_rows(path: Path, options: RunOptions) -> RunRows:
    """Read rows; split and protocol are those of the record, or of the file's name, or of the options."""
    rows = read_rows(path)
    record_file = path.parent.parent / "records" / f"{path.stem}.json"
    split, _, protocol = path.stem.removesuffix("-permuted").partition("-")
    if record_file.is_file():
        run = _with_record(path, rows, record.read(record_file))
    elif protocol in protocols.names():
        run = RunRows(path, rows, "", split, protocol)
    elif options.protocol:
        run = RunRows(path, rows, "", options.split, protocols.load(options.protocol).name)
    else:
        raise InputError(f"The protocol of {path} is not known: give --protocol.")
    _check_no_target_columns(run)
    _check_options(run, options)
    return run


def _with_record(path: Path, rows: pd.DataFrame, record: Record) -> RunRows:
    return RunRows(
        path,
        rows,
        record.dataset,
        record.split,
        record.protocol,
        method=" ".join([record.method, *record.variants, *filter(None, [record.control])]),
        record=record,
        partial=record.partial,
        resized=record.resized,
        checkpoint=record.checkpoint,
    )


def _check_no_target_columns(run: RunRows) -> None:
    """Refuse rows without the columns that the protocol's no-target rule needs."""
    if run.protocol not in protocols.names() or protocols.load(run.protocol).score.no_target != "scored":
        return
    if not all(name in run.rows and run.rows[name].isin([0, 1]).all() for name in NoTargetFlags._fields):
        names = ", ".join(NoTargetFlags._fields)
        raise InputError(
            f"{run.path} does not have 0 or 1 as {names}, which {run.protocol!r} needs: score again under it."
        )


def _check_options(run: RunRows, options: RunOptions) -> None:
    """Refuse a run whose split or protocol is not the one in the options."""
    for what, actual, wanted in (("split", run.split, options.split), ("protocol", run.protocol, options.protocol)):
        if wanted and actual != wanted:
            raise InputError(f"{run.path} is of {what} {actual!r}, not {wanted!r}: give --{what} {actual}.")


def read_rows(path: Path) -> pd.DataFrame:
    """Read the rows of a run, ordered by sent_id; raises InputError when they are damaged."""
    try:
        with pq.ParquetFile(path) as file:
            content = file.read()
        unique = [name for name in content.column_names if content.column_names.count(name) == 1]
        rows = content.select(unique).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}): give another file.") from None
    wrong = [name for name in _COLUMNS if name not in rows or not pd.api.types.is_integer_dtype(rows[name])]
    if wrong or rows.empty:
        raise InputError(f"{path} has no whole numbers as {', '.join(wrong or _COLUMNS)}: give rows of a run.")
    _check_rows(path, rows)
    ordered: pd.DataFrame = rows.sort_values("sent_id", ignore_index=True)
    return ordered


def _check_rows(path: Path, rows: pd.DataFrame) -> None:
    """Refuse expressions that occur twice, and counts that no mask can have."""
    ids, times = np.unique(rows["sent_id"], return_counts=True)
    refuse_expressions(f"Twice in {path}", ids[times > 1], "Keep one row for each.")
    intersection, smaller_area = rows["intersection"], rows[["predicted_area", "true_area"]].min(axis=1)
    possible = (intersection >= 0) & (intersection <= smaller_area) & rows["peak_hit"].isin([-1, 0, 1])
    possible &= rows["union"] == rows["predicted_area"] + rows["true_area"] - intersection
    impossible = rows["sent_id"].to_numpy()[~possible]
    refuse_expressions(f"Impossible counts in {path}", impossible, "Give rows that risbench wrote.")


def _from_predictions(path: Path, options: RunOptions) -> RunRows:
    """Score a predictions file."""
    predictions = predictions_file.read(path)
    header = predictions.header
    dataset = options.dataset or (header.dataset if header else "")
    split = options.split or (header.split if header else "")
    if not dataset or not split:
        raise InputError(f"{path} does not name its data set and split: give --dataset and --split.")
    index = source.open_index(dataset, options.data_root, partial=options.partial)
    protocol = protocols.load(options.protocol or protocols.names()[0])
    score = score_predictions(predictions, index, split, protocol)
    return RunRows(
        path,
        score.rows.sort_values("sent_id", ignore_index=True),
        index.card.name,
        split,
        protocol.name,
        method=" ".join([header.method, *header.variants]) if header else "",
        partial=index.partial,
        resized=score.summary.get("resized", False),
        checkpoint=header.checkpoint if header else "",
    )
