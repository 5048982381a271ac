"""The sides of a comparison: which runs an argument names, and whether they answer the same expressions.

An argument names one run (its folder, its file of rows, or a predictions file, which is scored) or, joined by commas,
several of one method that differ by their seeds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from risbench import datasets
from risbench.data import source
from risbench.errors import InputError
from risbench.scoring import predictions, record
from risbench.scoring import protocol as protocols
from risbench.scoring import score as scoring
from risbench.scoring.metrics import Counts, Nothing
from risbench.scoring.predictions import refuse
from risbench.scoring.record import Record
from risbench.tables import measured

_COLUMNS = ("sent_id", "image_id", *Counts._fields)
_SAME = ("dataset", "split", "protocol")


@dataclass(frozen=True)
class Asked:
    """What the options say of the arguments; "" leaves it to the files."""

    dataset: str = ""
    split: str = ""
    protocol: str = ""
    data_root: str = ""
    partial: bool = False


@dataclass(frozen=True)
class Run:
    """The rows of one run by sent_id, and what is known of it: "" where nothing says so."""

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


@dataclass(frozen=True)
class Side:
    """One run, or several that differ by nothing but their seeds."""

    name: str  # A is the baseline
    runs: tuple[Run, ...]

    def about(self) -> str:
        """What it is, for a note."""
        seeds = [str(run.record.seed) for run in self.runs if run.record and run.record.seed is not None]
        known = [self.runs[0].method, f"seed {', '.join(seeds)}" if seeds else ""]
        paths = ", ".join(str(run.path) for run in self.runs)
        return f"{self.name}: {'; '.join([*filter(None, known), paths])}."


def open_sides(arguments: Sequence[str], asked: Asked) -> list[Side]:
    """Open the sides of a comparison; refuse what does not answer the same expressions."""
    if asked.protocol:
        protocols.load(asked.protocol)
    groups = [[Path(text)] if os.path.exists(text) else _paths(text) for text in arguments]
    empty = [text for text, paths in zip(arguments, groups, strict=True) if not paths]
    if empty:
        raise InputError(f"{empty[0]!r} names no run: give a folder such as runs/ID, or a file.")
    folders = [path for paths in groups for path in paths if path.is_dir()]
    if folders:
        asked = replace(asked, protocol=asked.protocol or protocols.names()[0])
        asked = replace(asked, split=asked.split or _common_split(folders, asked.protocol))
    if len(groups) > len(ascii_uppercase):
        raise InputError(f"{len(groups)} sides are more than the alphabet has letters for: compare fewer at once.")
    sides = [
        Side(chr(ord("A") + number), tuple(_open(path, asked) for path in paths)) for number, paths in enumerate(groups)
    ]
    runs = [run for side in sides for run in side.runs]
    for run in runs[1:]:
        _refuse_others(runs[0], run)
    for side in sides:
        _refuse_more_than_seeds(side)
    return sides


def _paths(text: str) -> list[Path]:
    """The runs of one side, between commas."""
    paths = [Path(part.strip()) for part in text.split(",") if part.strip()]
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: give the folder of a run, its rows, or a predictions file.")
        if paths.count(path) > 1:
            raise InputError(f"{path} stands twice in one side: give each run once.")
    return paths


def expressions(run: Run, asked: Asked) -> dict[int, str]:
    """The text of every expression by its sent_id, where the options say which data set is at hand."""
    if not asked.dataset and not asked.data_root:
        return {}
    name = asked.dataset or run.dataset
    if not name:
        raise InputError(f"Nothing says of which data set {run.path} is: give --dataset beside --data-root.")
    card = datasets.load(name)
    if run.dataset and card.name != run.dataset:
        raise InputError(f"{run.path} is of {run.dataset}, not of {card.name}: give --dataset {run.dataset}.")
    if not (run.split or asked.split):
        raise InputError(f"Nothing says of which split {run.path} is: give --split.")
    split = source.open_index(name, asked.data_root, partial=asked.partial).split(run.split or asked.split)
    strange = np.setdiff1d(run.rows["sent_id"], split.sent_id)
    refuse(f"Not in split {split.name!r}", strange, "Give the data set and the split that were scored.")
    return dict(zip(split.sent_id.tolist(), split.raw, strict=True))


# reading


def _common_split(folders: Iterable[Path], protocol: str) -> str:
    """The split of which every folder holds rows under the protocol: val, or the first one by name."""
    held = {folder: _held(folder) for folder in folders}
    common = set.intersection(*({split for split, under in names if under == protocol} for names in held.values()))
    if not common:
        said = "; ".join(f"{folder} holds {_listed(names)}" for folder, names in held.items())
        raise InputError(f"No split has rows under {protocol!r} in all runs: {said}. Give --protocol or other runs.")
    return min(common, key=lambda split: (split != "val", split))


def _held(folder: Path) -> list[tuple[str, str]]:
    """Splits and protocols of the rows of a run."""
    stems = sorted(path.stem for path in folder.glob("rows/*.parquet"))
    return [(split, protocol) for split, _, protocol in (stem.partition("-") for stem in stems)]


def _listed(held: Iterable[tuple[str, str]]) -> str:
    return ", ".join("-".join(names) for names in held) or "no rows"


def _open(path: Path, asked: Asked) -> Run:
    if path.is_dir():
        file = path / "rows" / f"{asked.split}-{asked.protocol}.parquet"
        if not file.is_file():
            raise InputError(
                f"{path} holds no rows of {asked.split} under {asked.protocol!r}, but {_listed(_held(path))}: "
                "give another --split or --protocol, or evaluate it (risbench run --checkpoint)."
            )
        return _read_rows(file, asked)
    if path.suffix == ".json":
        raise InputError(f"{path} is no predictions file: of a record, give the folder of its run, or its rows.")
    return _read_rows(path, asked) if _holds_rows(path) else _scored(path, asked)


def _holds_rows(path: Path) -> bool:
    try:
        return "intersection" in pq.read_schema(path).names
    except (pa.ArrowException, OSError, ValueError):
        return False  # predictions.read says what is wrong with it


def _read_rows(path: Path, asked: Asked) -> Run:
    """Read rows; the record beside them, else the name of the file, says of what they are."""
    rows = table(path)
    kept = path.parent.parent / "records" / f"{path.stem}.json"
    if kept.is_file():
        found = record.read(kept)
        _check_rule(rows, path, found.protocol)
        method = " ".join([found.method, *found.variants, *filter(None, [found.control])])
        named = (found.dataset, found.split, found.protocol, method)
        known = (*named, found, found.partial, found.resized, found.checkpoint)
        return _as_asked(Run(path, rows, *known), asked)
    split, _, protocol = path.stem.removesuffix("-permuted").partition("-")
    if protocol in protocols.names():
        _check_rule(rows, path, protocol)
        return _as_asked(Run(path, rows, "", split, protocol), asked)
    if not asked.protocol:
        raise InputError(f"Nothing says under which protocol {path} was scored: give --protocol.")
    _check_rule(rows, path, asked.protocol)
    return Run(path, rows, "", asked.split, protocols.load(asked.protocol).name)


def _check_rule(rows: pd.DataFrame, path: Path, protocol: str) -> None:
    """Refuse rows without what a protocol's no-target rule looks at."""
    ruled = protocol in protocols.names() and protocols.load(protocol).score.no_target == "scored"
    if ruled and not all(name in rows and rows[name].isin([0, 1]).all() for name in Nothing._fields):
        names = ", ".join(Nothing._fields)
        raise InputError(f"{path} does not hold 0 or 1 as {names}, which {protocol!r} needs: score again under it.")


