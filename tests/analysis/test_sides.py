"""The sides of a comparison: whatever names a run gives the same rows, and what is not alike is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from risbench.analysis.run_rows import RunOptions
from risbench.analysis.sides import expression_texts, open_sides, short_names
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import predictions_file, protocol, record, references


@pytest.fixture
def run(tmp_path: Path, small_index: Index) -> Callable[..., Path]:
    """Make the folder of a run of a floor."""

    def make(name: str, seed: int = 0, splits: str = "val testA", protocol_name: str = "original") -> Path:
        folder = tmp_path / f"{name}-{seed}"
        for split in splits.split():
            chosen = protocol.load(protocol_name)
            predictions = references.predict(name, small_index, split, seed, chosen)
            predictions_file.write(folder / "predictions" / f"{split}-{protocol_name}.parquet", predictions)
            record.score_and_write(folder, predictions, small_index, split, chosen, seed=seed)
        return folder

    return make


Run = Callable[..., Path]


def test_a_folder_a_file_of_rows_and_a_predictions_file_are_the_same_run(
    run: Run, small_root: Path, small_card: Path
) -> None:
    folder = run("random-object")
    files = [folder / kind / "val-original.parquet" for kind in ("rows", "predictions")]
    options = RunOptions(dataset=str(small_card), data_root=str(small_root))
    opened = [side.runs[0] for side in open_sides([str(folder), *map(str, files)], options)]
    for other in opened[1:]:
        known = other.rows.columns  # a predictions file is scored without boundaries
        pd.testing.assert_frame_equal(opened[0].rows[known], other.rows)
        assert {"intersection", "union"} <= {*known}
        assert (other.dataset, other.split, other.protocol) == ("small", "val", "original")
        assert other.method == "reference/random-object"
    assert opened[0].rows["sent_id"].is_monotonic_increasing


def test_rows_without_a_record_are_of_what_their_name_says(run: Run, tmp_path: Path) -> None:
    rows = run("whole-image", protocol_name="lts") / "rows" / "testA-lts.parquet"
    named, nameless = tmp_path / "testA-lts.parquet", tmp_path / "mine.parquet"
    for copy in (named, nameless):
        shutil.copy(rows, copy)
    (side,) = open_sides([str(named)], RunOptions())
    assert (side.runs[0].dataset, side.runs[0].split, side.runs[0].protocol) == ("", "testA", "lts")
    (side,) = open_sides([str(nameless)], RunOptions(protocol="lts"))
    assert (side.runs[0].split, side.runs[0].protocol) == ("", "lts")
    with pytest.raises(InputError, match="The protocol of .*mine.parquet is not known: give --protocol"):
        open_sides([str(nameless)], RunOptions())


def test_folders_are_compared_on_val_or_the_first_split_that_all_have(run: Run) -> None:
    both, one = str(run("whole-image")), str(run("random-object", splits="testB testA"))
    assert {side.runs[0].split for side in open_sides([both, both], RunOptions())} == {"val"}
    assert {side.runs[0].split for side in open_sides([both, one], RunOptions())} == {"testA"}
    assert {side.runs[0].split for side in open_sides([both, both], RunOptions(split="testA"))} == {"testA"}


def test_seeds_of_one_method_are_one_side(run: Run) -> None:
    seeds = ",".join(str(run("random-object", seed)) for seed in range(3))
    first, second = open_sides([seeds, str(run("whole-image"))], RunOptions())
    assert [opened.record.seed for opened in first.runs if opened.record] == [0, 1, 2]
    assert first.description().startswith("A: reference/random-object; seed 0, 1, 2; ")
    assert (second.name, len(second.runs)) == ("B", 1)


def test_the_text_of_expressions_is_that_of_the_annotation_file(
    run: Run, small_root: Path, small_card: Path, small_index: Index
) -> None:
    first = open_sides([str(run("whole-image"))], RunOptions())[0].runs[0]
    assert expression_texts(first, RunOptions()) == {}
    split = small_index.split("val")
    texts = expression_texts(first, RunOptions(dataset=str(small_card), data_root=str(small_root)))
    assert texts == dict(zip(split.sent_id.tolist(), split.raw, strict=True))
    with pytest.raises(InputError, match="is of small, not of mini"):
        expression_texts(first, RunOptions(dataset="mini"))


def changed(file: Path, name: str, value: int) -> Path:
    """A copy of rows in which one number of the first expression is another."""
    rows = pd.read_parquet(file)
    rows.loc[0, ["true_area", "intersection"] if name == "true_area" else name] = value  # of the whole image
    copy = file.parents[2] / "changed" / file.name
    copy.parent.mkdir(exist_ok=True)
    rows.to_parquet(copy)
    return copy


def test_other_expressions_images_and_truths_are_refused_by_sent_id(run: Run) -> None:
    file = run("whole-image") / "rows" / "val-original.parquet"
    first = int(pd.read_parquet(file)["sent_id"][0])
    for name, says in (
        ("sent_id", f"only: sent_id 3, {first} \\(2 in all\\)"),
        ("image_id", f"another image .*: sent_id {first} \\(1 in all\\)"),
        ("true_area", f"another ground truth .*: sent_id {first} \\(1 in all\\)"),
    ):
        with pytest.raises(InputError, match=says):
            open_sides([str(file), str(changed(file, name, 3))], RunOptions())


IMPOSSIBLE: list[dict[str, int]] = [
    {"intersection": -1},
    {"intersection": 10**6},
    {"union": 1},
    {"predicted_area": 0},
    {"peak_hit": 7},
    {"boundary_intersection": 10**9},
    {"boundary_intersection": -1},
    {"boundary_union": 10**9},
    {"boundary_intersection": 5, "boundary_union": 4},
    {"predicted_area": 10**10, "union": 10**10},
    {"predicted_area": 2**62, "true_area": 2**62, "intersection": 2**62, "union": 2**62},
    {"true_area": 0, "intersection": 0, "union": 33 * 47, "peak_hit": 1},
]


@pytest.mark.parametrize("values", IMPOSSIBLE, ids=str)
def test_impossible_counts_are_refused(run: Run, values: dict[str, int]) -> None:
    file = run("whole-image") / "rows" / "val-original.parquet"
    rows = pd.read_parquet(file)
    rows.loc[0, [*values]] = [*values.values()]
    rows.to_parquet(file.parents[1] / file.name)
    first = int(rows["sent_id"][0])
    with pytest.raises(InputError, match=f"Impossible counts in .*: sent_id {first} \\(1 in all\\). Give rows that"):
        open_sides([str(file.parents[1] / file.name)], RunOptions())


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("union", ["7"] * 4),
        ("peak_hit", [1.0] * 4),
        ("sent_id", [None, 1, 2, 3]),
        ("image_id", [True] * 4),
        ("boundary_union", ["many"] * 4),
        ("intersection", np.full(4, 2**64 - 1, np.uint64)),
    ],
)
def test_rows_of_other_types_are_refused(run: Run, name: str, column: Any) -> None:
    file = run("whole-image") / "rows" / "val-original.parquet"
    rows = pd.read_parquet(file)
    assert len(rows) == 4
    rows[name] = column
    rows.to_parquet(file)
    with pytest.raises(InputError, match=f"has no whole numbers as {name}: give rows of a run"):
        open_sides([str(file)], RunOptions())


def test_rows_and_a_record_of_two_runs_are_refused(run: Run) -> None:
    one, other = (run(name) / "rows" / "val-original.parquet" for name in ("whole-image", "largest-object"))
    rows = pd.read_parquet(one)
    shutil.copy(other, one)
    with pytest.raises(InputError, match="gives oIoU .*, its record says .*: copy both from one run again"):
        open_sides([str(one)], RunOptions())
    rows.iloc[:3].to_parquet(one)
    with pytest.raises(InputError, match="has 3 rows, its record 4: copy both from one run again"):
        open_sides([str(one)], RunOptions())


def test_networks_and_repeated_runs_are_no_seeds_of_one_side(run: Run, small_root: Path, small_card: Path) -> None:
    first, other = run("whole-image"), run("random-object")
    answers = [folder / "predictions" / "val-original.parquet" for folder in (first, other)]
    with pytest.raises(InputError, match="of reference/random-object and reference/whole-image, not one method's"):
        open_sides([",".join(map(str, answers))], RunOptions(dataset=str(small_card), data_root=str(small_root)))
    with pytest.raises(InputError, match="stands twice in one side"):
        open_sides([f"{first},{first}"], RunOptions())


def test_other_splits_and_protocols_are_refused(run: Run) -> None:
    one, other = run("whole-image"), run("random-object", protocol_name="lts")
    val, test, lts = (
        one / "rows/val-original.parquet",
        one / "rows/testA-original.parquet",
        other / "rows/val-lts.parquet",
    )
    for files, says in (
        ((val, test), "is of split 'val', .* of 'testA'"),
        ((val, lts), "is of protocol 'original', .* of 'lts'"),
        (
            (one, other),
            "No split has rows under 'original' in all runs: .* testA-original, val-original; .* testA-lts, ",
        ),
        ((one, lts), "is of protocol 'lts', not 'original': give --protocol lts"),
    ):
        with pytest.raises(InputError, match=says):
            open_sides([str(file) for file in files], RunOptions())


def test_a_side_is_one_method_and_no_seed_twice(run: Run) -> None:
    one, other = run("random-object"), run("whole-image")
    copy = shutil.copytree(one, one.with_name("copy"))
    for runs in ((one, other), (one, copy)):
        with pytest.raises(InputError, match="not one method's with different seeds"):
            open_sides([",".join(map(str, runs))], RunOptions())


def test_what_is_no_run_is_refused(run: Run, tmp_path: Path) -> None:
    folder = run("whole-image")
    text, table, broken = (tmp_path / name for name in ("a.parquet", "val-original.parquet", "b.parquet"))
    text.write_text("no table")
    rows = pd.read_parquet(folder / "rows/val-original.parquet")
    rows.drop(columns="union").to_parquet(table)
    broken.write_bytes((folder / "rows/val-original.parquet").read_bytes()[:200])
    for argument, says in (
        (",", "',' names no run"),
        ("nowhere", "nowhere does not exist"),
        (str(tmp_path), "has no rows"),
        (str(text), "not a Parquet file"),
        (str(broken), "broken Parquet file"),
        (str(table), "has no whole numbers as union"),
        (str(folder / "predictions" / "val-original.parquet"), "small"),  # no data set of that name is at hand
    ):
        with pytest.raises(InputError, match=says):
            open_sides([argument], RunOptions())
    with pytest.raises(InputError, match="has no rows of testB under 'original', but testA-original, val-original"):
        open_sides([str(folder)], RunOptions(split="testB"))
    pd.concat([rows, rows]).to_parquet(table)
    with pytest.raises(InputError, match=f"Twice in {re.escape(str(table))}: sent_id "):
        open_sides([str(table)], RunOptions())


def test_rows_of_a_protocol_with_crowds_say_which_rows_are_crowds(run: Run, tmp_path: Path) -> None:
    options = RunOptions(split="val", protocol="seqtr")
    folder = run("largest-object", protocol_name="seqtr")
    (side,) = open_sides([str(folder)], options)
    assert side.runs[0].rows["crowd"].tolist() == [0, 0, 0, 0]
    file = folder / "rows" / "val-seqtr.parquet"
    pd.read_parquet(file).drop(columns="crowd").to_parquet(file)
    with pytest.raises(InputError, match="does not have 0 or 1 as crowd, which 'seqtr' needs: score again under it"):
        open_sides([str(folder)], options)


def test_sides_are_called_by_what_tells_them_apart(run: Run, tmp_path: Path) -> None:
    options = RunOptions(split="val", protocol="original")
    floors = [str(run(name)) for name in ("whole-image", "largest-object")]
    assert short_names(open_sides(floors, options)) == {"A": "reference/whole-image", "B": "reference/largest-object"}
    seeds = [str(run("random-object", seed)) for seed in (0, 1, 2)]
    alike = open_sides([seeds[0], ",".join(seeds[1:])], options)
    assert short_names(alike) == {"A": "random-object-0", "B": "random-object-1 and 1 more"}
    assert short_names(open_sides([seeds[0], seeds[0]], options)) == {"A": "", "B": ""}


def test_variants_are_named_once(run: Run) -> None:
    folders = [run("random-object", seed) for seed in (0, 1)]
    for folder, variants in zip(folders, (["tiny"], ["tiny", "masks-0"]), strict=True):
        file = folder / "records" / "val-original.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"variants": variants}))
    sides = open_sides([str(folder) for folder in folders], RunOptions(split="val", protocol="original"))
    assert short_names(sides) == {"A": "reference/random-object tiny", "B": "reference/random-object tiny masks-0"}
