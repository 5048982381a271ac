"""Methods of the user's own, by path and by entry point: trained, resumed, evaluated and used by their checkpoints."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from risbench import methods

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISBENCH_METHODS", "")


def copy_lts(folder: Path) -> Path:
    shutil.copytree(methods.folder("lts"), folder)
    (folder / "lts.py").rename(folder / f"{folder.name}.py")
    return folder


@pytest.fixture
def photo(small_root: Path) -> Path:
    return next((small_root / "images" / "small").glob("*.jpg"))


def test_a_method_of_an_entry_point_is_known_by_the_name_of_the_entry_point(
    run_command: RunCommand,
    data_options: list[str],
    short_training: list[str],
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = copy_lts(tmp_path / "site" / "ext_pooled")
    (package / "__init__.py").write_text("from .ext_pooled import Model\n")
    info = tmp_path / "site" / "ext_pooled-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ext-pooled\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[risbench.methods]\nextpooled = ext_pooled\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    options = [*data_options, "--split", "val"]
    code, out, err = run_command("train", "--method", "extpooled", *data_options, *short_training)
    assert code == 0, err
    checkpoint = Path(out.strip())
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    assert (facts["method"], facts["origin"]) == ("extpooled", "entry point ext_pooled of ext-pooled 1")
    assert facts["code"] == methods.code_hash("extpooled")
    for command in (
        ["train", "--resume", checkpoint.parents[1]],
        ["segment", photo, "left", "--checkpoint", checkpoint],
        ["predict", "--checkpoint", checkpoint, *options, "--output", "x.parquet"],
    ):
        code, _, err = run_command(*command)
        assert code == 0, (command, err)
    code, out, err = run_command("run", "--checkpoint", checkpoint, *options, "--json")
    assert code == 0 and json.loads(out)[0]["method"] == "extpooled", err
    monkeypatch.undo()  # uninstalled
    monkeypatch.setenv("RISBENCH_METHODS", "")
    monkeypatch.chdir(tmp_path)
    code, _, err = run_command("segment", photo, "left", "--checkpoint", checkpoint)
    assert (
        code == 2 and "the method extpooled (then: entry point ext_pooled of ext-pooled 1), which is not known" in err
    )
    assert run_command("segment", photo, "left", "--checkpoint", checkpoint, "--method", package)[0] == 0


def test_a_method_given_by_its_path_is_given_again_or_named_by_the_variable(
    run_command: RunCommand,
    data_options: list[str],
    short_training: list[str],
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copy_lts(tmp_path / "own" / "path_lts")
    code, out, err = run_command("train", "--method", "own/path_lts", *data_options, *short_training)
    assert code == 0, err
    checkpoint = Path(out.strip())
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    assert (facts["method"], facts["origin"]) == ("path_lts", f"folder {folder}")
    options = [*data_options, "--split", "val"]
    commands: list[list[str | Path]] = [
        ["segment", photo, "left", "--checkpoint", checkpoint],
        ["predict", "--checkpoint", checkpoint, *options, "--output", "x.parquet"],
        ["train", "--resume", checkpoint.parents[1]],
    ]
    for command in commands:
        monkeypatch.setenv("RISBENCH_METHODS", "")
        code, _, err = run_command(*command)
        assert code == 2 and "--method " in err and "RISBENCH_METHODS" in err and str(folder) in err, (command, err)
        assert run_command(*command, "--method", "own/path_lts")[0] == 0, command
        monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path / "own"))
        assert run_command(*command)[0] == 0, command
    code, _, err = run_command("train", "--resume", checkpoint.parents[1], "--method", "lts")
    assert code == 2 and "is a run of path_lts, not of lts: leave --method out" in err


def test_a_plan_runs_a_method_that_the_variable_names(
    run_command: RunCommand, data_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_lts(tmp_path / "own" / "plan_lts")
    copy_lts(tmp_path / "other" / "plan_lts")
    monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path / "own"))
    options = " ".join([*data_options, "--split", "no"])  # refused after the method
    for method in ("plan_lts", "own/plan_lts", folder):
        (tmp_path / "plan.txt").write_text(f"risbench run --method {method} {options}\n")
        code, _, err = run_command("run", "--plan", "plan.txt")
        assert code == 2 and "Unknown split of small 'no'" in err, err
    (tmp_path / "plan.txt").write_text(f"risbench run --method other/plan_lts {options}\n")
    code, _, err = run_command("run", "--plan", "plan.txt")
    assert code == 2 and f"The method plan_lts is in {folder}" in err and "write --method plan_lts" in err


def test_other_code_than_the_checkpoints_is_said_once(
    run_command: RunCommand, trained: Path, photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = shutil.copytree(trained, tmp_path / "older")
    facts = json.loads((checkpoint / "checkpoint.json").read_text())
    (checkpoint / "checkpoint.json").write_text(json.dumps({**facts, "code": "12ab" * 16}))
    for _ in range(2):
        assert run_command("segment", photo, "left", "--checkpoint", checkpoint)[0] == 0
    warnings = [record.getMessage() for record in caplog.records if "made by other code" in record.getMessage()]
    today = methods.code_hash("lts")[:12]
    assert warnings == [f"{checkpoint}: made by other code of lts (sha256 12ab12ab12ab) than today's ({today})."]


def test_code_that_cannot_be_imported_leaves_no_run(
    run_command: RunCommand, data_options: list[str], tmp_path: Path
) -> None:
    folder = copy_lts(tmp_path / "no_model")
    (folder / "no_model.py").write_text("")
    code, _, err = run_command("run", "--method", "./no_model", *data_options)
    assert code == 2 and "has no class Model" in err
    assert not (tmp_path / "runs").exists()
