"""The predictions file: round trips, files of other programs, and every defect by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from risbench.data import rle
from risbench.errors import InputError
from risbench.scoring import parquet as tables
from risbench.scoring import predictions_file
from risbench.scoring.predictions import Header, Predictions

HEADER = Header(
    dataset="small",
    split="val",
    input={"threshold": 0.25, "geometry": "letterbox"},
    method="lts",
    variants=["tiny"],
    checkpoint="ab" * 32,
    recipe={"train": {"steps": 3}},
    versions={"torch": "2.6"},
)
SIZE = (4, 6)
MASK = rle.encode(np.tri(*SIZE, dtype=np.bool_))
TEXT = MASK.decode()


def some(*sent_ids: int, header: Header | None = HEADER) -> Predictions:
    peaks = [None if sent_id % 2 else (sent_id % 4, 5) for sent_id in sent_ids]
    return Predictions.build(header, sent_ids, [SIZE] * len(sent_ids), [MASK] * len(sent_ids), peaks)


def same(first: Predictions, second: Predictions) -> bool:
    arrays = ("sent_id", "height", "width", "peak_row", "peak_col")
    equal = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)
    return equal and first.counts == second.counts and first.header == second.header


def columns(**changed: Any) -> dict[str, Any]:
    return {"sent_id": [7, 8], "height": [4, 4], "width": [6, 6], "counts": [TEXT, TEXT], **changed}


def parquet(path: Path, values: dict[str, Any]) -> Path:
    pq.write_table(pa.table(values), path)
    return path


def lines(path: Path, *entries: dict[str, Any] | str) -> Path:
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries))
    return path


def line(sent_id: Any = 7, size: Any = SIZE, counts: Any = TEXT, **more: Any) -> dict[str, Any]:
    return {"sent_id": sent_id, "segmentation": {"size": size, "counts": counts}, **more}


def test_parquet_comes_back_as_it_was_written(tmp_path: Path) -> None:
    predictions_file.write(tmp_path / "new" / "val.parquet", some(3, 2, 9))
    assert same(predictions_file.read(tmp_path / "new" / "val.parquet"), some(3, 2, 9))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["val.parquet"]


def test_the_file_has_the_columns_and_metadata_of_the_format(tmp_path: Path) -> None:
    predictions_file.write(tmp_path / "val.parquet", some(3, 2))
    table = pq.read_table(tmp_path / "val.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "sent_id": "int64",
        "height": "int32",
        "width": "int32",
        "counts": "string",
        "peak_row": "int32",
        "peak_col": "int32",
    }
    assert table["peak_row"].to_pylist() == [None, 2]
    metadata = json.loads(table.schema.metadata[b"risbench"])
    assert metadata["format"] == 1
    assert metadata["input"] == HEADER.input


def test_a_header_that_was_damaged_is_refused(tmp_path: Path) -> None:
    predictions_file.write(tmp_path / "val.parquet", some(3, 2, 9))
    table = pq.read_table(tmp_path / "val.parquet")
    metadata = dict(table.schema.metadata)
    metadata[b"risbench"] = metadata[b"risbench"].replace(b'"val"', b'"wal"')
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "damaged.parquet")
    with pytest.raises(InputError, match="was damaged: its metadata have another hash"):
        predictions_file.read(tmp_path / "damaged.parquet")


def test_json_lines_hold_the_same_without_a_header(tmp_path: Path) -> None:
    path = lines(tmp_path / "val.jsonl", line(3), "", line(2, peak=[2, 5], score=0.5), line(9, peak=None))
    assert same(predictions_file.read(path), some(3, 2, 9, header=None))


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = lines(tmp_path / "val.jsonl", line(3), line(2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert predictions_file.read(path).sent_id.tolist() == [3, 2]


def test_a_file_of_pandas_is_read_whatever_its_number_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(columns(peak_row=[None, 0], peak_col=[None, 5], score=[0.1, 0.2]))
    frame.astype({"height": "int16", "sent_id": "uint32"}).to_parquet(tmp_path / "val.parquet")
    assert same(predictions_file.read(tmp_path / "val.parquet"), some(7, 8, header=None))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()])
def test_columns_of_peaks_may_be_absent_and_counts_may_be_any_text(tmp_path: Path, kind: Any) -> None:
    counts = pa.array([MASK, MASK]).cast(pa.string()).cast(kind)
    predictions = predictions_file.read(parquet(tmp_path / "val.parquet", columns(counts=counts)))
    assert predictions.counts == [MASK, MASK]
    assert predictions.peak_row.tolist() == predictions.peak_col.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sent_id": [7, None]}, "Column 'sent_id' has no value in row 1"),
        ({"sent_id": ["7", "8"]}, "Column 'sent_id' is no column of int64: it holds string"),
        ({"height": [4, 2**40]}, "Column 'height' is no column of int32"),
        ({"height": [4.0, 4.5]}, "Column 'height' is no column of int32"),
        ({"counts": [1, 2]}, "Column 'counts' is no column of string: it holds int64"),
        ({"counts": [b"\xff", MASK]}, "Column 'counts' is no column of string"),
        ({"counts": [TEXT, None]}, "Column 'counts' has no value in row 1"),
        ({"counts": [TEXT, TEXT[:-1]]}, "The mask of sent_id 8 has runs of"),
        ({"counts": [TEXT, "no RLE"]}, "The mask of sent_id 8 is not a compressed RLE string"),
        ({"width": [6, 7]}, "The mask of sent_id 8 has runs of 24 pixels in all, not 4 x 7 = 28"),
        ({"width": [6, -6]}, r"Height or width is not positive: sent_id 8 \(1 in all\)"),
        ({"peak_row": [1, 1], "peak_col": [None, 1]}, "Half a peak: sent_id 7"),
        ({"peak_row": [1, 1]}, "Half a peak: sent_id 7, 8"),
        ({"peak_row": [1, 4], "peak_col": [1, 1]}, "The peak lies outside the mask: sent_id 8"),
        ({"peak_row": [3, 3], "peak_col": [5, 6]}, r"The peak lies outside the mask: sent_id 8 \(1 in all\)"),
        ({"peak_row": [1, -1], "peak_col": [1, -1]}, "The peak lies outside the mask: sent_id 8"),
        ({"peak_row": [1, 0.5], "peak_col": [1, 1]}, "Column 'peak_row' is no column of int32"),
    ],
)
def test_a_defect_of_a_parquet_file_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = parquet(tmp_path / "val.parquet", columns(**changed))
    with pytest.raises(InputError, match=f"val.parquet: {message}"):
        predictions_file.read(path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    values = columns()
    del values["width"]
    with pytest.raises(InputError, match="Column 'width' is missing"):
        predictions_file.read(parquet(tmp_path / "val.parquet", values))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "line 2: Invalid JSON"),
        ("[1]", "line 2: Input should be an object"),
        ('{"sent_id": 8, "sent_id": 9}', "line 2: Invalid JSON: the key 'sent_id' stands twice in one object"),
        ('{"sent_id": NaN}', "line 2: Invalid JSON: NaN is no number of JSON"),
        ('{"a":' * 100_000, "line 2: Invalid JSON: it is nested too deeply"),
        (line(True), "line 2: sent_id: Input should be a valid integer"),
        (line(8.0), "line 2: sent_id: Input should be a valid integer"),
        (line(2**64), "line 2: sent_id: Input should be less than"),
        (line(8, size=[65535, 65535]), "The mask of sent_id 8 has 65535 x 65535 pixels, more than 89,478,485"),
        ({"sent_id": 8}, "line 2: segmentation: Field required"),
        (line("8"), "line 2: sent_id: Input should be a valid integer"),
        (line(8, size=[4]), "line 2: segmentation.size.1: Field required"),
        (line(8, size=[4, 2**31]), "line 2: segmentation.size.1: Input should be less than"),
        (line(8, counts=[3, 21]), "line 2: segmentation.counts: Input should be a valid string"),
        (line(8, peak=[1]), "line 2: peak.1: Field required"),
        (line(8, peak=[-1, -1]), "The peak lies outside the mask: sent_id 8"),
        (line(8, counts="é"), "The mask of sent_id 8 is not a compressed RLE string"),
        (line(8, counts=""), "The mask of sent_id 8 is not a compressed RLE string"),
    ],
)
def test_a_defect_of_json_lines_is_named(tmp_path: Path, entry: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predictions_file.read(lines(tmp_path / "val.jsonl", line(), entry))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"cannot be read \(No such file"),
        (lambda path: path.mkdir(), r"cannot be read \(Is a directory"),
        (lambda path: lines(path, line()), "is not a Parquet file"),
        (lambda path: path.write_bytes(b"PAR1 and nothing more"), "is a broken Parquet file"),
    ],
)
def test_other_files_named_parquet_are_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "val.parquet")
    with pytest.raises(InputError, match=f"val.parquet {message}"):
        predictions_file.read(tmp_path / "val.parquet")


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({**HEADER.model_dump(), "format": 2})])
def test_a_broken_or_newer_header_is_refused(tmp_path: Path, text: str) -> None:
    pq.write_table(pa.table(columns()).replace_schema_metadata({"risbench": text}), tmp_path / "val.parquet")
    with pytest.raises(InputError, match=r"metadata 'risbench' is broken|has format 2, this risbench reads 1"):
        predictions_file.read(tmp_path / "val.parquet")


def test_a_line_that_never_ends_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions_file, "LINE_LIMIT", 1000)
    path = lines(tmp_path / "val.jsonl", line(), line(8, note="x" * 1000))
    with pytest.raises(InputError, match="val.jsonl, line 2 has more than 1,000 bytes: a line holds"):
        predictions_file.read(path)
    monkeypatch.setattr(tables, "MAX_ROWS", 1)
    with pytest.raises(InputError, match="More than 1 predictions are not read"):
        predictions_file.read(lines(path, line(), line(8)))


RECORD = json.dumps({"method": "lts", "protocol": "original", "metrics": {}}, indent=1)
BASELINE = json.dumps({"scores": {}, "protocol": "original"}, indent=1)
KINDS: list[tuple[str | bytes, str, str]] = [
    ("<html>", "a.parquet", "is not a Parquet file, but a web page"),
    ("<html>", "a.jsonl", "is neither Parquet nor JSON Lines, but a web page"),
    ("# Read me", "README.md", "but text that begins with '# Read me'. Give a predictions file; risbench import MASKS"),
    ("sent_id,mask\n", "a.csv", "but text that begins with 'sent_id,mask'"),
    (bytes(100), "a.jsonl", "but a file of zeros"),
    ("{}".encode("utf-16"), "a.jsonl", "but text in UTF-16, as PowerShell writes it. Write it in UTF-8"),
    ("[]", "a.jsonl", "risbench import .*a.jsonl --format coco --output FILE.parquet"),
    ("\ufeff[]", "a.json", "risbench import .*a.json --output FILE.parquet"),
    (RECORD, "a.json", "is a record: give the predictions of its run"),
    (BASELINE, "a.json", "is a baseline, which `risbench check --baseline` reads"),
    (json.dumps({"images": [], "annotations": []}), "a.json", "is an annotation file in COCO's format"),
    (json.dumps({"7": {}}, indent=1), "a.json", "is one JSON object, no JSON Lines: a line holds"),
]


@pytest.mark.parametrize(("content", "name", "message"), KINDS)
def test_another_kind_of_file_is_named_with_what_to_do(
    tmp_path: Path, content: str | bytes, name: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as refusal:
        predictions_file.read(tmp_path / name)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_the_folder_of_a_run_and_its_rows_are_no_predictions(tmp_path: Path) -> None:
    predictions_file.write(tmp_path / "run" / "predictions" / "val-original.parquet", some(3))
    with pytest.raises(InputError, match="is the folder of a run: give one of .*predictions/val-original.parquet"):
        predictions_file.read(tmp_path / "run")
    with pytest.raises(InputError, match="holds the rows of a run, no masks: give the file of this name in predict"):
        predictions_file.read(parquet(tmp_path / "val-original.parquet", {"sent_id": [1], "intersection": [2]}))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match="pipe.jsonl is a device or a pipe"):
        predictions_file.read(tmp_path / "pipe.jsonl")


def test_a_file_of_an_older_version_has_no_hash_of_the_code(tmp_path: Path) -> None:
    older = HEADER.model_dump(mode="json", exclude={"code"})
    pq.write_table(pa.table(columns()).replace_schema_metadata({"risbench": json.dumps(older)}), tmp_path / "a.parquet")
    assert predictions_file.read(tmp_path / "a.parquet").header == HEADER
    twice = json.dumps(older).replace('{"format"', '{"split": "testA", "format"', 1)
    pq.write_table(pa.table(columns()).replace_schema_metadata({"risbench": twice}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="metadata 'risbench' is broken .the key 'split' stands twice"):
        predictions_file.read(tmp_path / "a.parquet")


def flagged(predictions: Predictions, *flags: int) -> Predictions:
    return replace(predictions, no_target=np.array(flags, np.int8))


def test_no_target_flags_come_back_as_they_were_written(tmp_path: Path) -> None:
    predictions_file.write(tmp_path / "val.parquet", flagged(some(3, 2, 9), 1, -1, 0))
    again = predictions_file.read(tmp_path / "val.parquet")
    assert again.no_target is not None and again.no_target.tolist() == [1, -1, 0]
    assert again.predicts_no_target().tolist() == [True, False, False]


def test_a_file_without_flags_has_no_column_for_them(tmp_path: Path) -> None:
    predictions_file.write(tmp_path / "a.parquet", some(3, 2))
    predictions_file.write(tmp_path / "b.parquet", predictions_file.read(tmp_path / "a.parquet"))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_table(tmp_path / "b.parquet").column_names == predictions_file.SCHEMA.names
    predictions_file.write(tmp_path / "b.parquet", flagged(some(3, 2), -1, -1))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    nulls = parquet(tmp_path / "null.parquet", columns(no_target=pa.nulls(2)))
    assert predictions_file.read(nulls).no_target is None


def test_json_lines_may_hold_no_target_flags(tmp_path: Path) -> None:
    path = lines(tmp_path / "val.jsonl", line(1, no_target=True), line(2), line(3, no_target=False))
    flags = predictions_file.read(path).no_target
    assert flags is not None and flags.tolist() == [1, -1, 0]
    with pytest.raises(InputError, match="line 1: no_target: Input should be a valid boolean"):
        predictions_file.read(lines(path, line(1, no_target="yes")))
    with pytest.raises(InputError, match="Column 'no_target' is no column of bool: it holds int64"):
        predictions_file.read(parquet(tmp_path / "val.parquet", columns(no_target=[0, 1])))


def test_largest_probabilities_come_back_as_they_were_written(tmp_path: Path) -> None:
    largest = np.array([0.25, np.nan, 1], np.float32)
    predictions_file.write(tmp_path / "val.parquet", replace(some(1, 2, 3), largest_probability=largest))
    again = predictions_file.read(tmp_path / "val.parquet").largest_probability
    assert again is not None and again.dtype == np.float32 and np.array_equal(again, largest, equal_nan=True)
    predictions_file.write(tmp_path / "old.parquet", some(1, 2, 3))
    assert predictions_file.read(tmp_path / "old.parquet").largest_probability is None
    path = lines(tmp_path / "val.jsonl", line(1, largest_probability=0.5), line(2), line(3, largest_probability=1))
    read = predictions_file.read(path).largest_probability
    assert read is not None and np.array_equal(read, np.array([0.5, np.nan, 1], np.float32), equal_nan=True)


def test_largest_probabilities_that_are_none_are_refused(tmp_path: Path) -> None:
    for value in (1.5, -0.1):
        with pytest.raises(InputError, match="line 1: largest_probability: Input should be"):
            predictions_file.read(lines(tmp_path / "val.jsonl", line(1, largest_probability=value)))
        wrong = parquet(tmp_path / "val.parquet", columns(largest_probability=[0.5, value]))
        with pytest.raises(InputError, match=r"largest_probability is no probability: sent_id \d+ \(1 in all\)"):
            predictions_file.read(wrong)
    with pytest.raises(InputError, match="Column 'largest_probability' is no column of float: it holds string"):
        predictions_file.read(parquet(tmp_path / "val.parquet", columns(largest_probability=["a", "b"])))
