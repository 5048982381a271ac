"""Explaining a difference: steps worked by hand, sums that are exact, and what cannot be separated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from risbench.analysis.endpoints import Endpoint, read_endpoints
from risbench.analysis.explain import KNOBS, Explanation, Step, explain, explanation_table, find_steps
from risbench.cli.app import app
from risbench.data import rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import metrics, predictions_file, protocol, record, references
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.protocol import InputHalf, Protocol, ScoreHalf
from risbench.scoring.score import score_predictions

ORIGINAL, LAVT, TRAIN = (protocol.load(name) for name in ("original", "lavt", "lavt-train"))
Explain = Callable[..., Explanation]


def under(**score_half: object) -> Protocol:
    return Protocol(name="made up", source="", input=InputHalf(), score=ScoreHalf.model_validate(score_half))


def perfect(index: Index, split: str) -> Predictions:
    rows = index.split(split)
    sizes = list(zip(rows.height.tolist(), rows.width.tolist(), strict=True))
    counts = [index.ground_truth(ann_id, "union") for ann_id in rows.ann_id.tolist()]
    return Predictions.build(None, rows.sent_id.tolist(), sizes, counts, [None] * len(rows))


def kept(folder: Path, predictions: Predictions, index: Index, split: str, under: Protocol) -> Path:
    """A run with one record and its predictions; return the record."""
    predictions_file.write(folder / "predictions" / f"{split}-{under.name}.parquet", predictions)
    record.score_and_write(folder, predictions, index, split, under, seed=0)
    return folder / "records" / f"{split}-{under.name}.json"


@pytest.fixture
def run_explain(small_root: Path, small_card: Path) -> Explain:
    """Explain two endpoints on the small data set."""

    def explained(endpoints: tuple[Endpoint, Endpoint], split: str = "") -> Explanation:
        return explain(*endpoints, str(small_card), split, str(small_root), False)

    return explained


@pytest.fixture
def runs(small_index: Index, tmp_path: Path) -> tuple[Path, Path]:
    """Records of one oracle under `original` and under `lavt`, each with predictions of its own size."""
    both = [references.predict("oracle-8", small_index, "testA", protocol=chosen) for chosen in (ORIGINAL, LAVT)]
    first, second = (
        kept(tmp_path / chosen.name, predictions, small_index, "testA", chosen)
        for chosen, predictions in zip((ORIGINAL, LAVT), both, strict=True)
    )
    return first, second


def names(explanation: Explanation) -> list[str]:
    return [step.what for step in explanation.steps]


def values(explanation: Explanation) -> list[float]:
    return [step.value for step in explanation.steps]


def test_every_knob_of_the_score_half_has_its_place_in_the_order() -> None:
    assert set(KNOBS) == set(ScoreHalf.model_fields) - {"mask_resize"}  # which has one value


def test_knobs_are_turned_one_at_a_time_to_the_values_worked_by_hand(small_index: Index, run_explain: Explain) -> None:
    """Three boxes of 600, 600 and 420 pixels share 160, 84 and 64 in pairs and 24 all three; two expressions mean them.

    Their union is 1336, exactly one covers 1076. The third expression means 225 pixels. At 32 x 32 nearest neighbour
    takes 8 x 8 of these, and a quarter of every other area.
    """
    end = under(ground_truth="once", scored_at=(32, 32), at_least=">", empty_union=1, headline="mIoU")
    predictions = perfect(small_index, "testA")
    explanation = run_explain((Endpoint("A", ORIGINAL, predictions), Endpoint("B", end, predictions)), "testA")
    assert [(step.what, step.before, step.after) for step in explanation.steps] == [
        ("A", "", "original"),
        ("ground truth", "union", "once"),
        ("size", "original", "32 x 32"),
        ("comparison", ">=", ">"),
        ("empty union", "0", "1"),
        ("metric", "oIoU", "mIoU"),
    ]
    whole, once, small = 100.0, 100 * (2 * 1076 + 225) / (2 * 1336 + 225), 100 * (2 * 269 + 64) / (2 * 334 + 64)
    assert values(explanation) == [whole, once, small, small, small, pytest.approx(100 * (2 * 269 / 334 + 1) / 3)]
    assert [step.metric for step in explanation.steps] == ["oIoU"] * 5 + ["mIoU"]


def test_an_empty_union_moves_the_mean_alone() -> None:
    rows = pd.DataFrame({"intersection": [0, 5, 9], "union": [0, 10, 10], "peak_hit": -1})

    def measure(endpoint: Endpoint, half: ScoreHalf) -> float:
        return metrics.compute(metrics.Sums.from_rows(rows, half))[half.headline] or 0.0

    nothing = Predictions.build(None, [], [], [], [])

    def walked(**end: object) -> list[float]:
        return values(find_steps(Endpoint("", under(), nothing), Endpoint("", under(**end), nothing), measure))

    assert walked(empty_union=1, headline="mIoU") == [70, 70, pytest.approx(80)]
    assert walked(empty_union="nan", headline="mIoU") == [70, 70, pytest.approx(70)]
    assert walked(headline="mIoU") == [70, pytest.approx(140 / 3)]


def test_two_records_differ_by_the_score_half_and_by_the_predictions(
    small_index: Index, run_explain: Explain, runs: tuple[Path, Path]
) -> None:
    explanation = run_explain(read_endpoints(*runs, ""))
    first, second = (record.read(path).metrics["oIoU"] for path in runs)
    predictions = references.predict("oracle-8", small_index, "testA")
    once = ORIGINAL.model_copy(update={"score": ScoreHalf(ground_truth="once")})
    between = [score_predictions(predictions, small_index, "testA", chosen).summary["oIoU"] for chosen in (once, LAVT)]
    assert names(explanation) == ["A", "ground truth", "size", "input half"]
    assert values(explanation) == [first, *between, second]
    assert any("under the score half of lavt" in note for note in explanation.notes)


def test_masks_of_a_networks_size_are_exchanged_before_the_knobs_turn(
    small_index: Index, run_explain: Explain, runs: tuple[Path, Path]
) -> None:
    explanation = run_explain(read_endpoints(runs[1], runs[0], ""))
    forth = run_explain(read_endpoints(*runs, ""))
    assert names(explanation) == ["A", "input half", "ground truth", "size"]
    union = LAVT.model_copy(update={"score": LAVT.score.model_copy(update={"ground_truth": "union"})})
    resized = score_predictions(references.predict("oracle-8", small_index, "testA"), small_index, "testA", union)
    assert values(explanation) == [values(forth)[3], values(forth)[2], resized.summary["oIoU"], values(forth)[0]]
    assert any("cannot be scored at every step" in note and "480 x 480" in note for note in explanation.notes)


def test_without_the_predictions_of_one_side_what_is_left_is_not_separated(
    run_explain: Explain, runs: tuple[Path, Path]
) -> None:
    whole = run_explain(read_endpoints(*runs, ""))
    (runs[1].parent.parent / "predictions" / "testA-lavt.parquet").unlink()
    explanation = run_explain(read_endpoints(*runs, ""))
    assert names(explanation) == ["A", "ground truth", "size", "not separated"]
    assert values(explanation) == values(whole)
    back = run_explain(read_endpoints(runs[1], runs[0], ""))
    assert names(back) == ["A", "not separated", "ground truth", "size"]
    assert any("which needs its predictions" in note for note in back.notes)


def test_without_any_predictions_there_is_one_line_and_no_data_is_needed(runs: tuple[Path, Path]) -> None:
    for path in runs:
        (path.parent.parent / "predictions" / f"{path.stem}.parquet").unlink()
    explanation = explain(*read_endpoints(*runs, ""), "", "", "nowhere", False)
    assert names(explanation) == ["A", "not separated"]
    assert values(explanation) == [record.read(path).metrics["oIoU"] for path in runs]
    assert "The input half cannot be separated from the score half." in explanation.notes


def test_a_record_that_its_predictions_contradict_is_refused(run_explain: Explain, runs: tuple[Path, Path]) -> None:
    content = json.loads(runs[0].read_text())
    content["metrics"]["oIoU"] = 12.5
    runs[0].write_text(json.dumps(content))
    with pytest.raises(InputError, match="the record says 12.5, its predictions score"):
        run_explain(read_endpoints(*runs, ""))


def test_one_file_under_two_protocols_keeps_its_input_half(
    small_index: Index, run_explain: Explain, tmp_path: Path
) -> None:
    predictions = references.predict("random-object", small_index, "train")
    predictions_file.write(tmp_path / "train.parquet", predictions)
    explanation = run_explain(read_endpoints(tmp_path / "train.parquet", None, "original,lavt"))
    ends = [
        score_predictions(predictions, small_index, "train", chosen).summary["oIoU"]
        for chosen in (ORIGINAL, LAVT, TRAIN)
    ]
    assert names(explanation) == ["A", "ground truth", "size"]
    assert (values(explanation)[0], values(explanation)[2]) == (ends[0], ends[1])
    assert any("what that of lavt changes cannot be separated" in note for note in explanation.notes)

    drawn = run_explain(read_endpoints(tmp_path / "train.parquet", None, "lavt,lavt-train"))
    assert (names(drawn), values(drawn)) == (["A", "sentences"], ends[1:])
    assert not any("cannot be separated" in note for note in drawn.notes)


def test_two_files_under_one_protocol_differ_by_their_predictions(
    small_index: Index, run_explain: Explain, tmp_path: Path
) -> None:
    for name in ("whole-image", "oracle-8"):
        predictions_file.write(tmp_path / f"{name}.parquet", references.predict(name, small_index, "val"))
    both = read_endpoints(tmp_path / "whole-image.parquet", tmp_path / "oracle-8.parquet", "lts,lts")
    explanation = run_explain(both)
    assert names(explanation) == ["A", "predictions"]
    assert any("method reference/whole-image to reference/oracle-8" in note for note in explanation.notes)


def test_the_command_explains_a_file_whose_masks_any_program_wrote(
    small_index: Index, small_root: Path, small_card: Path, tmp_path: Path
) -> None:
    predictions = perfect(small_index, "testA")
    predictions_file.write(tmp_path / "own.parquet", predictions)
    where = ["--dataset", str(small_card), "--data-root", str(small_root), "--split", "testA"]
    command = ["explain", str(tmp_path / "own.parquet"), *where, "--protocol", "original,zs-lavt", "--format"]
    (table,) = json.loads(CliRunner().invoke(app, [*command, "json"]).stdout)["tables"]
    assert [row["step"] for row in table["rows"]] == ["A", "ground truth", "empty union", "B minus A"]
    assert table["rows"][-1]["change"] == pytest.approx(100 * (2377 / 2897 - 1), rel=1e-14)
    out = re.sub(" +", " ", CliRunner().invoke(app, [*command, "markdown"]).stdout)
    assert "| ground truth | union | once | oIoU | 82.05 | -17.95 |" in out
    assert any("what that of zs-lavt changes cannot be separated" in note for note in table["notes"])


def test_an_explanation_on_a_part_of_the_data_says_so(
    small_index: Index, small_root: Path, small_card: Path, tmp_path: Path
) -> None:
    larger = small_card.read_text().replace("val = { images = 1, refs = 2, ", "val = { images = 9, refs = 90, ")
    (tmp_path / "larger.toml").write_text(larger)
    predictions_file.write(tmp_path / "val.parquet", perfect(small_index, "val"))
    both = read_endpoints(tmp_path / "val.parquet", None, "original,lts")
    for card, partial in ((tmp_path / "larger.toml", True), (small_card, False)):
        notes = explain(*both, str(card), "val", str(small_root), partial=partial).notes
        assert ("Measured on a part of the data set." in notes) is partial


def test_steps_add_up_exactly_also_as_printed() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        steps = tuple(Step("step", "", "", "oIoU", value) for value in draw.uniform(0, 100, 6).tolist())
        unrounded = [Fraction(after.value) - Fraction(before.value) for before, after in pairwise(steps)]
        assert sum(unrounded) == Fraction(steps[-1].value) - Fraction(steps[0].value)
        exact = explanation_table(Explanation(steps, ()), exact=True)
        assert [row[5].value for row in exact.rows[1:-1]] == [float(change) for change in unrounded]
        assert [row[4].value for row in exact.rows[:-1]] == [step.value for step in steps]

        printed = explanation_table(Explanation(steps, ()), exact=False)
        shown = [[Decimal(row[column].text) for row in printed.rows[:-1] if row[column].text] for column in (4, 5)]
        whole = Decimal(printed.rows[-1][5].text)
        assert sum(shown[1]) == shown[0][-1] - shown[0][0] == whole
        assert [after - before for before, after in pairwise(shown[0])] == shown[1]


def test_what_cannot_be_compared_is_refused(small_index: Index, run_explain: Explain, tmp_path: Path) -> None:
    paths = [
        kept(tmp_path / split, references.predict("whole-image", small_index, split), small_index, split, ORIGINAL)
        for split in ("val", "testA")
    ]
    with pytest.raises(InputError, match="A is of the split 'val', B of 'testA': take two numbers of one split."):
        run_explain(read_endpoints(paths[0], paths[1], ""))
    file = tmp_path / "val" / "predictions" / "val-original.parquet"
    with pytest.raises(InputError, match="each a predictions file.*--protocol lts names 1: give --protocol original"):
        read_endpoints(file, file, "lts")
    with pytest.raises(InputError, match="alone: give another record, or two protocols"):
        read_endpoints(paths[0], None, "original,lavt")
    header = Header(dataset="small", split="val", input={"threshold": 0.5}, method="lts")
    predictions_file.write(file, replace(predictions_file.read(file), header=header))
    with pytest.raises(InputError, match="made with threshold 0.5, but are to be scored with 0.25"):
        run_explain(read_endpoints(file, None, "lts,original"))
    lines = tmp_path / "val.jsonl"
    counts = rle.encode(np.ones((2, 2))).decode()
    lines.write_text(json.dumps({"sent_id": 1, "segmentation": {"size": [2, 2], "counts": counts}}))
    with pytest.raises(InputError, match="No file says its split: give --dataset and --split."):
        run_explain(read_endpoints(lines, None, "original,lavt"))


def test_a_folder_in_place_of_a_record_is_answered_with_a_record_that_is_there(
    small_index: Index, tmp_path: Path
) -> None:
    other = tmp_path / "other.parquet"
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match=r"runs is a folder: give a record of a run, or a predictions file\.$"):
        read_endpoints(tmp_path / "runs", other, "")
    predictions = references.predict("whole-image", small_index, "val")
    path = kept(tmp_path / "runs" / "one", predictions, small_index, "val", ORIGINAL)
    for folder in (tmp_path / "runs", tmp_path / "runs" / "one", path.parent):
        (folder / "a.json").write_text("{}")
        with pytest.raises(InputError, match=f"such as {path}, or a predictions file"):
            read_endpoints(folder, other, "")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            (["a.parquet", "b.parquet"], ""),
            "are each a predictions file, which needs a protocol, but --protocol is missing",
        ),
        (
            (["a.parquet", "b.json"], ""),
            "a.parquet is a predictions file, which needs a protocol, but --protocol is missing",
        ),
        (
            (["a.parquet", "b.json"], "lts,lavt"),
            "but --protocol lts,lavt names 2: give --protocol original, for example",
        ),
        ((["a.json", "b.json"], "lts"), "--protocol lts has no effect, since each record says its own: leave it out"),
    ],
)
def test_protocols_that_do_not_fit_the_files_are_refused(names: tuple[list[str], str], words: str) -> None:
    (a, b), chosen = names
    with pytest.raises(InputError, match=words):
        read_endpoints(Path(a), Path(b), chosen)