def table(path: Path) -> pd.DataFrame:
    """Rows of a run by sent_id, refused where they are damaged."""
    try:
        with pq.ParquetFile(path) as file:
            read = file.read()
        kept = [name for name in read.column_names if read.column_names.count(name) == 1]
        table = read.select(kept).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]}): give another file.") from None
    wrong = [name for name in _COLUMNS if name not in table or not pd.api.types.is_integer_dtype(table[name])]
    if wrong or table.empty:
        raise InputError(f"{path} has no whole numbers as {', '.join(wrong or _COLUMNS)}: give rows of a run.")
    ids, times = np.unique(table["sent_id"], return_counts=True)
    refuse(f"Twice in {path}", ids[times > 1], "Keep one row for each.")
    part, smaller = table["intersection"], table[["predicted_area", "true_area"]].min(axis=1)
    possible = (part >= 0) & (part <= smaller) & table["peak_hit"].isin([-1, 0, 1])
    possible &= table["union"] == table["predicted_area"] + table["true_area"] - part
    refuse(f"Impossible counts in {path}", table["sent_id"].to_numpy()[~possible], "Give rows that risbench wrote.")
    ordered: pd.DataFrame = table.sort_values("sent_id", ignore_index=True)
    return ordered


def _as_asked(run: Run, asked: Asked) -> Run:
    for what, found, wanted in (("split", run.split, asked.split), ("protocol", run.protocol, asked.protocol)):
        if wanted and found != wanted:
            raise InputError(f"{run.path} is of {what} {found!r}, not {wanted!r}: give --{what} {found}.")
    return run


