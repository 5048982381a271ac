"""A job of seconds on the small data set, and a copy of its files that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from risbench.runs.job import Job


@pytest.fixture
def root(small_root: Path, tmp_path: Path) -> Path:
    """A copy of the small data set with its card."""
    return shutil.copytree(small_root, tmp_path / "root")


@pytest.fixture
def job(root: Path, short_training: list[str]) -> Job:
    """A training of one epoch on that copy."""
    return Job(
        method="lts", dataset=str(root / "small.toml"), data_root=str(root), overrides=short_training, splits=["val"]
    )
