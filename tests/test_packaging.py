"""The rules that hold the tree together, and the installed package in an environment without torch."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from risbench import datasets, methods
from risbench.data.index import Index
from risbench.scoring import predictions_file, references

ROOT = Path(__file__).parents[1]
HARNESS = sorted((ROOT / "risbench").rglob("*.py"))
METHODS = sorted((ROOT / "methods").rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_cleaning_up_keeps_runs_and_results() -> None:
    commands = subprocess.run(
        ["make", "-n", "--no-print-directory", "clean"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert commands.split() == ["rm", "-rf", ".venv", "site", "dist"]


def test_matplotlib_is_imported_only_where_pictures_are_made(tmp_path: Path) -> None:
    code = """
import sys
from risbench.cli import app
for command in ("--help", "list", "data list", "protocols", "table lts-2", "score a --split val", "compare a b"):
    sys.argv = ["risbench", *command.split()]
    try:
        app.main()
    except SystemExit:
        pass
print("imported:", "matplotlib" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("imported: False\n")


def test_cards_are_data_and_method_folders_no_package() -> None:
    assert not list((ROOT / "datasets").rglob("*.py"))
    assert not (ROOT / "methods" / "__init__.py").exists()


def test_the_harness_names_no_method() -> None:
    known = methods.names()
    names = "|".join(re.escape(name) for name in known)
    for path in HARNESS:
        code = ast.parse(path.read_text(encoding="utf-8"))
        assert not [n for n in imports(path) if re.search(rf"methods\.({names})\b", n)], path
        if path.name != "protocol.py":  # protocols bear the names of the papers whose rules they follow
            strings = [n.value for n in ast.walk(code) if isinstance(n, ast.Constant) and n.value in known]
            assert not strings, f"{path} compares with {strings}"


def test_the_contract_against_torch_names_every_module_of_data_but_three() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    named = {name for contract in contracts for name in contract.get("source_modules", [])}
    modules = {f"risbench.data.{path.stem}" for path in (ROOT / "risbench" / "data").glob("[!_]*")}
    assert modules - named == {"risbench.data.images", "risbench.data.loader", "risbench.data.text"}


def test_only_one_module_touches_torch_distributed() -> None:
    """Import-linter sees torch as one module, so this rule has a test; the others are contracts."""
    users = {path.name for path in (*HARNESS, *METHODS) if "torch.distributed" in path.read_text(encoding="utf-8")}
    assert users == {"distributed.py"}


def test_only_metrics_intersects_masks() -> None:
    users = {path.name for path in (*HARNESS, *METHODS) if "intersect=True" in path.read_text(encoding="utf-8")}
    assert users == {"rle.py", "metrics.py"}


def test_files_and_functions_stay_readable() -> None:
    for path in (*HARNESS, *METHODS, *(ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and what it requires without extras: no torch."""
    folder = tmp_path_factory.mktemp("light")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in _required("risbench"):
        for file in importlib.metadata.distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder


def _required(name: str, seen: set[str] | None = None) -> set[str]:
    """Distributions that one needs, over all steps, without extras."""
    seen = set() if seen is None else seen
    for text in importlib.metadata.distribution(name).requires or []:
        requirement = Requirement(text)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if needed and requirement.name not in seen:
            seen.add(requirement.name)
            _required(requirement.name, seen)
    return seen


def ask(light: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(light), "COLUMNS": "120"}
    command = [sys.executable, "-S", "-c", "from risbench.cli.app import main; main()", *arguments]
    return subprocess.run(command, env=environment, cwd=light, capture_output=True, text=True)


def test_the_wheel_carries_methods_cards_and_published_numbers(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {f"risbench/methods/{name}/{name}.py" for name in methods.names()} <= files
    assert {f"risbench/methods/{name}/recipe.toml" for name in methods.names()} <= files
    assert {f"risbench/datasets/{name}.toml" for name in datasets.names()} <= files
    assert {"risbench/tables/published.csv", "risbench/tables/papers.toml"} <= files
    template = {f"risbench/gate/template/{name}" for name in ("template.py", "recipe.toml", "README.md")}
    assert template <= files
    assert "risbench/py.typed" in files


def test_the_light_environment_has_no_torch(light: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(light)}
    command = [sys.executable, "-S", "-c", "import torch"]
    answer = subprocess.run(command, env=environment, cwd=light, capture_output=True, text=True)
    assert "No module named 'torch'" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "segment"),
        (["--version"], "0."),
        (["list"], "lts"),
        (["protocols"], "letterbox-cut"),
        (["data", "list"], "refcocog-google"),
        (["doctor"], "training is off"),
        (["table"], "65.43"),
        (["table", "lts-2"], "L_loc"),
        (["method", "new", "mymethod"], "risbench method check ./mymethod"),
    ],
)
def test_what_needs_no_torch_works_without(light: Path, arguments: list[str], words: str) -> None:
    answer = ask(light, *arguments)
    assert answer.returncode == 0, answer.stderr
    assert words in answer.stdout


def test_scoring_and_floors_work_without_torch(
    light: Path, small_root: Path, small_index: Index, tmp_path: Path
) -> None:
    file = tmp_path / "predictions.parquet"
    predictions_file.write(file, references.predict("oracle-64", small_index, "val"))
    where = ["--dataset", str(small_root / "small.toml"), "--data-root", str(small_root), "--split", "val", "--json"]
    scored = ask(light, "score", str(file), "--protocol", "lts", *where)
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["oIoU"] > 90
    explained = ask(light, "explain", str(file), "--protocol", "original,lavt", *where[:-1])
    assert explained.returncode == 0, explained.stderr
    assert "480 x 480" in explained.stdout
    floors = ask(light, "run", "--method", "reference/whole-image", "--runs", str(tmp_path / "runs"), *where)
    assert floors.returncode == 0, floors.stderr
    assert json.loads(floors.stdout)[0]["method"] == "reference/whole-image"
    compared = ask(light, "compare", str(file), str(next((tmp_path / "runs").iterdir())), *where[:-1])
    assert compared.returncode == 0, compared.stderr
    assert "oIoU on small val, protocol original" in compared.stdout
    kept = ("check", "--baseline", str(tmp_path / "kept.json"), *where[:4])
    made = ask(light, *kept, "--update", str(file))
    assert made.returncode == 0, made.stderr
    checked = ask(light, *kept)
    assert checked.returncode == 0 and "checks passed:" in checked.stdout, checked.stdout + checked.stderr


def test_what_needs_torch_says_which_extra(light: Path) -> None:
    answer = ask(light, "run", "--method", "lts", "--dataset", "mini")
    assert answer.returncode == 2
    assert answer.stderr == "error: This command needs torch: run pip install '.[train]' in the clone of risbench.\n"
