"""Parquet files of bounded size: what a file says of itself is checked before it is in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from risbench.errors import InputError
from risbench.scoring import parquet


def repeated(value: str | bytes, number: int, kind: Any = None) -> Any:
    """A column that stores one value once, however often it stands there."""
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(number, np.int32)), pa.array([value], kind))
    return pa.table({"counts": values})


def twice(path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), path)


@pytest.mark.parametrize("names", [(), ("counts", "sent_id", "absent")])
def test_a_table_comes_back_with_plain_strings(tmp_path: Path, names: tuple[str, ...]) -> None:
    table = pa.table({"sent_id": [1, 2, 3], "counts": ["a", None, "a"]})
    parquet.write(tmp_path / "a.parquet", table)
    assert parquet.read(tmp_path / "a.parquet", names).equals(table)
    assert parquet.column_names(tmp_path / "a.parquet") == ["sent_id", "counts"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: pq.write_table(repeated("x" * 10**6, 10**5), path),
            "has 100,000,000,000 bytes when uncompressed; at most 268,435,456 are read. Give a file of one split.",
        ),
        (
            lambda path: pq.write_table(pa.table({"counts": ["x" * (parquet.MAX_TEXT + 1)]}), path),
            "has 16,777,217 characters in one value of 'counts'; at most 16,777,216 are read",
        ),
        (
            lambda path: pq.write_table(pa.table({"n": np.zeros(parquet.MAX_ROWS + 1, np.int8)}), path),
            "has 2,000,001 rows; at most 2,000,000 are read",
        ),
        (
            lambda path: pq.write_table(pa.table({"n": [np.zeros(parquet.MAX_ROWS + 1, np.int8)]}), path),
            "holds list<element: int8> as 'n': write one value in each row",
        ),
        (twice, "has the column 'a' twice: write each column once"),
        (os.mkfifo, "is a device or a pipe"),
        (lambda path: path.write_bytes(b"PAR1 and nothing more"), "is a broken Parquet file"),
    ],
)
def test_a_file_that_stands_for_more_than_is_read_is_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / "a.parquet")
    tracemalloc.start()
    with pytest.raises(InputError, match=message) as refusal:
        parquet.read(tmp_path / "a.parquet", ["n", "a", "counts"])
    assert tracemalloc.get_traced_memory()[1] < 2**26 and pa.total_allocated_bytes() < 2**28
    tracemalloc.stop()
    assert "\n" not in str(refusal.value)
    assert parquet.column_names(tmp_path / "a.parquet") in ([], ["counts"], ["n"], ["a", "a"])


def test_values_of_fixed_length_count_as_often_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_BYTES", 10**6)
    pq.write_table(repeated(b"x" * 10**5, 20, pa.binary(10**5)), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has 2,000,000 bytes when uncompressed"):
        parquet.read(tmp_path / "a.parquet")


def test_columns_that_are_not_needed_are_not_counted(tmp_path: Path) -> None:
    long = pa.array(["x" * (parquet.MAX_TEXT + 1)])
    pq.write_table(pa.table({"sent_id": [1], "note": long}), tmp_path / "a.parquet")
    assert parquet.read(tmp_path / "a.parquet", ["sent_id"]).column_names == ["sent_id"]


def test_columns_of_lists_are_left_out_where_all_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1], "list": [[1, 2]]}), tmp_path / "a.parquet")
    assert parquet.read(tmp_path / "a.parquet").column_names == ["n"]


READ_ALL = """
import pathlib, sys
from risbench.errors import InputError
from risbench.scoring import parquet
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        parquet.read(path)
    except InputError:
        pass
"""


def test_damaged_metadata_does_not_end_the_process(tmp_path: Path) -> None:
    """pyarrow ends it when a column of a row group is asked for."""
    parquet.write(tmp_path / "a.parquet", pa.table({"a": ["x", None]}))
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "damaged").mkdir()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "damaged" / f"{place:04d}.parquet").write_bytes(damaged)
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "damaged")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    parquet.write(tmp_path / "a.parquet", pa.table({"n": np.arange(1000)}))
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 4] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match="a.parquet is a broken Parquet file .*: copy it again, or write it again"):
        parquet.read(tmp_path / "a.parquet")
