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
def forgotten_methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RISBENCH_METHODS", "")
    yield
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
    monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path))
    with pytest.raises(InputError, match="Unknown method 'own_lavd'. Did you mean 'own_lavt'.*path of its folder"):
        methods.load("own_lavd")


def test_path_without_a_method_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_method(tmp_path, "own_dots")
    monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path))
    with pytest.raises(InputError, match="elsewhere/../own_dots is no folder of a method: it holds no recipe.toml"):
        methods.folder("elsewhere/../own_dots")


@pytest.mark.parametrize("name", ["folder", "load", "sys"])
def test_names_of_the_package_itself_are_refused_and_stay(tmp_path: Path, name: str) -> None:
    folder = make_method(tmp_path, name)
    with pytest.raises(InputError, match=f"{name} has a name of risbench.methods itself: rename the folder"):
        methods.load(str(folder))
    assert methods.load("lts").__module__ == "risbench.methods.lts.lts"


def test_bare_name_is_never_a_folder_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_method(tmp_path, "own_near")
    make_method(tmp_path, "lts")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="Unknown method 'own_near'.*path of its folder .*here ./own_near"):
        methods.load("own_near")
    assert methods.load("./own_near").__module__ == "risbench.methods.own_near.own_near"
    assert methods.folder("lts") != tmp_path / "lts"


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


def test_folder_by_path_comes_before_a_folder_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_method(tmp_path / "builtin", "own_clash", size=1)
    mine = make_method(tmp_path / "mine", "own_clash", size=2)
    monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path / "builtin"))
    assert methods.load(str(mine)).size == 2  # type: ignore[attr-defined]
    assert methods.folder("own_clash") == mine


def test_folder_by_path_with_the_name_of_a_loaded_method_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_method(tmp_path / "builtin", "own_taken", size=1)
    mine = make_method(tmp_path / "mine", "own_taken", size=2)
    monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path / "builtin"))
    methods.load("own_taken")
    with pytest.raises(InputError, match="Another method named 'own_taken' is loaded from .*Rename your folder"):
        methods.load(str(mine))
    assert methods.load("own_taken").size == 1  # type: ignore[attr-defined]


def test_path_of_a_known_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_method(tmp_path, "own_known")
    monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path))
    assert methods.load(str(folder)) is methods.load("own_known")
    assert os.environ["RISBENCH_METHODS"] == str(tmp_path)


def test_folder_by_path_makes_nothing_beside_it_known(tmp_path: Path) -> None:
    make_method(tmp_path, "own_neighbour")
    (tmp_path / "lts").mkdir()
    (tmp_path / "lts" / "lts.py").write_text("raise AssertionError\n")
    methods.load(str(make_method(tmp_path, "own_chosen")))
    assert "own_neighbour" not in methods.names()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("risbench.methods.own_neighbour.own_neighbour")
    code = "from risbench import methods; print(methods.folder('lts').parent.name, methods.load('lts').__module__)"
    assert in_new_process(code).split() == ["methods", "risbench.methods.lts.lts"]


def test_environment_variable_may_name_one_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_method(tmp_path, "own_single", size=6)
    make_method(tmp_path, "own_other")
    monkeypatch.setenv("RISBENCH_METHODS", str(folder))
    assert methods.load("own_single").size == 6  # type: ignore[attr-defined]
    assert "own_other" not in methods.names()


def test_folder_that_the_environment_variable_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"holds a '{os.pathsep}', which RISBENCH_METHODS cannot"):
        methods.load(str(make_method(tmp_path / f"a{os.pathsep}b", "own_colon")))


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


def install(root: Path, package: str, entry_point: str) -> None:
    """Write the package of a method, and the metadata of its installation."""
    (make_method(root, package, size=9) / "__init__.py").write_text(f"from .{package} import Model\n")
    info = root / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[risbench.methods]\n{entry_point}\n")


@pytest.mark.parametrize("module", ["own_installed_package.own_installed_package:Model", "own_installed_package"])
def test_installed_package_offers_a_method_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    install(tmp_path, "own_installed_package", f"own-installed = {module}")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert "own-installed" in methods.names()
    assert methods.register("own-installed") == "own-installed"
    assert methods.folder("own-installed") == tmp_path / "own_installed_package"
    assert methods.load("own-installed").size == 9  # type: ignore[attr-defined]
    assert methods.origin("own-installed") == f"entry point {module} of own_installed_package 1"
    for name in [name for name in sys.modules if name.startswith("own_installed_package")]:
        del sys.modules[name]


def test_origin_says_where_a_method_is(tmp_path: Path) -> None:
    folder = make_method(tmp_path, "own_origin")
    assert methods.origin(str(folder)) == f"folder {folder}"
    assert methods.origin("lts") == "built-in"


def test_code_hash_is_of_the_names_and_contents_of_python_files(tmp_path: Path) -> None:
    folder = make_method(tmp_path / "a", "own_hashed")
    whole = methods.code_hash(str(folder))
    (folder / "README.md").write_text("no code")
    assert methods.code_hash(str(folder)) == whole
    (folder / "parts").mkdir()
    (folder / "parts" / "more.py").write_text("")
    with_more = methods.code_hash(str(folder))
    (folder / "parts" / "more.py").rename(folder / "more.py")
    assert len({whole, with_more, methods.code_hash(str(folder))}) == 3
    (folder / "more.py").unlink()
    assert methods.code_hash(str(folder)) == whole


def test_code_hash_of_an_imported_method_is_that_of_the_imported_code(tmp_path: Path) -> None:
    folder = make_method(tmp_path, "own_edited")
    methods.load(str(folder))
    before = methods.code_hash("own_edited")
    (folder / "part.py").write_text("SIZE = 4\n")
    assert methods.code_hash("own_edited") == before
    code = f"from risbench import methods; print(methods.code_hash({str(folder)!r}))"
    assert in_new_process(code).strip() not in ("", before)


@pytest.mark.parametrize("path", ["best/own_evil", "./own_evil", "../own_evil", "own_evil/", "a\\own_evil", "own evil"])
def test_path_in_a_file_is_followed_to_a_folder_that_the_user_has_named_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    folder = make_method(tmp_path / "best", "own_evil")
    monkeypatch.chdir(tmp_path)
    for stored in (path, str(folder)):
        with pytest.raises(InputError, match=r"checkpoint.json names code at a path .* nothing was run.*--method PATH"):
            methods.from_file(stored, "checkpoint.json")
    methods.register(str(folder))
    assert methods.from_file(str(folder), "checkpoint.json") == "own_evil"
