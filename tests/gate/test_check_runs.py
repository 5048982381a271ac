"""The gate between any two runs: a fall beyond chance and margin, and nothing else, is a regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from risbench.analysis import compare
from risbench.analysis.run_rows import RunRows
from risbench.analysis.sides import Side
from risbench.cli.app import app
from risbench.gate.check_runs import check_sides


def rows(seed: int, gain: float) -> pd.DataFrame:
    """Answers to 600 expressions of 150 images that differ from those of other seeds by chance and by their gain."""
    generator, truth = np.random.default_rng((seed, 1)), np.random.default_rng(0)
    image = np.repeat(np.arange(150), 4)
    iou = truth.normal(0.5, 0.15, 150)[image] + generator.normal(0, 0.05, len(image)) + gain
    part = (1000 * iou.clip(0, 1)).astype(int)
    columns = {"intersection": part, "union": 1000, "predicted_area": part, "true_area": 1000, "peak_hit": -1}
    return pd.DataFrame({"sent_id": np.arange(len(image)), "image_id": image, **columns})


@pytest.mark.parametrize(
    ("gain", "margin", "verdict", "failed"),
    [
        (-0.03, 1.0, "regression", True),
        (-0.03, 5.0, "equivalent", False),
        (0.0, 2.0, "equivalent", False),
        (0.0, 0.1, "open", False),
        (0.03, 1.0, "better", False),
        (0.012, 1.0, "not worse", False),
    ],
)
def test_of_two_runs_a_fall_beyond_chance_and_margin_fails(
    gain: float, margin: float, verdict: str, failed: bool
) -> None:
    sides = [
        Side(name, (RunRows(Path(name), table, "", "val", "original"),))
        for name, table in (("A", rows(1, 0)), ("B", rows(2, gain)))
    ]
    outcome = check_sides(sides, "mIoU", margin, {})
    result = compare.compare(sides)[1]["mIoU"]
    (number,) = outcome.numbers
    assert (number.verdict, outcome.failed, number.interval) == (verdict, failed, result.difference_interval)
    assert bool(outcome.flips) == failed


def test_two_files_of_rows_are_checked_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, table in (("a", rows(1, 0)), ("b", rows(2, -0.03))):
        Path(name).mkdir()
        table.to_parquet(f"{name}/val-original.parquet")
    ways = ["a/val-original.parquet", "b/val-original.parquet"]
    answer = CliRunner().invoke(app, ["check", *ways])
    assert answer.exit_code == 1 and "checks failed: 1 of 1" in answer.stdout
    assert (
        "Expressions that flipped most" in answer.stdout
        and "one seed, so chance is that of the images" in answer.stdout
    )
    assert CliRunner().invoke(app, ["check", *reversed(ways)]).exit_code == 0
    assert CliRunner().invoke(app, ["check", *ways, "--margin", "10"]).exit_code == 0
