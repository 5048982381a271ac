"""Find a method by its name, or by the path of its folder.

A method is a folder: lts/ holds lts.py (the code, with a class Model), recipe.toml and README.md. The built-in methods
are in methods/ at the top of a checkout, or in this folder in an installed wheel. Both are ordinary modules, such as
risbench.methods.lts.lts, that import and pickle in any process. Other methods are found by the path of their folder, by
name if RISBENCH_METHODS holds the parent folder, or by an entry point `risbench.methods` of an installed package, whose
recipe.toml is in the module's folder.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from risbench.errors import InputError, unknown

if TYPE_CHECKING:
    from risbench.api import Method

_REPOSITORY = Path(__file__).parents[2]
_ENV = "RISBENCH_METHODS"  # parent folders of the user's methods; worker processes inherit it

if (_REPOSITORY / "pyproject.toml").is_file():
    __path__.append(str(_REPOSITORY / "methods"))
__path__[:0] = [os.path.abspath(root) for root in os.environ.get(_ENV, "").split(os.pathsep) if root]


def names() -> list[str]:
    """Return the names of all methods, without importing any."""
    return sorted({*_folders(), *entry_points(group="risbench.methods").names})


def folder(name_or_path: str) -> Path:
    """Return the folder of a method, without importing its code. Raises InputError for an unknown method."""
    location = _locate(name_or_path)
    if isinstance(location, Path):
        return location
    spec = find_spec(location.module)
    if spec is None or spec.origin is None:
        raise InputError(f"The method {name_or_path!r} is {location.module}, which is missing. Install it again.")
    return Path(spec.origin).parent


def recipe_file(name_or_path: str) -> Path:
    """Return the recipe.toml of a method."""
    return folder(name_or_path) / "recipe.toml"


def module(name_or_path: str) -> ModuleType:
    """Import the code of a method. Raises InputError for an unknown method or a folder without code."""
    location = _locate(name_or_path)
    if not isinstance(location, Path):
        return importlib.import_module(location.module)
    name = location.name
    if not name.isidentifier() or not (location / f"{name}.py").is_file():
        raise InputError(f"The folder {location} must have the name of a Python module and its code in <name>.py.")
    _make_importable(location)
    return importlib.import_module(f"{__name__}.{name}.{name}")


def load(name_or_path: str) -> type[Method]:
    """Return the class Model of a method. Raises InputError when there is none."""
    code = module(name_or_path)
    model: type[Method] | None = getattr(code, "Model", None)
    if model is None:
        raise InputError(f"{code.__file__} has no class Model. Give the method's class this name (risbench/api.py).")
    return model


def _folders() -> dict[str, Path]:
    """Return the folders of methods by name; the first root on the search path wins."""
    recipes = [file for root in reversed(__path__) for file in Path(root).glob("*/recipe.toml")]
    return {file.parent.name: file.parent for file in recipes}


def _locate(name_or_path: str) -> Path | EntryPoint:
    """Find a method by a path, else by the name of a folder, else by the name of an entry point."""
    if (Path(name_or_path) / "recipe.toml").is_file():
        return Path(name_or_path).resolve()
    if name_or_path in _folders():
        return _folders()[name_or_path]
    for entry_point in entry_points(group="risbench.methods", name=name_or_path):
        return entry_point
    cure = "For a method of your own, give the path of its folder (the one with recipe.toml)."
    raise unknown("method", name_or_path, names(), cure)


def _make_importable(folder: Path) -> None:
    """Put a folder on the search path, here and in processes that are started later."""
    loaded = sys.modules.get(f"{__name__}.{folder.name}.{folder.name}")
    if loaded is not None and not Path(str(loaded.__file__)).parent.samefile(folder):
        raise InputError(f"Another method named {folder.name!r} is loaded from {loaded.__file__}. Rename your folder.")
    known = _folders().get(folder.name)
    if known is None or not known.samefile(folder):
        __path__.insert(0, str(folder.parent))
        os.environ[_ENV] = os.pathsep.join(filter(None, [str(folder.parent), os.environ.get(_ENV)]))
