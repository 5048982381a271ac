"""Find a method by its name, or by the path of its folder.

A method is a folder: lts/ holds lts.py (the code, with a class Model), recipe.toml and README.md. The built-in ones lie
in methods/ at the top of a checkout, and in this very folder in an installed wheel. Either way they are ordinary
modules, risbench.methods.lts.lts, which import and pickle in any process. A method of one's own is found by the path of
its folder, by its name where RISBENCH_METHODS holds the folder around it, or by an entry point `risbench.methods` of an
installed package, whose recipe.toml lies beside the module.
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
_ENV = "RISBENCH_METHODS"  # where the user's own methods lie; worker processes inherit it

if (_REPOSITORY / "pyproject.toml").is_file():
    __path__.append(str(_REPOSITORY / "methods"))
__path__[:0] = [os.path.abspath(root) for root in os.environ.get(_ENV, "").split(os.pathsep) if root]


def names() -> list[str]:
    """Names of the methods that can be found, without importing any."""
    return sorted({*_folders(), *entry_points(group="risbench.methods").names})


def folder(name_or_path: str) -> Path:
    """Return the folder of a method, without importing its code."""
    found = _locate(name_or_path)
    if isinstance(found, Path):
        return found
    spec = find_spec(found.module)
    if spec is None or spec.origin is None:
        raise InputError(f"The method {name_or_path!r} names {found.module}, which is not there. Install it again.")
    return Path(spec.origin).parent


def recipe_file(name_or_path: str) -> Path:
    """Return the recipe.toml of a method."""
    return folder(name_or_path) / "recipe.toml"


def module(name_or_path: str) -> ModuleType:
    """Import the code of a method."""
    found = _locate(name_or_path)
    if not isinstance(found, Path):
        return importlib.import_module(found.module)
    if not found.name.isidentifier() or not (found / f"{found.name}.py").is_file():
        raise InputError(f"The folder {found} must have the name of a Python module and its code in <name>.py.")
    _search(found)
    return importlib.import_module(f"{__name__}.{found.name}.{found.name}")


def load(name_or_path: str) -> type[Method]:
    """Return the class of a method."""
    code = module(name_or_path)
    found: type[Method] | None = getattr(code, "Model", None)
    if found is None:
        raise InputError(f"{code.__file__} has no class Model. Give the method's class this name (risbench/api.py).")
    return found


def _folders() -> dict[str, Path]:
    """Return the folders by name; of two with one name the one that import finds, in the first root."""
    recipes = [file for root in reversed(__path__) for file in Path(root).glob("*/recipe.toml")]
    return {file.parent.name: file.parent for file in recipes}


def _locate(name_or_path: str) -> Path | EntryPoint:
    """Find a method: a path, then the name of a folder, then that of an installed package."""
    if (Path(name_or_path) / "recipe.toml").is_file():
        return Path(name_or_path).resolve()
    if name_or_path in _folders():
        return _folders()[name_or_path]
    for installed in entry_points(group="risbench.methods", name=name_or_path):
        return installed
    cure = "For a method of your own, give the path of its folder (the one with recipe.toml)."
    raise unknown("method", name_or_path, names(), cure)


def _search(folder: Path) -> None:
    """Make import find this very folder, here and in the processes started from here."""
    loaded = sys.modules.get(f"{__name__}.{folder.name}.{folder.name}")
    if loaded is not None and not Path(str(loaded.__file__)).parent.samefile(folder):
        raise InputError(f"Another method named {folder.name!r} is loaded from {loaded.__file__}. Rename your folder.")
    known = _folders().get(folder.name)
    if known is None or not known.samefile(folder):
        __path__.insert(0, str(folder.parent))
        os.environ[_ENV] = os.pathsep.join(filter(None, [str(folder.parent), os.environ.get(_ENV)]))
