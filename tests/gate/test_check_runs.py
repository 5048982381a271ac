"""The gate between any two runs: a fall beyond chance and margin, and nothing else, is a regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from risbench.analysis import compare
from risbench.analysis.sides import Run, Side
from risbench.cli import app as cli
from risbench.gate import check


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
        Side(name, (Run(Path(name), table, "", "val", "original"),))
        for name, table in (("A", rows(1, 0)), ("B", rows(2, gain)))
    ]
    outcome = check.runs(sides, "mIoU", margin, {})
    found = compare.compare(sides)[1]["mIoU"]
    (line,) = outcome.lines
    assert (line.verdict, outcome.failed, line.interval) == (verdict, failed, found.difference_interval)
    assert bool(outcome.flips) == failed


def test_two_files_of_rows_are_checked_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, table in (("a", rows(1, 0)), ("b", rows(2, -0.03))):
        Path(name).mkdir()
        table.to_parquet(f"{name}/val-original.parquet")
    ways = ["a/val-original.parquet", "b/val-original.parquet"]
    found = CliRunner().invoke(cli.app, ["check", *ways])
    assert found.exit_code == 1 and "checks failed: 1 of 1" in found.stdout
    assert (
        "Expressions that flipped most" in found.stdout and "one seed, so chance is that of the images" in found.stdout
    )
    assert CliRunner().invoke(cli.app, ["check", *reversed(ways)]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["check", *ways, "--margin", "10"]).exit_code == 0