def _scored(path: Path, asked: Asked) -> Run:
    """Score a predictions file."""
    found = predictions.read(path)
    header = found.header
    dataset = asked.dataset or (header.dataset if header else "")
    split = asked.split or (header.split if header else "")
    if not dataset or not split:
        raise InputError(f"{path} does not say what it predicts: give --dataset and --split.")
    index = source.open_index(dataset, asked.data_root, partial=asked.partial)
    chosen = protocols.load(asked.protocol or protocols.names()[0])
    scored = scoring.score(found, index, split, chosen)
    rows = scored.rows.sort_values("sent_id", ignore_index=True)
    known = (index.card.name, split, chosen.name, " ".join([header.method, *header.variants]) if header else "")
    resized, checkpoint = scored.summary.get("resized", False), header.checkpoint if header else ""
    return Run(path, rows, *known, partial=index.partial, resized=resized, checkpoint=checkpoint)


# what is comparable


def _refuse_others(first: Run, other: Run) -> None:
    """Refuse a run of another data set, split or protocol, or with other expressions or truths."""
    for what in _SAME:
        ours, theirs = getattr(first, what), getattr(other, what)
        if ours and theirs and ours != theirs:
            raise InputError(f"{first.path} is of {what} {ours!r}, {other.path} of {theirs!r}: compare like with like.")
    both = f"{first.path} and {other.path}"
    strange = np.setxor1d(first.rows["sent_id"], other.rows["sent_id"])
    refuse(f"In one of {both} only", strange, "Compare answers to the same expressions.")
    for what, of in (("image_id", "image"), ("true_area", "ground truth")):
        differ = first.rows[what].to_numpy() != other.rows[what].to_numpy()
        where = first.rows["sent_id"].to_numpy()[differ]
        refuse(f"Of another {of} in {both}", where, "Score both with the same data set and protocol.")


def _refuse_more_than_seeds(side: Side) -> None:
    """Refuse runs of one side that are not of one method, or repeat a seed, as far as their records tell."""
    several = {run.method for run in side.runs if run.method}
    weights = [run.checkpoint for run in side.runs if run.checkpoint]
    if len(several) > 1 or len(set(weights)) < len(weights):
        what = f"of {' and '.join(sorted(several))}" if len(several) > 1 else "of one checkpoint"
        raise InputError(
            f"The runs of {side.about()[:-1]} are {what}, not one method's with different seeds: write runs that are to"
            " be compared with a space between them."
        )
    records = [run.record for run in side.runs if run.record]
    lines, _ = measured.group(records)
    if sum(len(line.runs) for line in lines[:1]) < len(records):
        apart = " and ".join(" ".join(filter(None, [line.method, *line.labels(), line.remark()])) for line in lines)
        raise InputError(
            f"The runs of {side.about()[:-1]} are not one method's with different seeds ({apart}): write runs that are "
            "to be compared with a space between them."
        )
