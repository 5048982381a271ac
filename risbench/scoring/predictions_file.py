"""The predictions file: read from the output of any program, written by risbench.

Parquet holds sent_id, height, width, counts (COCO compressed RLE) and a nullable peak (row and column, in pixels of
that size). Its metadata holds the header. JSON Lines holds the same columns without the header. A method that predicts
whether there is a target writes a nullable `no_target`; where it is null, an empty mask means no target.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from risbench import errors
from risbench.data import rle
from risbench.errors import InputError
from risbench.scoring.predictions import FORMAT, Header, Predictions, refuse_expressions

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
NO_TARGET = pa.field("no_target", pa.bool_())  # only in files that predict it

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Segmentation(BaseModel):
    """The RLE of a mask, and its height and width."""

    model_config = ConfigDict(strict=True)

    size: tuple[Int32, Int32]
    counts: str


class Line(BaseModel):
    """The prediction for one expression, as a line of JSON Lines holds it."""

    model_config = ConfigDict(strict=True)

    sent_id: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    segmentation: Segmentation
    peak: tuple[Int32, Int32] | None = None
    no_target: bool | None = None


def read(path: Path) -> Predictions:
    """Read Parquet or JSON Lines. Raises InputError with the line or sent_id of the first defect."""
    table = _read_parquet(path) if _is_parquet(path) else _read_lines(path)
    try:
        return _from_table(table, _header(table, path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def from_lines(lines: Iterable[Line]) -> Predictions:
    """Build predictions from lines of JSON Lines, with the checks of `read`."""
    return _from_table(_table(lines), None)


def write(path: Path, predictions: Predictions) -> None:
    """Write a Parquet file, whole or not at all."""
    columns = [predictions.sent_id, predictions.height, predictions.width, [c.decode() for c in predictions.counts]]
    peaks = [pa.array(peak, mask=peak < 0) for peak in (predictions.peak_row, predictions.peak_col)]
    table = pa.Table.from_arrays([*(pa.array(c) for c in columns), *peaks], schema=SCHEMA)
    no_target = predictions.no_target
    if no_target is not None and (no_target >= 0).any():
        table = table.append_column(NO_TARGET, pa.array(no_target == 1, mask=no_target < 0))
    if predictions.header:
        table = table.replace_schema_metadata({"risbench": predictions.header.model_dump_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


# files to tables


def _is_parquet(path: Path) -> bool:
    """Whether a file is Parquet. Raises InputError for a file that is neither Parquet nor JSON Lines."""
    cure = f"make a predictions file of it: risbench import {path} --output FILE.parquet"
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        cure = cure if path.is_dir() else "give the predictions file"
        raise InputError(f"{path} cannot be read ({error.strerror}): {cure}.") from None
    if start.startswith((b"[", b"PK", b"\x80")):  # a list in JSON, a zip as NumPy and torch write it, a pickle
        raise InputError(f"{path} is neither Parquet nor JSON Lines: {cure}.")
    if start != b"PAR1" and path.suffix == ".parquet":
        raise InputError(f"{path} is not a Parquet file: write it again, or name JSON Lines .jsonl.")
    return start == b"PAR1"


def _read_parquet(path: Path) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is a broken Parquet file ({str(error).splitlines()[0]}): write it again.") from None


def _read_lines(path: Path) -> Any:
    lines = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                lines.append(_read_line(line, f"{path}, line {number}"))
    return _table(lines)


def _read_line(line: bytes, place: str) -> Line:
    try:
        return Line.model_validate_json(line)
    except ValidationError as error:
        raise InputError(f"{place}: {errors.defect(error)}.") from None


def _table(lines: Iterable[Line]) -> Any:
    rows = []
    for line in lines:
        mask, peak = line.segmentation, line.peak or (None, None)
        values = (line.sent_id, *mask.size, mask.counts, *peak, line.no_target)
        rows.append(dict(zip((*SCHEMA.names, NO_TARGET.name), values, strict=True)))
    return pa.Table.from_pylist(rows, schema=pa.schema([*(field.with_nullable(True) for field in SCHEMA), NO_TARGET]))


# tables to predictions


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
    wrong_size = sent_id[(height <= 0) | (width <= 0)]
    refuse_expressions("Height or width is not positive", wrong_size, "Give the size of the mask.")
    counts = columns["counts"].cast(pa.binary()).to_pylist()
    for entry in zip(sent_id, counts, height, width, strict=True):
        _check_mask(*entry)
    row, column = _peaks(sent_id, height, width, *(columns[name] for name in PEAK))
    return Predictions(header, sent_id, height, width, counts, row, column, _no_target(_column(table, NO_TARGET)))


def _no_target(column: Any) -> NDArray[np.int8] | None:
    """Return the column with -1 for null; None if every row is null."""
    flags = column.cast(pa.int8()).fill_null(-1).to_numpy(zero_copy_only=False)
    return None if (flags < 0).all() else flags


def _column(table: Any, field: Any) -> Any:
    """Return one column in the type of the schema. The file may hold another type of the same kind, such as int16."""
    if field.nullable and field.name not in table.column_names:
        return pa.nulls(len(table), field.type)
    if table.column_names.count(field.name) != 1:
        raise InputError(f"Column {field.name!r} is missing or there twice; expected {', '.join(SCHEMA.names)}.")
    column = table[field.name].combine_chunks()
    if column.null_count and not field.nullable:
        rows = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        raise InputError(f"Column {field.name!r} has no value in row {rows[0]}: give one for each expression.")
    try:
        if not _is_compatible(column.type, field):
            raise pa.ArrowInvalid(f"it holds {column.type}")
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise InputError(f"Column {field.name!r} is no column of {field.type}: {error}.") from None


def _is_compatible(arrow_type: Any, field: Any) -> bool:
    if field.name == "counts":
        return str(arrow_type).removeprefix("large_").removesuffix("_view") in ("string", "binary")
    if field.name == NO_TARGET.name:
        return bool(pa.types.is_boolean(arrow_type) or pa.types.is_null(arrow_type))
    if field.name in PEAK and (pa.types.is_floating(arrow_type) or pa.types.is_null(arrow_type)):
        return True  # pandas stores nullable integers as floats
    return bool(pa.types.is_integer(arrow_type))


def _check_mask(sent_id: int, counts: bytes, height: int, width: int) -> None:
    defect = rle.find_defect(counts, (int(height), int(width)))
    if defect:
        raise InputError(f"The mask of sent_id {sent_id} {defect}: write what pycocotools.mask.encode gives.")


def _peaks(sent_id: Any, height: Any, width: Any, row: Any, column: Any) -> tuple[Any, Any]:
    """Rows and columns of the peaks with -1 for null. Raises InputError for a peak outside its mask."""
    no_row, no_column = (array.is_null().to_numpy(zero_copy_only=False) for array in (row, column))
    refuse_expressions("Half a peak", sent_id[no_row != no_column], "Give both peak_row and peak_col, or neither.")
    row, column = (np.array(array.fill_null(0)) for array in (row, column))
    outside = sent_id[(row < 0) | (row >= height) | (column < 0) | (column >= width)]
    refuse_expressions("The peak lies outside the mask", outside, "Give (row, column) in pixels of the mask's size.")
    return np.where(no_row, np.int32(-1), row), np.where(no_row, np.int32(-1), column)
