"""Predictions in parts: merging the parts of several processes, resuming a run, and parts that are not to be used."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from risbench.data import rle
from risbench.errors import InputError
from risbench.scoring import prediction_parts, predictions_file
from risbench.scoring.prediction_parts import PredictionParts
from risbench.scoring.predictions import Header, Predictions

INPUT = {"threshold": 0.25, "border": (123, 117, 104)}  # a list when it is read again
HEADER = Header(dataset="small", split="val", input=INPUT, method="lts", checkpoint="ab" * 32)
SIZE = (4, 6)
MASK = rle.encode(np.tri(*SIZE, dtype=np.bool_))
BATCHES = ([3], [2], [9, 4])


def some(*sent_ids: int, header: Header = HEADER) -> Predictions:
    peaks = [None if sent_id % 2 else (sent_id % 4, 5) for sent_id in sent_ids]
    return Predictions.build(header, sent_ids, [SIZE] * len(sent_ids), [MASK] * len(sent_ids), peaks)


def opened(
    folder: Path, header: Header = HEADER, batches: tuple[list[int], ...] = BATCHES, origin: str = ""
) -> PredictionParts:
    parts = PredictionParts(folder, header, [np.array(batch, np.int64) for batch in batches], origin)
    parts.prepare()
    return parts


def filled(folder: Path) -> PredictionParts:
    """The parts of two processes: two batches and one."""
    first, second = opened(folder), opened(folder)
    for parts, number in ((first, 0), (first, 1), (second, 2)):
        parts.add(number, some(*BATCHES[number]))
    first.store()
    second.store()
    return first


def stored(folder: Path) -> list[str]:
    """The numbers in the names of the parts."""
    return sorted(path.stem.partition("-")[2] for path in folder.iterdir())


def same(first: Predictions, second: Predictions) -> bool:
    arrays = ("sent_id", "height", "width", "peak_row", "peak_col")
    equal = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)
    headers = [predictions.header and predictions.header.model_dump_json() for predictions in (first, second)]
    return equal and first.counts == second.counts and headers[0] == headers[1]


def test_parts_with_no_target_flags_merge_with_parts_without(tmp_path: Path) -> None:
    parts = filled(tmp_path / "parts")
    parts.add(1, replace(some(2), no_target=np.array([1], np.int8)))
    parts.store()
    merged = parts.merge(tmp_path / "val.parquet").no_target
    assert merged is not None and merged.tolist() == [-1, 1, -1, -1]


def test_parts_of_two_processes_merge_to_the_whole_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "parts"), opened(tmp_path / "parts")
    second.add(1, some(2))
    first.add(2, some(9, 4))
    first.add(0, some(3))
    first.store()
    second.store()
    assert stored(tmp_path / "parts") == ["00000001", "00000002"]  # one file for each
    assert first.stored_batches() == second.stored_batches() == {0, 1, 2}
    merged = first.merge(tmp_path / "val.parquet")
    assert same(merged, some(3, 2, 9, 4))
    assert same(predictions_file.read(tmp_path / "val.parquet"), merged)
    assert not (tmp_path / "parts").exists()


def test_a_run_resumes_from_its_parts_and_a_half_written_one_does_not_count(tmp_path: Path) -> None:
    parts = opened(tmp_path / "parts", batches=([3], [2]))
    parts.add(0, some(3))
    parts.store()
    (tmp_path / "parts" / f".{parts.key}-00000001.parquet.99.tmp").write_bytes(b"PAR1")  # killed while writing
    again = opened(tmp_path / "parts", batches=([3], [2]))
    assert again.stored_batches() == {0}
    again.add(1, some(2))
    again.store()
    assert same(again.merge(tmp_path / "val.parquet"), some(3, 2))


@pytest.mark.parametrize("changed", ["header", "origin", "batches"])
def test_parts_made_of_something_else_are_removed(tmp_path: Path, changed: str) -> None:
    filled(tmp_path / "parts")
    other = {
        "header": lambda: opened(tmp_path / "parts", header=HEADER.model_copy(update={"code": "cd" * 32})),
        "origin": lambda: opened(tmp_path / "parts", origin="other images"),
        "batches": lambda: opened(tmp_path / "parts", batches=([3, 2], [9, 4])),
    }[changed]()
    assert other.stored_batches() == set()
    assert list((tmp_path / "parts").iterdir()) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(MASK)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),  # as a power cut leaves a file that was not synced
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        flip,
        lambda path: predictions_file.write(path, some(4, 9)),
        lambda path: predictions_file.write(path, some(9)),
        lambda path: predictions_file.write(path, some(9, 4, 9)),
        lambda path: predictions_file.write(path, some(9, 4, 8)),
        lambda path: predictions_file.write(path, some(3, 9, 4)),
        lambda path: predictions_file.write(path, some()),
        lambda path: predictions_file.write(path, some(9, 4, header=HEADER.model_copy(update={"split": "testA"}))),
    ],
)
def test_a_damaged_or_foreign_part_is_made_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    parts = filled(tmp_path / "parts")
    damage(tmp_path / "parts" / f"{parts.key}-00000002.parquet")
    with pytest.raises(InputError, match=r"Batch 3 of 3 is missing or damaged in .*parts: .* Repeat the command"):
        parts.merge(tmp_path / "val.parquet")
    assert not (tmp_path / "val.parquet").exists()
    again = opened(tmp_path / "parts")
    assert again.stored_batches() == {0, 1}
    again.add(2, some(9, 4))
    again.store()
    assert same(again.merge(tmp_path / "val.parquet"), some(3, 2, 9, 4))


def test_a_missing_batch_is_refused_and_a_batch_of_no_number_is_left_out(tmp_path: Path) -> None:
    parts = filled(tmp_path / "parts")
    shutil.copy(
        tmp_path / "parts" / f"{parts.key}-00000000.parquet", tmp_path / "parts" / f"{parts.key}-00000007.parquet"
    )
    assert same(parts.merge(tmp_path / "val.parquet"), some(3, 2, 9, 4))
    parts = filled(tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts")
    with pytest.raises(InputError, match="Batch 1 of 3 is missing"):
        parts.merge(tmp_path / "other.parquet")


def test_a_process_has_one_file_however_many_its_batches_are_and_resuming_adds_one(tmp_path: Path) -> None:
    batches = tuple([number] for number in range(1, 41))
    for processes, upto in ((3, 20), (2, 40)):
        rooms = [opened(tmp_path / "parts", batches=batches) for _ in range(processes)]
        numbers = [number for number in range(upto) if number not in rooms[0].stored_batches()]
        for number in numbers:
            rooms[number % processes].add(number, some(number + 1))
            rooms[number % processes].store()
    assert len(stored(tmp_path / "parts")) == 3 + 2
    assert same(rooms[0].merge(tmp_path / "val.parquet"), some(*range(1, 41)))


@pytest.mark.parametrize(
    ("seconds", "times"),
    [(1.0, [1.5, 3.0, 60.0, 63.5, 67.0]), (math.inf, [])],  # the last ones a twentieth of the time apart
)
def test_what_was_added_is_stored_every_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, times: list[float]
) -> None:
    now = [0.0]
    monkeypatch.setattr(prediction_parts, "time", SimpleNamespace(monotonic=lambda: now[0]))
    parts = PredictionParts(tmp_path / "parts", HEADER, [np.array([n]) for n in range(1, 99)], "", seconds)
    parts.prepare()
    written, total = [], 0
    for number, now[0] in enumerate([0.0, 0.5, 1.5, 2.0, 3.0, 60.0, 61.0, 62.5, 63.5, 66.0, 67.0]):
        parts.add(number, some(number + 1))
        written += [now[0]] if len(parts.stored_batches()) > total else []
        total = len(parts.stored_batches())
    assert written == times
    parts.store()
    assert parts.stored_batches() == set(range(11)) and len(stored(tmp_path / "parts")) == 1


def test_files_of_the_user_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "my-table.parquet").write_text("mine")
    filled(tmp_path / "parts").merge(tmp_path / "val.parquet")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["my-table.parquet"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file cannot be written"):
        opened(tmp_path / "file")


def test_the_answers_of_several_processes_are_gathered_in_order(tmp_path: Path) -> None:
    """Two processes: each adds its batches to a part of its own, and the main process joins them."""
    ours, other = (opened(tmp_path / "parts", batches=([1], [2], [3], [4])) for _ in range(2))
    for number in range(4):
        answers, largest = np.array([number % 3 == 0], np.int8), np.array([number / 8], np.float32)
        answered = replace(some(number + 1), no_target=answers, largest_probability=largest)
        (other if number % 2 else ours).add(number, answered)
    ours.store()
    other.store()
    merged = ours.merge(tmp_path / "val.parquet")
    assert merged.no_target is not None and merged.no_target.tolist() == [1, 0, 0, 1]
    assert merged.largest_probability is not None and merged.largest_probability.tolist() == [0, 0.125, 0.25, 0.375]
