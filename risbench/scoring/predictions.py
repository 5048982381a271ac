"""The predictions file: one mask for each expression, written while predicting and read from any program.

Parquet holds sent_id, height, width, counts (COCO compressed RLE) and a nullable peak (row and column, in pixels of
that size); its metadata says where the masks come from. JSON Lines holds the same columns without the metadata. A
method that can say that nothing is meant writes a nullable `no_target`; where it says neither, an empty mask says so.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from risbench.data import rle
from risbench.data.index import Split
from risbench.errors import InputError

FORMAT = 1
SCHEMA = pa.schema(
    [
        pa.field("sent_id", pa.int64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("counts", pa.string(), nullable=False),
        pa.field("peak_row", pa.int32()),
        pa.field("peak_col", pa.int32()),
    ]
)
PEAK = ("peak_row", "peak_col")
NO_TARGET = pa.field("no_target", pa.bool_())  # only in files that say it


class Header(BaseModel):
    """What made the masks, kept in the metadata of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    dataset: str
    index: str = ""  # sha256 of the annotation files
    split: str
    input: dict[str, Any]  # the resolved input half of the protocol
    scored_at: Literal["original"] | tuple[int, int] = "original"  # size of the masks, as in protocol.ScoreHalf
    method: str
    variants: list[str] = []
    checkpoint: str = ""  # sha256 of the weights
    recipe: dict[str, Any] = {}
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Predictions:
    """Columns of equal length, one entry for each expression, and their header (None: a program that wrote none)."""

    header: Header | None
    sent_id: NDArray[np.int64]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    counts: list[bytes]
    peak_row: NDArray[np.int32]  # -1: no peak
    peak_col: NDArray[np.int32]
    no_target: NDArray[np.int8] | None = None  # 1 nothing is meant, 0 something is, -1 (None: all) as the mask says

    def __len__(self) -> int:
        return len(self.sent_id)

    def take(self, order: NDArray[np.intp]) -> Predictions:
        """The entries at these places, in this order."""
        counts = [self.counts[place] for place in order]
        sent_id, height, width = self.sent_id[order], self.height[order], self.width[order]
        said = None if self.no_target is None else self.no_target[order]
        peak = self.peak_row[order], self.peak_col[order]
        return Predictions(self.header, sent_id, height, width, counts, *peak, said)

    def says_nothing(self) -> NDArray[np.bool_]:
        """Whether each answer is that nothing is meant."""
        sizes = zip(self.height.tolist(), self.width.tolist(), strict=True)
        empty = np.array([rle.area(counts, size) == 0 for counts, size in zip(self.counts, sizes, strict=True)], bool)
        return empty if self.no_target is None else np.where(self.no_target < 0, empty, self.no_target == 1)


def build(
    header: Header | None,
    sent_id: Sequence[int],
    sizes: Sequence[rle.Size],
    counts: Sequence[bytes],
    peaks: Sequence[tuple[int, int] | None],
    no_target: Sequence[bool | None] | None = None,
) -> Predictions:
    """Predictions from one entry for each expression."""
    height, width = np.array(sizes, np.int32).reshape(-1, 2).T
    row, column = np.array([(-1, -1) if peak is None else peak for peak in peaks], np.int32).reshape(-1, 2).T
    said = None if no_target is None else np.array([-1 if one is None else one for one in no_target], np.int8)
    return Predictions(header, np.array(sent_id, np.int64), height, width, list(counts), row, column, said)


def in_order(predictions: Predictions, split: Split, asked: Split | None = None) -> Predictions:
    """The predictions in the order of the split, refused unless they answer each of its expressions once.

    Where only some of them are `asked`, these must be answered, and answers to the others are left out.
    """
    asked = asked or split
    ids, times = np.unique(predictions.sent_id, return_counts=True)
    refuse("Predicted more than once", ids[times > 1], "Keep one row for each.")
    refuse(f"Not in split {split.name!r}", np.setdiff1d(ids, split.sent_id), "Give the split that was predicted.")
    missing = asked.sent_id[~np.isin(asked.sent_id, ids)]
    drawn = " that the protocol draws" if len(asked) < len(split) else ""
    refuse("Without a prediction", missing, f"Predict all {len(asked)} expressions of split {split.name!r}{drawn}.")
    order = np.argsort(predictions.sent_id)
    return predictions.take(order[np.searchsorted(predictions.sent_id, asked.sent_id, sorter=order)])


