"""The predictions file: round trips, files of other programs, every defect by name, and parts of a run under way."""

from __future__ import annotations

import json
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
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import predictions
from risbench.scoring.predictions import Header, Parts, Predictions

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
    return predictions.build(header, sent_ids, [SIZE] * len(sent_ids), [MASK] * len(sent_ids), peaks)


def same(one: Predictions, other: Predictions) -> bool:
    arrays = ("sent_id", "height", "width", "peak_row", "peak_col")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    return equal and one.counts == other.counts and one.header == other.header


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
    predictions.write(tmp_path / "new" / "val.parquet", some(3, 2, 9))
    assert same(predictions.read(tmp_path / "new" / "val.parquet"), some(3, 2, 9))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["val.parquet"]


def test_the_file_has_the_columns_and_metadata_of_the_format(tmp_path: Path) -> None:
    predictions.write(tmp_path / "val.parquet", some(3, 2))
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
    about = json.loads(table.schema.metadata[b"risbench"])
    assert about["format"] == 1
    assert about["input"] == HEADER.input


def test_json_lines_hold_the_same_without_a_header(tmp_path: Path) -> None:
    path = lines(tmp_path / "val.jsonl", line(3), "", line(2, peak=[2, 5], score=0.5), line(9, peak=None))
    assert same(predictions.read(path), some(3, 2, 9, header=None))


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = lines(tmp_path / "val.jsonl", line(3), line(2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert predictions.read(path).sent_id.tolist() == [3, 2]


def test_a_file_of_pandas_is_read_whatever_its_number_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(columns(peak_row=[None, 0], peak_col=[None, 5], score=[0.1, 0.2]))
    frame.astype({"height": "int16", "sent_id": "uint32"}).to_parquet(tmp_path / "val.parquet")
    assert same(predictions.read(tmp_path / "val.parquet"), some(7, 8, header=None))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()])
def test_columns_of_peaks_may_be_absent_and_counts_may_be_any_text(tmp_path: Path, kind: Any) -> None:
    counts = pa.array([MASK, MASK]).cast(pa.string()).cast(kind)
    found = predictions.read(parquet(tmp_path / "val.parquet", columns(counts=counts)))
    assert found.counts == [MASK, MASK]
    assert found.peak_row.tolist() == found.peak_col.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("changed", "says"),
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
def test_a_defect_of_a_parquet_file_is_named(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    path = parquet(tmp_path / "val.parquet", columns(**changed))
    with pytest.raises(InputError, match=f"val.parquet: {says}"):
        predictions.read(path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    values = columns()
    del values["width"]
    with pytest.raises(InputError, match="Column 'width' is missing"):
        predictions.read(parquet(tmp_path / "val.parquet", values))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{", "line 2: Invalid JSON"),
        ("[1]", "line 2: Input should be an object"),
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
def test_a_defect_of_json_lines_is_named(tmp_path: Path, entry: dict[str, Any] | str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        predictions.read(lines(tmp_path / "val.jsonl", line(), entry))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, r"cannot be read \(No such file"),
        (lambda path: path.mkdir(), r"cannot be read \(Is a directory"),
        (lambda path: lines(path, line()), "is not a Parquet file"),
        (lambda path: path.write_bytes(b"PAR1 and nothing more"), "is a broken Parquet file"),
    ],
)
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    make(tmp_path / "val.parquet")
    with pytest.raises(InputError, match=f"val.parquet {says}"):
        predictions.read(tmp_path / "val.parquet")


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({**HEADER.model_dump(), "format": 2})])
def test_a_broken_or_newer_header_is_refused(tmp_path: Path, text: str) -> None:
    pq.write_table(pa.table(columns()).replace_schema_metadata({"risbench": text}), tmp_path / "val.parquet")
    with pytest.raises(InputError, match=r"metadata 'risbench' is broken|has format 2, this risbench reads 1"):
        predictions.read(tmp_path / "val.parquet")


def test_predictions_are_brought_into_the_order_of_the_split(small_index: Index) -> None:
    split = small_index.split("val")
    ordered = predictions.in_order(some(*split.sent_id[[2, 0, 3, 1]].tolist()), split)
    assert ordered.sent_id.tolist() == split.sent_id.tolist()
    assert ordered.peak_row.tolist() == [-1 if i % 2 else i % 4 for i in split.sent_id.tolist()]


