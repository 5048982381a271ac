"""Help that is whole at 80 columns, and options that have an effect or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from risbench.cli import app

RunCommand = Callable[..., tuple[int, str, str]]


def groups() -> dict[str, Any]:
    root: Any = typer.main.get_command(app.app)
    return {"": root, **{name: command for name, command in root.commands.items() if hasattr(command, "commands")}}


@pytest.mark.parametrize("group", groups())
def test_the_list_of_commands_shows_each_summary_whole(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run_command(*group.split(), "--help")
    listing = " ".join(out.partition("Commands:")[2].split())
    assert code == 0 and "..." not in listing and max(map(len, out.splitlines())) <= 80
    for name, command in groups()[group].commands.items():
        assert f"{name} {' '.join(command.help.split())}" in listing


def test_run_says_what_an_override_is_and_where_keys_are_listed(run_command: RunCommand) -> None:
    words = " ".join(run_command("run", "--help")[1].split())
    assert "section.key=value" in words and "recipe.toml" in words


def test_any_oracle_is_listed(run_command: RunCommand) -> None:
    assert "reference/oracle-N" in run_command("list")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "a.parquet", "--split", "val"],
        ["export", "a.parquet", "--split", "val", "--output", "a.json"],
        ["import", "masks", "--split", "val", "--output", "new.parquet"],
        ["compare", "a.parquet", "a.parquet"],
        ["explain", "a.parquet", "--protocol", "original,lavt"],
        ["run", "--method", "lts"],
        ["run", "--method", "reference"],
        ["data", "index", "mini"],
        ["data", "doctor", "mini"],
        ["data", "check", "mini"],
        ["data", "leaks", "mini"],
        ["plan", "lts-1", "--dataset", "mini"],
    ],
)
def test_a_data_root_without_effect_is_refused(
    run_command: RunCommand, mini_floor: Path, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "a.parquet").symlink_to(mini_floor)
    code, _, err = run_command(*arguments, "--data-root", "/nowhere")
    assert code == 2 and "The data root /nowhere has no effect" in err and err.count("\n") == 1


@pytest.fixture(scope="module")
def mini_floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of a floor on three images of mini."""
    from risbench.runs.job import Job
    from risbench.runs.reference_runs import run_references

    runs = tmp_path_factory.mktemp("floor")
    run_references(["whole-image"], Job(dataset="mini", splits=["val"], limit=3), [0], runs)
    return next(runs.glob("*/predictions/*.parquet"))


def test_score_says_in_which_data_set_it_looked(run_command: RunCommand, tmp_path: Path) -> None:
    line = '{"sent_id": 99999999, "segmentation": {"size": [2, 2], "counts": "04"}}'
    (tmp_path / "mine.jsonl").write_text(line)
    code, _, err = run_command("score", "mine.jsonl", "--split", "val")
    assert code == 2 and "Not in split 'val' of mini: sent_id 99999999" in err and "--dataset" in err


def test_no_command_proposes_an_option_that_it_lacks(
    run_command: RunCommand, small_root: Path, small_card: Path
) -> None:
    assert "--checkpoint" not in run_command("train")[2]
    assert "--checkpoint" in run_command("run")[2]