def refuse(what: str, sent_ids: NDArray[np.int64], cure: str) -> None:
    """Raise an InputError that names the first of these expressions, unless there are none."""
    if len(sent_ids):
        first = ", ".join(str(sent_id) for sent_id in sent_ids[:5]) + (", ..." if len(sent_ids) > 5 else "")
        raise InputError(f"{what}: sent_id {first} ({len(sent_ids)} in all). {cure}")


# files


def read(path: Path) -> Predictions:
    """Read a Parquet or JSON Lines file of any program; every defect is an InputError that names line or sent_id."""
    cure = f"make a predictions file of it: risbench import {path} --output FILE.parquet"
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        cure = cure if path.is_dir() else "give the predictions file"
        raise InputError(f"{path} cannot be read ({error.strerror}): {cure}.") from None
    if start.startswith((b"[", b"PK", b"\x80")):  # a list in JSON, a zip as NumPy and torch write it, a pickle
        raise InputError(f"{path} is neither Parquet nor JSON Lines: {cure}.")
    parquet = start == b"PAR1"
    if not parquet and path.suffix == ".parquet":
        raise InputError(f"{path} is not a Parquet file: write it again, or name JSON Lines .jsonl.")
    table = _read_parquet(path) if parquet else _read_lines(path)
    try:
        return _from_table(table, _header(table, path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def from_lines(lines: Iterable[Line]) -> Predictions:
    """Predictions from entries as a line of JSON Lines holds them, checked as those of a file are."""
    return _from_table(_table(lines), None)


def write(path: Path, predictions: Predictions) -> None:
    """Write a Parquet file, whole or not at all."""
    columns = [predictions.sent_id, predictions.height, predictions.width, [c.decode() for c in predictions.counts]]
    peaks = [pa.array(peak, mask=peak < 0) for peak in (predictions.peak_row, predictions.peak_col)]
    table = pa.Table.from_arrays([*(pa.array(c) for c in columns), *peaks], schema=SCHEMA)
    said = predictions.no_target
    if said is not None and (said >= 0).any():
        table = table.append_column(NO_TARGET, pa.array(said == 1, mask=said < 0))
    if predictions.header:
        table = table.replace_schema_metadata({"risbench": predictions.header.model_dump_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


class Parts:
    """Predictions of a run under way, one small file for each batch number, so that the run can be resumed.

    Several processes may add to one folder as long as no two add the same number.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        """Open the folder; parts that were made under another header are removed."""
        self.folder = folder
        self.header = header
        self.key = hashlib.sha256(header.model_dump_json().encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*-*.parquet"):
            if not stale.name.startswith(self.key):
                stale.unlink(missing_ok=True)

    def done(self) -> set[int]:
        """Numbers of the batches whose predictions are stored."""
        return {int(part.stem.partition("-")[2]) for part in self.folder.glob(f"{self.key}-*.parquet")}

    def add(self, number: int, predictions: Predictions) -> None:
        """Store the predictions of one batch, whole or not at all."""
        write(self._part(number), predictions)

    def merge(self, path: Path) -> Predictions:
        """Join all parts by rising number, write them to `path` and remove the folder."""
        parts = [read(self._part(number)) for number in sorted(self.done())]
        said = [np.full(len(part), -1, np.int8) if part.no_target is None else part.no_target for part in parts]
        merged = Predictions(
            self.header,
            np.concatenate([part.sent_id for part in parts]),
            np.concatenate([part.height for part in parts]),
            np.concatenate([part.width for part in parts]),
            [counts for part in parts for counts in part.counts],
            np.concatenate([part.peak_row for part in parts]),
            np.concatenate([part.peak_col for part in parts]),
            None if all(part.no_target is None for part in parts) else np.concatenate(said),
        )
        write(path, merged)
        shutil.rmtree(self.folder)
        return merged

    def _part(self, number: int) -> Path:
        return self.folder / f"{self.key}-{number:08d}.parquet"


# reading


def _read_parquet(path: Path) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is a broken Parquet file ({str(error).splitlines()[0]}): write it again.") from None


Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Segmentation(BaseModel):
    """The RLE of a mask, and its height and width."""

    model_config = ConfigDict(strict=True)

    size: tuple[Int32, Int32]
    counts: str


class Line(BaseModel):
    """The answer to one expression."""

    model_config = ConfigDict(strict=True)

    sent_id: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    segmentation: Segmentation
    peak: tuple[Int32, Int32] | None = None
    no_target: bool | None = None


def _read_lines(path: Path) -> Any:
    lines = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                lines.append(_read_line(line, f"{path}, line {number}"))
    return _table(lines)


def _read_line(line: bytes, where: str) -> Line:
    try:
        return Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {place + ': ' if place else ''}{first['msg']}.") from None


def _table(lines: Iterable[Line]) -> Any:
    rows = []
    for line in lines:
        mask, peak = line.segmentation, line.peak or (None, None)
        values = (line.sent_id, *mask.size, mask.counts, *peak, line.no_target)
        rows.append(dict(zip((*SCHEMA.names, NO_TARGET.name), values, strict=True)))
    return pa.Table.from_pylist(rows, schema=pa.schema([*(field.with_nullable(True) for field in SCHEMA), NO_TARGET]))


def _header(table: Any, path: Path) -> Header | None:
    text = (table.schema.metadata or {}).get(b"risbench")
    try:
        header = None if text is None else Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: metadata 'risbench' is broken at {first['loc']}: {first['msg']}.") from None
    if header and header.format != FORMAT:
        raise InputError(f"{path} has format {header.format}, this risbench reads {FORMAT}: use a newer risbench.")
    return header


def _from_table(table: Any, header: Header | None) -> Predictions:
    columns = {field.name: _column(table, field) for field in SCHEMA}
    sent_id, height, width = (columns[name].to_numpy() for name in ("sent_id", "height", "width"))
    refuse("Height or width is not positive", sent_id[(height <= 0) | (width <= 0)], "Give the size of the mask.")
    counts = columns["counts"].cast(pa.binary()).to_pylist()
    for entry in zip(sent_id, counts, height, width, strict=True):
        _check_mask(*entry)
    row, column = _peaks(sent_id, height, width, *(columns[name] for name in PEAK))
    return Predictions(header, sent_id, height, width, counts, row, column, _said(_column(table, NO_TARGET)))


def _said(column: Any) -> NDArray[np.int8] | None:
    """The answers that nothing is meant; None where no row says whether it is one."""
    said = column.cast(pa.int8()).fill_null(-1).to_numpy(zero_copy_only=False)
    return None if (said < 0).all() else said


def _column(table: Any, field: Any) -> Any:
    """One column in our type, whichever type of the same kind the program chose; pandas stores peaks as floats."""
    if field.nullable and field.name not in table.column_names:
        return pa.nulls(len(table), field.type)
    if table.column_names.count(field.name) != 1:
        raise InputError(f"Column {field.name!r} is missing or there twice; expected {', '.join(SCHEMA.names)}.")
    column = table[field.name].combine_chunks()
    if column.null_count and not field.nullable:
        rows = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        raise InputError(f"Column {field.name!r} has no value in row {rows[0]}: give one for each expression.")
    try:
        if not _fits(column.type, field):
            raise pa.ArrowInvalid(f"it holds {column.type}")
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise InputError(f"Column {field.name!r} is no column of {field.type}: {error}.") from None


def _fits(kind: Any, field: Any) -> bool:
    if field.name == "counts":
        return str(kind).removeprefix("large_").removesuffix("_view") in ("string", "binary")
    if field.name == NO_TARGET.name:
        return bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))
    peak = field.name in PEAK and (pa.types.is_floating(kind) or pa.types.is_null(kind))
    return bool(peak or pa.types.is_integer(kind))


def _check_mask(sent_id: int, counts: bytes, height: int, width: int) -> None:
    wrong = rle.check(counts, (int(height), int(width)))
    if wrong:
        raise InputError(f"The mask of sent_id {sent_id} {wrong}: write what pycocotools.mask.encode gives.")


def _peaks(sent_id: Any, height: Any, width: Any, row: Any, column: Any) -> tuple[Any, Any]:
    none, half = (array.is_null().to_numpy(zero_copy_only=False) for array in (row, column))
    refuse("Half a peak", sent_id[none != half], "Give both peak_row and peak_col, or neither.")
    row, column = (np.array(array.fill_null(0)) for array in (row, column))
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    refuse("The peak lies outside the mask", sent_id[outside], "Give (row, column) in pixels of the mask's size.")
    return np.where(none, np.int32(-1), row), np.where(none, np.int32(-1), column)