def test_incomplete_duplicated_and_foreign_predictions_are_refused_by_id(small_index: Index) -> None:
    split = small_index.split("val")
    ids = split.sent_id.tolist()
    with pytest.raises(InputError, match=rf"Predicted more than once: sent_id {ids[1]} \(1 in all\)"):
        predictions.in_order(some(*ids, ids[1]), split)
    with pytest.raises(InputError, match=r"Not in split 'val': sent_id 1, 2, 3, 4, 5, ... \(6 in all\)"):
        predictions.in_order(some(*ids, 6, 5, 4, 3, 2, 1), split)
    with pytest.raises(InputError, match=rf"Without a prediction: sent_id {ids[0]}, {ids[3]} \(2 in all\)"):
        predictions.in_order(some(ids[2], ids[1]), split)


def saying(predicted: Predictions, *said: int) -> Predictions:
    return replace(predicted, no_target=np.array(said, np.int8))


def test_what_answers_say_of_nothing_comes_back_and_is_taken_along(tmp_path: Path) -> None:
    predictions.write(tmp_path / "val.parquet", saying(some(3, 2, 9), 1, -1, 0))
    again = predictions.read(tmp_path / "val.parquet")
    assert again.no_target is not None and again.no_target.tolist() == [1, -1, 0]
    assert again.says_nothing().tolist() == [True, False, False]
    taken = again.take(np.array([2, 0]))
    assert taken.no_target is not None and taken.no_target.tolist() == [0, 1]


def test_a_file_that_never_says_it_has_no_column_for_it(tmp_path: Path) -> None:
    predictions.write(tmp_path / "a.parquet", some(3, 2))
    predictions.write(tmp_path / "b.parquet", predictions.read(tmp_path / "a.parquet"))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_table(tmp_path / "b.parquet").column_names == predictions.SCHEMA.names
    predictions.write(tmp_path / "b.parquet", saying(some(3, 2), -1, -1))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    mute = parquet(tmp_path / "null.parquet", columns(no_target=pa.nulls(2)))
    assert predictions.read(mute).no_target is None


def test_where_nobody_says_it_an_empty_mask_does() -> None:
    empty = rle.encode(np.zeros(SIZE, bool))
    found = predictions.build(None, [1, 2, 3], [SIZE] * 3, [empty, MASK, empty], [None] * 3)
    assert found.says_nothing().tolist() == [True, False, True]
    said = predictions.build(None, [1, 2, 3], [SIZE] * 3, [empty, MASK, empty], [None] * 3, [False, True, None])
    assert said.says_nothing().tolist() == [False, True, True]


def test_json_lines_may_say_it(tmp_path: Path) -> None:
    path = lines(tmp_path / "val.jsonl", line(1, no_target=True), line(2), line(3, no_target=False))
    found = predictions.read(path).no_target
    assert found is not None and found.tolist() == [1, -1, 0]
    with pytest.raises(InputError, match="line 1: no_target: Input should be a valid boolean"):
        predictions.read(lines(path, line(1, no_target="yes")))
    with pytest.raises(InputError, match="Column 'no_target' is no column of bool: it holds int64"):
        predictions.read(parquet(tmp_path / "val.parquet", columns(no_target=[0, 1])))


def test_parts_that_say_it_merge_with_parts_that_do_not(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", HEADER)
    parts.add(0, some(1, 2))
    parts.add(1, saying(some(3), 1))
    merged = parts.merge(tmp_path / "val.parquet").no_target
    assert merged is not None and merged.tolist() == [-1, -1, 1]


def test_parts_of_two_processes_merge_to_the_whole_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    first, second = Parts(tmp_path / "parts", HEADER), Parts(tmp_path / "parts", HEADER)
    second.add(1, some(2))
    first.add(10, some(9, 4))
    first.add(0, some(3))
    assert first.done() == second.done() == {0, 1, 10}
    merged = first.merge(tmp_path / "val.parquet")
    assert same(merged, some(3, 2, 9, 4))
    assert same(predictions.read(tmp_path / "val.parquet"), merged)
    assert not (tmp_path / "parts").exists()


def test_a_run_resumes_from_its_parts_and_a_half_written_one_does_not_count(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", HEADER)
    parts.add(0, some(3))
    (tmp_path / "parts" / f".{parts.key}-00000001.parquet.99.tmp").write_bytes(b"PAR1")  # killed while writing
    again = Parts(tmp_path / "parts", HEADER)
    assert again.done() == {0}
    again.add(1, some(2))
    assert same(again.merge(tmp_path / "val.parquet"), some(3, 2))


def test_parts_under_another_header_are_removed(tmp_path: Path) -> None:
    Parts(tmp_path / "parts", HEADER).add(0, some(3))
    other = Parts(tmp_path / "parts", HEADER.model_copy(update={"checkpoint": "cd" * 32}))
    assert other.done() == set()
    assert list((tmp_path / "parts").iterdir()) == []
