"""The predictions file: read from the output of any program, written by risbench.

Parquet holds sent_id, height, width, counts (COCO compressed RLE) and a nullable peak (row and column, in pixels of
that size). Its metadata holds the header. JSON Lines holds the same columns without the header. A method that predicts
whether there is a target writes a nullable `no_target`; where it is null, an empty mask means no target. The nullable
`largest_probability` of a method's map lets scoring.no_target choose a threshold; nothing else reads it.

How much is read is bounded (`parquet`, LINE_LIMIT): a file of a few kilobytes can stand for more than any memory holds.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from risbench import errors, files
from risbench.data import rle
from risbench.errors import InputError
from risbench.scoring import parquet
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
_HEADER, _HEADER_HASH = b"risbench", b"risbench sha256"  # metadata
NO_TARGET = pa.field("no_target", pa.bool_())  # only in files that predict it
LARGEST = pa.field("largest_probability", pa.float32())  # files of other programs, and from before 0.3, may lack it
LINE_LIMIT = parquet.MAX_TEXT + 2**20  # bytes of a line of JSON Lines

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Pair = Annotated[tuple[Int32, Int32], Strict(False)]  # a list in JSON

_IMPORT = "risbench import MASKS --output FILE.parquet makes one of PNG, .npz, .pth and COCO results"
_LINE = 'a line holds {"sent_id": 7, "segmentation": {"size": [height, width], "counts": "RLE"}}'
_IMPORTED = {  # first byte of a file that can be imported: suffixes that tell its format, and the likeliest format
    b"[": ((".json",), "coco"),
    b"P": ((".npz", ".pth", ".pt"), "npz"),
    b"\x80": ((".pth", ".pt"), "pth"),
}
_OBJECTS = {  # keys of a JSON file that holds no predictions, and what it is
    ("method", "protocol", "metrics"): "a record: give the predictions of its run, predictions/SPLIT-PROTOCOL.parquet",
    ("scores", "protocol"): "a baseline, which `risbench check --baseline` reads: give a predictions file",
    ("images", "annotations"): "an annotation file in COCO's format: give a predictions file",
}


class Segmentation(BaseModel):
    """The RLE of a mask, and its height and width."""

    model_config = ConfigDict(strict=True)

    size: Pair
    counts: str


class Line(BaseModel):
    """The prediction for one expression, as a line of JSON Lines holds it."""

    model_config = ConfigDict(strict=True)

    sent_id: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    segmentation: Segmentation
    peak: Pair | None = None
    no_target: bool | None = None
    largest_probability: Annotated[float, Field(ge=0, le=1)] | None = None


def read(path: Path) -> Predictions:
    """Read Parquet or JSON Lines. Raises InputError with the line or sent_id of the first defect."""
    table = _read_parquet(path) if _is_parquet(path) else _table(_lines(path))
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
    largest = predictions.largest_probability
    if largest is not None:
        table = table.append_column(LARGEST, pa.array(largest, mask=np.isnan(largest)))
    if predictions.header:
        text = predictions.header.model_dump_json()
        table = table.replace_schema_metadata({_HEADER: text, _HEADER_HASH: _sha256(text.encode())})
    parquet.write(path, table)


# files to tables


def _is_parquet(path: Path) -> bool:
    """Whether a file is Parquet. Raises InputError for a file that is neither Parquet nor JSON Lines."""
    try:
        if path.is_dir():
            raise _refused_folder(path)
        files.check_regular(path)
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the predictions file.") from None
    if start.startswith(b"PAR1"):
        return True
    if path.suffix.lower() == ".parquet":
        kind = files.foreign_kind(path) or "written by another program. Write it again, or name JSON Lines .jsonl."
        raise InputError(f"{path} is not a Parquet file, but {kind}")
    _refuse_other_kinds(path, start.removeprefix(codecs.BOM_UTF8).lstrip())
    return False


def _refused_folder(folder: Path) -> InputError:
    """Return the error for a folder: of a run, or of masks."""
    predictions = next(iter(sorted(folder.glob("predictions/*.parquet"))), None)
    if predictions or (folder / "run.toml").is_file():
        example = predictions or folder / "predictions" / "SPLIT-PROTOCOL.parquet"
        return InputError(f"{folder} is the folder of a run: give one of its predictions files, such as {example}.")
    cure = f"make a predictions file of it: risbench import {folder} --output FILE.parquet"
    return InputError(f"{folder} cannot be read (Is a directory): {cure}.")


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Refuse a file that cannot be JSON Lines, by its first bytes."""
    if start.startswith((b"[", b"PK", b"\x80")):  # a list in JSON, a zip as NumPy and torch write it, a pickle
        suffixes, format_ = _IMPORTED[start[:1]]
        option = "" if path.suffix.lower() in suffixes else f" --format {format_}"
        cure = f"make a predictions file of it: risbench import {path}{option} --output FILE.parquet"
        raise InputError(f"{path} is neither Parquet nor JSON Lines: {cure}.")
    if start and not start.startswith(b"{"):
        kind = files.foreign_kind(path).removesuffix(" Give another file.") or "something else."
        raise InputError(f"{path} is neither Parquet nor JSON Lines, but {kind} Give a predictions file; {_IMPORT}.")


