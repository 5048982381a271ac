"""Parquet files of bounded size: what they expand to is known before it is in memory, and pages have checksums."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from risbench import errors, files
from risbench.data import rle
from risbench.errors import InputError

MAX_ROWS = 2_000_000  # expressions; RefCOCO, RefCOCO+ and RefCOCOg together have 390,000
MAX_TEXT = rle.MAX_CHARACTERS  # of one string
MAX_BYTES = 2**28  # of all columns together, uncompressed; reading takes four times as much


def read(path: Path, names: Collection[str] = ()) -> Any:
    """Read the columns of these names, or all, as a table. Raises InputError for a broken or too large file."""
    try:
        files.check_regular(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            columns, texts = _choose_columns(path, file, names)
            _check_metadata(path, file.metadata, columns)
        with pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
            table = file.read(columns=columns)
        table.validate(full=True)
        return _expand_texts(path, table)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is a broken Parquet file ({errors.first_line(error)}): copy it again, or write it again."
        ) from None


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file; none if it cannot be read as one."""
    try:
        files.check_regular(path)
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        return []


def write(path: Path, table: Any) -> None:
    """Write a table, whole or not at all. Raises InputError."""
    with files.replacing(path) as new:
        pq.write_table(table, new, write_page_checksum=True)


def _choose_columns(path: Path, file: Any, names: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the columns to read, and those of them that hold text. Raises InputError for a name that stands twice.

    Without names, columns of lists and structures, which no file of risbench has, are left out.
    """
    fields = [field for field in file.schema_arrow if field.name in names or not names]
    columns = [field.name for field in fields if names or not pa.types.is_nested(field.type)]
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has the column {twice!r} twice: write each column once.")
    nested = next((field for field in fields if field.name in columns and pa.types.is_nested(field.type)), None)
    if nested is not None:
        raise InputError(f"{path} holds {nested.type} as {nested.name!r}: write one value in each row.")
    texts = [field.name for field in fields if field.name in columns and _is_text(field.type)]
    return columns, texts


def _is_text(arrow_type: Any) -> bool:
    arrow_type = arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type
    return str(arrow_type).removeprefix("large_").removesuffix("_view") in ("string", "binary")


def _check_metadata(path: Path, metadata: Any, columns: Collection[str]) -> None:
    """Refuse more rows or bytes than are read, by what the file says of itself.

    The metadata of columns in row groups is not read: pyarrow ends the process where it is damaged.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    _refuse_more(path, "rows", max(metadata.num_rows, sum(group.num_rows for group in groups)), MAX_ROWS)
    schema = (metadata.schema.column(i) for i in range(metadata.num_columns))
    fixed = metadata.num_rows * sum(column.length or 0 for column in schema if column.path in columns)
    _refuse_more(path, "bytes when uncompressed", max(fixed, sum(group.total_byte_size for group in groups)), MAX_BYTES)


def _expand_texts(path: Path, table: Any) -> Any:
    """Replace columns of text, which were read with each distinct string once, by columns of strings."""
    total = 0
    for name in table.column_names:
        if not pa.types.is_dictionary(table[name].type):
            continue
        for chunk in table[name].chunks:
            lengths = pc.binary_length(chunk.dictionary)
            _refuse_more(path, f"characters in one value of {name!r}", pc.max(lengths).as_py() or 0, MAX_TEXT)
            total += pc.sum(lengths.cast(pa.int64()).take(chunk.indices)).as_py() or 0
            _refuse_more(path, "bytes when uncompressed", total, MAX_BYTES)
        values = table[name].cast(table[name].type.value_type)
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def _refuse_more(path: Path, unit: str, actual: int, limit: int) -> None:
    if actual > limit:
        raise InputError(f"{path} has {actual:,} {unit}; at most {limit:,} are read. Give a file of one split.")
