"""Predictions in parts: merging the parts of several processes, and resuming a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from risbench.data import rle
from risbench.scoring import predictions_file
from risbench.scoring.prediction_parts import PredictionParts
from risbench.scoring.predictions import Header, Predictions

HEADER = Header(dataset="small", split="val", input={"threshold": 0.25}, method="lts", checkpoint="ab" * 32)
SIZE = (4, 6)
MASK = rle.encode(np.tri(*SIZE, dtype=np.bool_))


def some(*sent_ids: int) -> Predictions:
    peaks = [None if sent_id % 2 else (sent_id % 4, 5) for sent_id in sent_ids]
    return Predictions.build(HEADER, sent_ids, [SIZE] * len(sent_ids), [MASK] * len(sent_ids), peaks)


def same(first: Predictions, second: Predictions) -> bool:
    arrays = ("sent_id", "height", "width", "peak_row", "peak_col")
    equal = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)
    return equal and first.counts == second.counts and first.header == second.header


def test_parts_with_no_target_flags_merge_with_parts_without(tmp_path: Path) -> None:
    parts = PredictionParts(tmp_path / "parts", HEADER)
    parts.add(0, some(1, 2))
    parts.add(1, replace(some(3), no_target=np.array([1], np.int8)))
    merged = parts.merge(tmp_path / "val.parquet").no_target
    assert merged is not None and merged.tolist() == [-1, -1, 1]


def test_parts_of_two_processes_merge_to_the_whole_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    first, second = PredictionParts(tmp_path / "parts", HEADER), PredictionParts(tmp_path / "parts", HEADER)
    second.add(1, some(2))
    first.add(10, some(9, 4))
    first.add(0, some(3))
    assert first.stored_batches() == second.stored_batches() == {0, 1, 10}
    merged = first.merge(tmp_path / "val.parquet")
    assert same(merged, some(3, 2, 9, 4))
    assert same(predictions_file.read(tmp_path / "val.parquet"), merged)
    assert not (tmp_path / "parts").exists()


def test_a_run_resumes_from_its_parts_and_a_half_written_one_does_not_count(tmp_path: Path) -> None:
    parts = PredictionParts(tmp_path / "parts", HEADER)
    parts.add(0, some(3))
    (tmp_path / "parts" / f".{parts.key}-00000001.parquet.99.tmp").write_bytes(b"PAR1")  # killed while writing
    again = PredictionParts(tmp_path / "parts", HEADER)
    assert again.stored_batches() == {0}
    again.add(1, some(2))
    assert same(again.merge(tmp_path / "val.parquet"), some(3, 2))


def test_parts_under_another_header_are_removed(tmp_path: Path) -> None:
    PredictionParts(tmp_path / "parts", HEADER).add(0, some(3))
    other = PredictionParts(tmp_path / "parts", HEADER.model_copy(update={"checkpoint": "cd" * 32}))
    assert other.stored_batches() == set()
    assert list((tmp_path / "parts").iterdir()) == []
