"""The rows of one run: read from a run's folder or a file of rows, or scored from a predictions file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench.data import rle, source
from risbench.errors import InputError
from risbench.scoring import metrics, parquet, predictions_file, record
from risbench.scoring import protocol as protocols
from risbench.scoring.metrics import BoundaryCounts, MaskCounts, NoTargetFlags
from risbench.scoring.predictions import refuse_expressions
from risbench.scoring.record import Record
from risbench.scoring.score import score_predictions

_COLUMNS = ("sent_id", "image_id", *MaskCounts._fields)
_ROUNDING = 1e-9  # of a metric in percent
_OPTIONAL_COLUMNS = ("ref_id", *BoundaryCounts._fields, *NoTargetFlags._fields, metrics.CROWD)


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
    if path.suffix.lower() == ".json":
        raise InputError(f"{path} is no predictions file: give the folder of the run, or its rows, not its record.")
    has_rows = "intersection" in parquet.column_names(path)
    return _from_rows(path, options) if has_rows else _from_predictions(path, options)


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
    _check_flags(run)
    _check_record(run)
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


def _check_flags(run: RunRows) -> None:
    """Refuse rows without the columns that the protocol's rules for no-target and crowds need."""
    if run.protocol not in protocols.names():
        return
    score_half = protocols.load(run.protocol).score
    needed: tuple[str, ...] = NoTargetFlags._fields if score_half.no_target != "refused" else ()
    needed += (metrics.CROWD,) if score_half.ground_truth == "crowd" else ()
    if not all(name in run.rows and run.rows[name].isin([0, 1]).all() for name in needed):
        names = ", ".join(needed)
        raise InputError(
            f"{run.path} does not have 0 or 1 as {names}, which {run.protocol!r} needs: score again under it."
        )


def _check_record(run: RunRows) -> None:
    """Refuse rows that are not those of the record beside them."""
    if run.record is None:
        return
    cure = "copy both from one run again"
    if len(run.rows) != run.record.n:
        raise InputError(f"{run.path} has {len(run.rows):,} rows, its record {run.record.n:,}: {cure}.")
    if run.protocol in protocols.names():
        score_half = protocols.load(run.protocol).score
        value = metrics.compute(metrics.Sums.from_rows(run.rows, score_half))[score_half.headline]
        recorded = run.record.metrics.get(score_half.headline)
        if value is not None and recorded is not None and abs(value - recorded) > _ROUNDING:
            raise InputError(f"{run.path} gives {score_half.headline} {value}, its record says {recorded}: {cure}.")


def _check_options(run: RunRows, options: RunOptions) -> None:
    """Refuse a run whose split or protocol is not the one in the options."""
    for what, actual, wanted in (("split", run.split, options.split), ("protocol", run.protocol, options.protocol)):
        if wanted and actual != wanted:
            raise InputError(f"{run.path} is of {what} {actual!r}, not {wanted!r}: give --{what} {actual}.")


def read_rows(path: Path) -> pd.DataFrame:
    """Read the rows of a run, ordered by sent_id; raises InputError when they are damaged or impossible."""
    rows: pd.DataFrame = parquet.read(path).replace_schema_metadata(None).to_pandas()
    needed = {*_COLUMNS, *(BoundaryCounts._fields if {*BoundaryCounts._fields} & {*rows} else ())}
    missing = sorted(needed - {*rows})
    present = [name for name in (*_COLUMNS, *_OPTIONAL_COLUMNS) if name in rows]
    wrong = missing + [name for name in present if not _holds_integers(rows[name])]
    if wrong or rows.empty:
        raise InputError(f"{path} has no whole numbers as {', '.join(wrong or _COLUMNS)}: give rows of a run.")
    _check_rows(path, rows)
    ordered: pd.DataFrame = rows.sort_values("sent_id", ignore_index=True)
    return ordered


def _holds_integers(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_integer_dtype(column) and (column.empty or int(column.max()) < 2**63)


def _check_rows(path: Path, rows: pd.DataFrame) -> None:
    """Refuse expressions that occur twice, and counts that no mask can have."""
    ids, times = np.unique(rows["sent_id"], return_counts=True)
    refuse_expressions(f"Twice in {path}", ids[times > 1], "Keep one row for each.")
    impossible = rows["sent_id"].to_numpy()[~_possible(rows)]
    refuse_expressions(f"Impossible counts in {path}", impossible, "Give rows that risbench wrote.")


def _possible(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether a predicted mask and a ground truth can have the counts of each row."""
    names = [name for name in rows if name in (*_COLUMNS, *_OPTIONAL_COLUMNS)]
    counts = {str(name): rows[name].to_numpy(np.int64) for name in names}
    predicted, true, shared = (counts[name] for name in ("predicted_area", "true_area", "intersection"))
    peak_hit = counts["peak_hit"]
    possible = (shared >= 0) & (shared <= np.minimum(predicted, true)) & (np.maximum(predicted, true) <= rle.MAX_PIXELS)
    possible &= (counts["union"] == predicted + true - shared) & np.isin(peak_hit, (-1, 0, 1))
    possible &= (peak_hit < 1) | (true > 0)
    if metrics.has_boundaries(rows):  # a boundary is a part of its mask
        shared_boundary, union = counts["boundary_intersection"], counts["boundary_union"]
        possible &= (shared_boundary >= 0) & (shared_boundary <= union) & (union <= counts["union"])
        possible &= shared_boundary <= shared
    for name in NoTargetFlags._fields:
        possible &= np.isin(counts.get(name, np.int64(0)), (0, 1))
    return np.asarray(possible & ((counts.get("no_target", np.int64(0)) == 0) | (true == 0)))


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
        partial=score.summary.get("partial", False),
        resized=score.summary.get("resized", False),
        checkpoint=header.checkpoint if header else "",
    )
