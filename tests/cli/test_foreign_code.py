"""Files that come from elsewhere name code at a path or beside them: it never runs, whichever command reads them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from risbench import methods
from risbench.data.index import Index
from risbench.scoring import predictions_file, references

RunCommand = Callable[..., tuple[int, str, str]]
PATHS = ["best/evil", "../best/evil", "/tmp/best/evil", "best\\evil", "./evil"]
NAMES = [*PATHS, "evil"]


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISBENCH_METHODS", "")


def plant(folder: Path) -> Path:
    """Write a method whose import leaves a file MARK in the working directory."""
    folder.mkdir(parents=True)
    shutil.copy(methods.recipe_file("lts"), folder)
    for name in (f"{folder.name}.py", "__init__.py"):
        (folder / name).write_text(f"open({str(folder.parent / 'MARK')!r}, 'w').close()\n")
    return folder


def has_run(tmp_path: Path) -> bool:
    return any(tmp_path.rglob("MARK"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A downloaded run `best` in the working directory, with code beside everything."""
    run = shutil.copytree(trained.parents[1], tmp_path / "best")
    for parent in (run, run / "checkpoints" / "best", tmp_path):
        plant(parent / "evil")
    return run


def rename_method(file: Path, name: str) -> None:
    """Put another method into a checkpoint.json, a run.toml or a baseline."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".toml":
        file.write_text(text.replace('method = "lts"', f"method = {json.dumps(name)}"), encoding="utf-8")
        return
    values = json.loads(text)
    values.get("training", values)["method"] = name
    if "code" in values:
        values["code"] = "0" * 64
    file.write_text(json.dumps(values), encoding="utf-8")


def check_refused(answer: tuple[int, str, str], name: str, tmp_path: Path) -> None:
    """The command has refused the method in one line, and nothing ran or was written."""
    code, out, err = answer
    assert (code, out, err.count("\n")) == (2, "", 1), err
    if methods.is_path(name):
        assert "names code at a path" in err and "nothing was run" in err and repr(name) in err, err
    else:
        assert name in err and "RISBENCH_METHODS=PATH" in err, err
    assert not has_run(tmp_path) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_runs_no_code_at_a_path(
    run_command: RunCommand, run: Path, small_root: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = run / "checkpoints" / "best"
    rename_method(checkpoint / "checkpoint.json", name)
    image = next((small_root / "images" / "small").glob("*.jpg"))
    check_refused(run_command("segment", image, "left", "--checkpoint", checkpoint), name, tmp_path)


@pytest.mark.parametrize("name", ["best/evil", "evil"])
def test_no_command_runs_code_of_a_checkpoint(
    run_command: RunCommand, run: Path, data_options: list[str], tmp_path: Path, name: str
) -> None:
    checkpoint = run / "checkpoints" / "best"
    rename_method(checkpoint / "checkpoint.json", name)
    for command in (
        ["predict", "--checkpoint", checkpoint, *data_options, "--split", "val", "--output", "x.parquet"],
        ["run", "--checkpoint", checkpoint, *data_options],
    ):
        check_refused(run_command(*command), name, tmp_path)
    for command_name in ("run", "train"):
        code, out, err = run_command(command_name, "--method", "lts", "--init", checkpoint, *data_options)
        assert (code, out, err.count("\n")) == (2, "", 1) and "evil" in err and not has_run(tmp_path), err


@pytest.mark.parametrize("name", ["best/evil", "evil"])
@pytest.mark.parametrize("file", ["run.toml", "checkpoints/last/checkpoint.json", "checkpoints/best/checkpoint.json"])
def test_a_resumed_run_runs_no_code_at_a_path(
    run_command: RunCommand, run: Path, file: str, tmp_path: Path, name: str
) -> None:
    rename_method(run / file, name)
    for command in ("run", "train"):
        code, _, err = run_command(command, "--resume", run)
        assert code == 2 and err.splitlines()[-1].startswith("error: ") and "evil" in err, err
        assert not has_run(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_runs_no_code_at_a_path(
    run_command: RunCommand, run: Path, data_options: list[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "plan.txt").write_text(f"risbench run --method '{name}' {' '.join(data_options)}\n")
    check_refused(run_command("run", "--plan", "plan.txt"), name, tmp_path)


@pytest.fixture
def baseline(run_command: RunCommand, run: Path, small_index: Index, data_options: list[str], tmp_path: Path) -> Path:
    """A baseline of a training on the small data set."""
    predictions_file.write(tmp_path / "a.parquet", references.predict("oracle-8", small_index, "val"))
    file = tmp_path / "lts.json"
    assert run_command("check", "--update", "--baseline", file, "a.parquet", *data_options)[0] == 0
    seeds = [{"seed": seed, "metrics": {"oIoU": 50 + seed, "mIoU": 50 + seed}} for seed in range(5)]
    training = {"method": "lts", "variants": [], "overrides": [], "seeds": seeds}
    file.write_text(json.dumps({**json.loads(file.read_text()), "training": training}))
    shutil.copytree(run / "checkpoints" / "best", tmp_path / "lts" / "checkpoints" / "best")
    return file


@pytest.mark.parametrize("name", ["best/evil", "evil"])
def test_a_baseline_runs_no_code_at_a_path(
    run_command: RunCommand, baseline: Path, data_options: list[str], tmp_path: Path, name: str
) -> None:
    content = baseline.read_text()
    rename_method(baseline, name)
    for tier in ("network", "training"):
        answer = run_command("check", "--baseline", baseline, "--tier", tier, *data_options)
        assert answer[0] == 2 and "evil" in answer[2] and not has_run(tmp_path), answer
    baseline.write_text(content)
    rename_method(tmp_path / "lts" / "checkpoints" / "best" / "checkpoint.json", name)
    code, out, err = run_command("check", "--baseline", baseline, "--tier", "network", *data_options)
    assert (code, out) == (2, "") and "evil" in err and not has_run(tmp_path)


def test_a_new_baseline_runs_no_code_at_a_path(run_command: RunCommand, run: Path, tmp_path: Path) -> None:
    rename_method(run / "run.toml", "best/evil")
    code, _, err = run_command("check", "--update", "--baseline", "new.json", *[run] * 5)
    assert code == 2 and "names code at a path" in err and not has_run(tmp_path)


def test_records_and_predictions_run_no_code(
    run_command: RunCommand, run: Path, small_index: Index, data_options: list[str], tmp_path: Path
) -> None:
    predictions = references.predict("oracle-8", small_index, "val")
    assert predictions.header is not None
    header = predictions.header.model_copy(update={"method": "best/evil"})
    for file in ("a.parquet", "b.parquet"):
        predictions_file.write(tmp_path / file, replace(predictions, header=header))
    assert run_command("run", "--method", "reference/oracle-8", *data_options, "--split", "val")[0] == 0
    record = next((tmp_path / "runs").rglob("records/*.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "method": "best/evil"}))
    for command in (
        ["score", "a.parquet", "--split", "val", *data_options],
        ["compare", "a.parquet", "b.parquet", "--split", "val", *data_options],
        ["explain", "a.parquet", "--protocol", "original,lavt", *data_options],
        ["table"],
        ["plan", "lts"],
        ["check", "--update", "--baseline", "new.json", "a.parquet", *data_options],
    ):
        code, _, err = run_command(*command)
        assert code in (0, 2) and not has_run(tmp_path), (command, err)


@pytest.mark.parametrize("generator", ["evil", "mini.evil", "..evil", "evil.make", "/tmp/evil", "loader", "mini.make"])
def test_a_card_imports_built_in_generators_only(
    run_command: RunCommand, small_card: Path, tmp_path: Path, generator: str
) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "make.py").write_text(f"open({str(tmp_path / 'MARK')!r}, 'w').close()\n")
    card = small_card.read_text().replace('default_variant = "tiny"', f"generator = {json.dumps(generator)}")
    (tmp_path / "card.toml").write_text(card)
    for command in (
        ["run", "--method", "lts", "--dataset", "card.toml"],
        ["data", "make", "card.toml"],
        ["score", "none.parquet", "--split", "val", "--dataset", "card.toml"],
    ):
        code, out, err = run_command(*command)
        assert (code, out) == (2, "") and not has_run(tmp_path)
        assert "Unknown generator" in err or "none.parquet" in err, err


def test_the_cure_that_a_refusal_names_works_when_it_is_followed(
    run_command: RunCommand, trained: Path, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old files of a method that was given by its path: the user names the folder, by option or variable."""
    checkpoint = shutil.copytree(trained, tmp_path / "downloaded")
    rename_method(checkpoint / "checkpoint.json", "somewhere/copied_lts")
    own = shutil.copytree(methods.folder("lts"), tmp_path / "own" / "copied_lts")
    (own / "lts.py").rename(own / "copied_lts.py")
    image = next((small_root / "images" / "small").glob("*.jpg"))
    command = ["segment", image, "the left one", "--checkpoint", checkpoint]
    assert run_command(*command)[0] == 2
    code, _, err = run_command(*command, "--method", own)
    assert code == 0, err
    monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path / "own"))
    assert run_command(*command)[0] == 0
    monkeypatch.setenv("RISBENCH_METHODS", str(own))
    assert run_command(*command)[0] == 0


def test_python_picks_up_no_method_of_the_working_directory(tmp_path: Path) -> None:
    """`python -m risbench` puts the working directory on the path of modules."""
    plant(tmp_path / "evil")
    info = tmp_path / "evil-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[risbench.methods]\nevil = evil\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "risbench", "list"]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0 and "lts" in answer.stdout, answer.stderr
    assert "evil" not in answer.stdout and not has_run(tmp_path)
