"""The door to the method folders: by name, by path, by environment variable, and what it refuses."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from risbench import methods
from risbench.errors import InputError

CODE = "from .part import SIZE\n\n\nclass Model:\n    size = SIZE\n"


@pytest.fixture(autouse=True)
def restored_search_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RISBENCH_METHODS", "")
    before = list(methods.__path__)
    yield
    methods.__path__[:] = before
    for name in [n for n in sys.modules if n.startswith("risbench.methods.own_")]:
        del sys.modules[name]


def make_method(root: Path, name: str, size: int = 3) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("")
    (folder / "part.py").write_text(f"SIZE = {size}\n")
    (folder / f"{name}.py").write_text(CODE)
    return folder


def in_new_process(code: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def test_listing_imports_neither_torch_nor_a_method() -> None:
    code = "import sys; from risbench import methods; methods.names(); print([m for m in sys.modules if m == 'torch'"
    assert in_new_process(code + " or m.startswith('risbench.methods.')])").strip() == "[]"


def test_unknown_name_proposes_the_nearest_and_says_how_to_give_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_method(tmp_path, "own_lavt")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    with pytest.raises(InputError, match="Unknown method 'own_lavd'. Did you mean 'own_lavt'.*path of its folder"):
        methods.load("own_lavd")


def test_name_with_a_path_in_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_method(tmp_path, "own_dots")
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    with pytest.raises(InputError, match="Unknown method"):
        methods.folder("elsewhere/../own_dots")


def test_folder_by_path_loads_with_its_relative_imports(tmp_path: Path) -> None:
    folder = make_method(tmp_path, "own_path", size=7)
    model = methods.load(str(folder))
    assert model.__module__ == "risbench.methods.own_path.own_path"
    assert model.size == 7  # type: ignore[attr-defined]
    assert methods.folder(str(folder)) == folder
    assert methods.recipe_file(str(folder)) == folder / "recipe.toml"


def test_path_may_be_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_method(tmp_path, "own_here"))
    assert methods.load(".").__module__ == "risbench.methods.own_here.own_here"


def test_folder_by_path_is_found_by_name_afterwards(tmp_path: Path) -> None:
    folder = make_method(tmp_path, "own_after")
    assert "own_after" not in methods.names()
    model = methods.load(str(folder))
    assert "own_after" in methods.names()
    assert methods.load("own_after") is model
    assert methods.folder("own_after") == folder


def test_folder_by_path_is_found_in_processes_started_later(tmp_path: Path) -> None:
    model = methods.load(str(make_method(tmp_path, "own_child", size=5)))
    code = f"import pickle; print(pickle.loads({pickle.dumps(model)!r}).size)"
    assert in_new_process(code).strip() == "5"


def test_environment_variable_holds_several_folders_and_the_first_wins(tmp_path: Path) -> None:
    make_method(tmp_path / "first", "own_twice", size=1)
    make_method(tmp_path / "second", "own_twice", size=2)
    make_method(tmp_path / "second", "own_once", size=4)
    roots = os.pathsep.join([str(tmp_path / "first"), str(tmp_path / "second")])
    code = "from risbench import methods as m; print(m.load('own_twice').size, m.load('own_once').size,"
    code += " m.folder('own_twice').parent.name)"
    assert in_new_process(code, RISBENCH_METHODS=roots).split() == ["1", "4", "first"]


def test_folder_by_path_comes_before_a_folder_of_the_same_name(tmp_path: Path) -> None:
    make_method(tmp_path / "builtin", "own_clash", size=1)
    mine = make_method(tmp_path / "mine", "own_clash", size=2)
    methods.__path__.append(str(tmp_path / "builtin"))
    assert methods.load(str(mine)).size == 2  # type: ignore[attr-defined]
    assert methods.folder("own_clash") == mine


def test_folder_by_path_with_the_name_of_a_loaded_method_is_refused(tmp_path: Path) -> None:
    make_method(tmp_path / "builtin", "own_taken", size=1)
    mine = make_method(tmp_path / "mine", "own_taken", size=2)
    methods.__path__.append(str(tmp_path / "builtin"))
    methods.load("own_taken")
    with pytest.raises(InputError, match="Another method named 'own_taken' is loaded from .*Rename your folder"):
        methods.load(str(mine))
    assert methods.load("own_taken").size == 1  # type: ignore[attr-defined]


def test_path_of_a_folder_already_on_the_search_path_changes_nothing(tmp_path: Path) -> None:
    folder = make_method(tmp_path, "own_known")
    methods.__path__.append(str(tmp_path))
    roots = list(methods.__path__)
    assert methods.load(str(folder)) is methods.load("own_known")
    assert list(methods.__path__) == roots


def test_folder_without_its_module_says_what_the_file_must_be_called(tmp_path: Path) -> None:
    folder = make_method(tmp_path, "own_renamed")
    (folder / "own_renamed.py").rename(folder / "model.py")
    with pytest.raises(InputError, match="its code in <name>.py"):
        methods.load(str(folder))


def test_module_without_model_says_so(tmp_path: Path) -> None:
    folder = make_method(tmp_path, "own_empty")
    (folder / "own_empty.py").write_text("")
    with pytest.raises(InputError, match="has no class Model"):
        methods.load(str(folder))


def test_installed_package_offers_a_method_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_method(tmp_path, "own_installed_package", size=9)
    (tmp_path / "own_installed_package" / "__init__.py").write_text("")
    info = tmp_path / "own_installed-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-installed\nVersion: 1\n")
    line = "own_installed = own_installed_package.own_installed_package:Model"
    (info / "entry_points.txt").write_text(f"[risbench.methods]\n{line}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert "own_installed" in methods.names()
    assert methods.folder("own_installed") == tmp_path / "own_installed_package"
    assert methods.load("own_installed").size == 9  # type: ignore[attr-defined]
