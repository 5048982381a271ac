"""The command line as a user meets it: whole commands, run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train


@pytest.fixture
def data_options(small_root: Path, small_card: Path) -> list[str]:
    """Options that name the small data set."""
    return ["--dataset", str(small_card), "--data-root", str(small_root)]


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, small_root: Path, small_card: Path, short_training: list[str]
) -> Path:
    """A checkpoint of one short epoch."""
    job = Job(method="lts", dataset=str(small_card), overrides=short_training, data_root=str(small_root))
    return train(open_run(job, tmp_path_factory.mktemp("runs"))).folder
