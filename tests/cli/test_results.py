"""`risbench score` and `table`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from risbench.data.index import Index
from risbench.scoring import predictions_file, references

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
    value, interval = f"{part['oIoU']:.2f}", "[{:.2f}, {:.2f}]".format(*part["intervals"]["oIoU"])
    assert f"oIoU by same-class distractors\n  0               10 expressions  {value} {interval}\n" in out


def test_an_incomplete_predictions_file_is_refused_with_the_missing_sent_ids(
    run_command: RunCommand, data_options: list[str], small_index: Index, tmp_path: Path
) -> None:
    predictions = references.predict("whole-image", small_index, "val").take(np.array([0, 1], dtype=np.intp))
    predictions_file.write(tmp_path / "half.parquet", predictions)
    code, _, err = run_command("score", tmp_path / "half.parquet", *data_options, "--split", "val")
    missing = [str(s) for s in small_index.split("val").sent_id[2:]]
    assert code == 2 and all(sent_id in err for sent_id in missing)