def _read_parquet(path: Path) -> Any:
    table = parquet.read(path, [*SCHEMA.names, NO_TARGET.name, LARGEST.name])
    if "counts" not in table.column_names and "intersection" in parquet.column_names(path):
        raise InputError(f"{path} holds the rows of a run, no masks: give the file of this name in predictions/.")
    return table


def _lines(path: Path) -> Iterator[Line]:
    first = True
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LINE_LIMIT + 1)
            if len(line) > LINE_LIMIT:
                raise InputError(f"{path}, line {number} has more than {LINE_LIMIT:,} bytes: {_LINE}.")
            if not line:
                return
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield _parse_line(line, path, number, first)
                first = False


def _parse_line(line: bytes, path: Path, number: int, first: bool) -> Line:
    try:
        content = files.parse_json(line)
        if isinstance(content, dict):
            return Line.model_validate(content)
        reason = "Input should be an object"
    except ValidationError as error:
        reason = errors.defect(error)
    except ValueError as error:
        reason = f"Invalid JSON: {error}"
    if first:
        _refuse_single_object(path)
    raise InputError(f"{path}, line {number}: {reason}: {_LINE}.")


def _refuse_single_object(path: Path) -> None:
    """Refuse a file that is one JSON object, and say which, if it is one that holds no predictions."""
    try:
        text = files.read_bytes(path)
        content = files.parse_json(text)
    except ValueError:
        return
    what = next((what for keys, what in _OBJECTS.items() if {*keys} <= {*content}), "")
    if what or b"\n" in text.strip():
        raise InputError(f"{path} is {what or f'one JSON object, no JSON Lines: {_LINE}'}.")


def _table(lines: Iterable[Line]) -> Any:
    schema = pa.schema([*(field.with_nullable(True) for field in SCHEMA), NO_TARGET, LARGEST])
    columns: tuple[list[Any], ...] = tuple([] for _ in schema)
    for row, line in enumerate(lines):
        if row == parquet.MAX_ROWS:
            raise InputError(f"More than {parquet.MAX_ROWS:,} predictions are not read: give those of one split.")
        mask, peak = line.segmentation, line.peak or (None, None)
        values = (line.sent_id, *mask.size, mask.counts, *peak, line.no_target, line.largest_probability)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


# tables to predictions


def _header(table: Any, path: Path) -> Header | None:
    metadata = table.schema.metadata or {}
    text = metadata.get(_HEADER)
    if text is not None and metadata.get(_HEADER_HASH, _sha256(text)) != _sha256(text):  # older files have no hash
        raise InputError(f"{path} was damaged: its metadata have another hash than it states. Copy or make it again.")
    try:
        content = None if text is None else files.parse_json(text)
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise InputError(
                f"{path} has format {content['format']!r:.60}, this risbench reads {FORMAT}: use a newer risbench."
            )
        return None if text is None else Header.model_validate(content)
    except ValidationError as error:
        reason = errors.defect(error)
    except InputError:
        raise
    except ValueError as error:
        reason = str(error)
    raise InputError(f"{path}: metadata 'risbench' is broken ({reason}): predict or import again.")


def _sha256(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _from_table(table: Any, header: Header | None) -> Predictions:
    columns = {field.name: _column(table, field) for field in SCHEMA}
    sent_id, height, width = (columns[name].to_numpy() for name in ("sent_id", "height", "width"))
    wrong_size = sent_id[(height <= 0) | (width <= 0)]
    refuse_expressions("Height or width is not positive", wrong_size, "Give the size of the mask.")
    counts = columns["counts"].cast(pa.binary()).to_pylist()
    for entry in zip(sent_id, counts, height, width, strict=True):
        _check_mask(*entry)
    row, column = _peaks(sent_id, height, width, *(columns[name] for name in PEAK))
    no_target, largest = _no_target(_column(table, NO_TARGET)), _largest(sent_id, _column(table, LARGEST))
    return Predictions(header, sent_id, height, width, counts, row, column, no_target, largest)


def _no_target(column: Any) -> NDArray[np.int8] | None:
    """Return the column with -1 for null; None if every row is null."""
    flags = column.cast(pa.int8()).fill_null(-1).to_numpy(zero_copy_only=False)
    return None if (flags < 0).all() else flags


def _largest(sent_id: Any, column: Any) -> NDArray[np.float32] | None:
    """Return the column with NaN for null; None if every row is null. Raises InputError for other numbers."""
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    numbers = np.array(column.fill_null(0).to_numpy(zero_copy_only=False), np.float32)
    cure = "Give a number from 0 to 1, or none."
    refuse_expressions("largest_probability is no probability", sent_id[~((numbers >= 0) & (numbers <= 1))], cure)
    return None if is_null.all() else np.where(is_null, np.float32(np.nan), numbers)


def _column(table: Any, field: Any) -> Any:
    """Return one column in the type of the schema. The file may hold another type of the same kind, such as int16."""
    if field.nullable and field.name not in table.column_names:
        return pa.nulls(len(table), field.type)
    if field.name not in table.column_names:
        raise InputError(f"Column {field.name!r} is missing; expected {', '.join(SCHEMA.names)}.")
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
    if field.name == LARGEST.name:
        return bool(pa.types.is_floating(arrow_type) or pa.types.is_null(arrow_type))
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
