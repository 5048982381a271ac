"""`risbench score` and `table`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from risbench.data.index import Index
from risbench.scoring import metrics, predictions_file, references, statistics

RunCommand = Callable[..., tuple[int, str, str]]


def test_tables_are_listed_and_printed_by_name(run_command: RunCommand) -> None:
    for arguments, label in ((["lts-2"], "NAME"), (["--format", "csv"], "--format"), (["--records", "."], "--records")):
        code, out, err = run_command("table", *arguments, "--list")
        assert (code, out) == (2, "")
        assert err == f"error: --list takes no {label}, which would have no effect: leave that out.\n"
    code, out, _ = run_command("table", "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][::13] == ["comparison", "leaders"]
    code, out, _ = run_command("table", "coupalign-supplement-3", "--format", "markdown")
    assert code == 0 and "| 100 | published | 75.49 |" in re.sub(" +", " ", out)


def test_masks_of_the_image_size_are_marked_as_resized_under_lavt(
    run_command: RunCommand, data_options: list[str], small_index: Index, tmp_path: Path
) -> None:
    predictions_file.write(tmp_path / "val.parquet", references.predict("oracle-32", small_index, "val"))
    for protocol, resized in (("lavt", True), ("original", None)):
        code, out, _ = run_command(
            "score", tmp_path / "val.parquet", *data_options, "--split", "val", "--protocol", protocol, "--json"
        )
        assert code == 0 and json.loads(out).get("resized") is resized


def test_score_prints_the_documented_object(
    run_command: RunCommand, data_options: list[str], small_index: Index, tmp_path: Path
) -> None:
    file = tmp_path / "own.jsonl"
    predictions = references.predict("largest-object", small_index, "train")
    columns = (predictions.sent_id, predictions.height, predictions.width, predictions.counts)
    lines = [
        {"sent_id": int(s), "segmentation": {"size": [int(h), int(w)], "counts": c.decode()}}
        for s, h, w, c in zip(*columns, strict=True)
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    code, out, _ = run_command("score", file, *data_options, "--split", "train", "--protocol", "lts", "--json")
    assert code == 0
    precision = {f"P@0.{tenth}" for tenth in range(5, 10)}
    keys = {"dataset", "split", "protocol", "n", "oIoU", "mIoU", "pointing", "intersection", "union"} | precision
    assert keys <= set(json.loads(out))
    assert json.loads(out)["pointing"] is None
    (part,) = json.loads(out)["slices"]["same-class distractors"].values()
    assert (part["n"], part["oIoU"]) == (10, json.loads(out)["oIoU"])
    assert set(part) == {"n", "oIoU", "mIoU", "intervals"}

    code, out, _ = run_command("score", file, *data_options, "--split", "train", "--protocol", "lts")
    assert code == 0 and "{" not in out
    assert f"oIoU by same-class distractors\n  0               10 expressions  {part['oIoU']:.2f}\n" in out


def test_score_has_the_interval_of_the_headline_or_says_why_there_is_none(
    run_command: RunCommand,
    data_options: list[str],
    small_index: Index,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictions_file.write(tmp_path / "own.parquet", references.predict("largest-object", small_index, "train"))
    command = ("score", tmp_path / "own.parquet", *data_options, "--split", "train")
    _, out, _ = run_command(*command, "--json")
    assert json.loads(out)["intervals"] == dict.fromkeys(name for name in metrics.NAMES[:8])  # three images: null
    assert run_command(*command)[1].count(statistics.NO_INTERVAL) == 1
    monkeypatch.setattr(statistics, "MIN_IMAGES", 3)
    _, out, _ = run_command(*command, "--json")
    value, (low, high) = json.loads(out)["oIoU"], json.loads(out)["intervals"]["oIoU"]
    shown = run_command(*command)[1]
    assert f"oIoU         {value:.2f} [{low:.2f}, {high:.2f}]\n" in shown and statistics.NO_INTERVAL not in shown
    assert shown.count("[low, high]: 95 % interval over images.") == 1


def test_an_incomplete_predictions_file_is_refused_with_the_missing_sent_ids(
    run_command: RunCommand, data_options: list[str], small_index: Index, tmp_path: Path
) -> None:
    predictions = references.predict("whole-image", small_index, "val").take(np.array([0, 1], dtype=np.intp))
    predictions_file.write(tmp_path / "half.parquet", predictions)
    code, _, err = run_command("score", tmp_path / "half.parquet", *data_options, "--split", "val")
    missing = [str(s) for s in small_index.split("val").sent_id[2:]]
    assert code == 2 and all(sent_id in err for sent_id in missing)


@pytest.mark.parametrize(
    ("name", "options", "begin"),
    [
        ("new/folder/table.md", [], "**LTS (CVPR 2021), Table 4"),
        ("table.tex", [], "% needs"),
        ("table.CSV", [], "table,"),
        ("table.html", [], "<!doctype html>"),
        ("table.json", [], '{\n "tables"'),
        ("table.txt", ["--format", "markdown"], "**LTS (CVPR 2021), Table 4"),
    ],
)
def test_a_table_is_written_to_a_file_in_the_format_of_its_suffix_or_the_chosen_one(
    run_command: RunCommand, tmp_path: Path, name: str, options: list[str], begin: str
) -> None:
    code, out, _ = run_command("table", "lts-4", "--output", tmp_path / name, *options)
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert (code, out) == (0, f"{tmp_path / name}\n") and text.startswith(begin) and text.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "table.pdf"], "does not name a format: give a file that ends in .md, .tex, .csv, .html, .json"),
        (["--output", "."], "is a folder: give a file in it, such as table.md"),
        (["--slices", ""], "--slices '' names no slice"),
        (["--slices", " , "], "names no slice"),
        (["lts-2", "--slices", ""], "not the table lts-2: leave it out"),
        (["lts-2", "--dataset", "grefcoco"], "lts-2 has oIoU, P@0.5, P@0.6, P@0.7, P@0.8, P@0.9, but grefcoco"),
    ],
)
def test_options_of_a_table_that_have_no_effect_are_refused(
    run_command: RunCommand, arguments: list[str], words: str
) -> None:
    code, out, err = run_command("table", *arguments)
    assert (code, out) == (2, "") and words in err
