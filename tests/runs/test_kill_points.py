"""A run that is killed before any of its calls that change files ends like an uninterrupted one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_like_an_uninterrupted_one(
    tmp_path: Path, small_root: Path, small_card: Path, short_training: list[str]
) -> None:
    """The fast tests of test_opening.py and test_inputs.py kill at chosen places."""
    data = ["--method", "lts", "--dataset", str(small_card), "--data-root", str(small_root), "--split", "val"]
    script = [sys.executable, str(Path(__file__).with_name("kill_points.py")), str(tmp_path / "work")]
    result = subprocess.run([*script, *data, *short_training, "train.epochs=2"], capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].endswith(": 0 end wrongly")
