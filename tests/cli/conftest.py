"""The command line as a user meets it: whole commands, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from risbench.cli import app
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def risbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run risbench in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["risbench", *map(str, arguments)])
        try:
            app.main()
            code: object = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capsys.readouterr()
        assert isinstance(code, int), code
        return code, out, err

    return run


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
