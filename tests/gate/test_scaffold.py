"""`risbench method new`: the folder that it writes, and the names that it refuses."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from risbench.errors import InputError
from risbench.gate.scaffold import TEMPLATE, new_method

RunCommand = Callable[..., tuple[int, str, str]]


def test_the_folder_bears_the_name_everywhere(tmp_path: Path) -> None:
    folder = new_method("mine", tmp_path / "methods")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "mine.py", "recipe.toml"]
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        assert "TEMPLATE" not in text and "mine" in text
    original = tomllib.loads((TEMPLATE / "recipe.toml").read_text(encoding="utf-8"))
    assert tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8")) == original


def test_every_key_of_its_recipe_is_explained() -> None:
    """A comment stands before each key, or before the group of keys it belongs to."""
    explained = False
    for line in (TEMPLATE / "recipe.toml").read_text(encoding="utf-8").partition("[variant.")[0].splitlines():
        if "=" in line and not line.startswith("#"):
            assert explained, line
        else:
            explained = line.startswith("#")


@pytest.mark.parametrize(
    "name", ["a-b", "2d", "class", "_mine", "", ".", "../mine", "a/b", "mein_größe", "a b", "None"]
)
def test_a_name_that_python_cannot_import_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a method: Python must be able to import it"):
        new_method(name, tmp_path / "methods")
    assert not (tmp_path / "methods").exists()


@pytest.mark.parametrize("name", ["lts", "lavt", "reference"])
def test_the_name_of_a_known_method_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"There is a method {name} already: give another name"):
        new_method(name, tmp_path)


def test_a_name_of_the_package_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'folder' is a name of risbench.methods itself: give the method another name"):
        new_method("folder", tmp_path)


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("kept")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match=f"{name} exists already: give another name, or another --folder"):
            new_method(name, tmp_path)
    assert (tmp_path / "file").read_text() == "kept" and not list((tmp_path / "mine").iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(run_command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    code, out, err = run_command("method", "new", "mine", "--folder", "file")
    assert (code, out) == (2, "") and "cannot be written: File exists" in err and err.count("\n") == 1
