"""Find a method by its name, or by the path of its folder.

A method is a folder: lts/ holds lts.py (the code, with a class Model), recipe.toml and README.md. The built-in methods
are in methods/ at the top of a checkout, or in this folder in an installed wheel. A method of the user's is a folder
given by its path, a folder that RISBENCH_METHODS names (itself or the folder around it), or an entry point
`risbench.methods` of an installed package, whose recipe.toml is in the module's folder. The folder of the method NAME
is the module risbench.methods.NAME, so that its classes import and pickle in any process.

A path is followed only where the user gives it: on the command line, in RISBENCH_METHODS or in a call. A name that a
file holds (a checkpoint, a baseline, a plan, a run) may come from elsewhere: it goes through `from_file`.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from risbench import files
from risbench.errors import InputError, unknown

if TYPE_CHECKING:
    from risbench.api import Method

_PACKAGE = Path(__file__).parent
_REPOSITORY = _PACKAGE.parents[1]
_ENV = "RISBENCH_METHODS"  # folders of methods, or of one method; worker processes inherit it
_NAME = re.compile(r"\w[\w.-]*")  # no path: it has no separator, and is neither . nor ..
_CURE = f"--method PATH, or {_ENV}=PATH"

_log = logging.getLogger(__name__)
_warned: set[tuple[str, str]] = set()  # names and hashes that were warned about
_loaded_hashes: dict[str, str] = {}  # of the code as it was imported, by the module's name


def names() -> list[str]:
    """Return the names of all methods, without importing any."""
    return sorted({*_folders(), *entry_points(group="risbench.methods").names})


def register(name_or_path: str) -> str:
    """Return the name of a method that the user gives; a folder is known by its name from now on.

    The name is the folder's or the entry point's, here and in processes that are started later. Raises InputError for
    an unknown name, and for a folder that holds no method.
    """
    if not is_path(name_or_path):
        _locate(name_or_path)
        return name_or_path
    location = Path(name_or_path).resolve()
    if not (location / "recipe.toml").is_file():
        raise InputError(
            f"{name_or_path} is no folder of a method: it holds no recipe.toml. Give the path of a folder that does, "
            f"or a name: {', '.join(names())}."
        )
    _check_folder(location)
    if location != _folders().get(location.name):
        os.environ[_ENV] = os.pathsep.join(filter(None, [str(location), os.environ.get(_ENV)]))
    return location.name


def from_file(name: str, place: Path | str, cure: str = _CURE) -> str:
    """Return the name of a method that a file holds; a path in a file is not followed.

    Where the user has named a folder of the same name as the path's last part, that folder is the method. Raises
    InputError for any other path.
    """
    if not is_path(name):
        return name
    last_part = re.split(r"[/\\]+", name.rstrip("/\\"))[-1]
    if last_part in _folders_below(_user_roots()):
        return last_part
    raise InputError(
        f"{place} names code at a path as its method, {name!r}. A path in a file is not followed, and nothing was run. "
        f"If you trust this code, give its folder yourself: {cure}."
    )


def is_path(name: str) -> bool:
    """Whether this is the path of a folder and no name; a folder beside the process needs ./ before its name."""
    return bool(name) and not _NAME.fullmatch(name)


def is_reserved(name: str) -> bool:
    """Whether a method of this name would replace a name of this package, of which it becomes an attribute."""
    return name in _RESERVED


def folder(name_or_path: str) -> Path:
    """Return the folder of a method, without importing its code. Raises InputError for an unknown method."""
    name = register(name_or_path)
    location = _locate(name)
    return location if isinstance(location, Path) else _module_file(name, location).parent


def recipe_file(name_or_path: str) -> Path:
    """Return the recipe.toml of a method."""
    return folder(name_or_path) / "recipe.toml"


def origin(name_or_path: str) -> str:
    """Describe where a method is: built-in, the folder's path, or the entry point. For messages only."""
    location = _locate(register(name_or_path))
    if isinstance(location, Path):
        is_builtin = location.parent in _builtin_roots()
        return "built-in" if is_builtin else f"folder {location}"
    package = f" of {location.dist.name} {location.dist.version}" if location.dist else ""
    return f"entry point {location.value}{package}"


def code_hash(name_or_path: str) -> str:
    """Return the SHA-256 of a method's Python files; of an imported method, as they were then."""
    name = register(name_or_path)
    module_name = _module_name(name)
    if module_name in sys.modules and module_name in _loaded_hashes:
        return _loaded_hashes[module_name]
    return files.sha256_of_files(*_code_files(name))


def warn_of_other_code(name: str, code: str, place: Path | str) -> None:
    """Warn, once, that a method's code is not the code that made a run or checkpoint; "" is not known."""
    today = code_hash(name)
    if code and code != today and (name, code) not in _warned:
        _warned.add((name, code))
        _log.warning("%s: made by other code of %s (sha256 %s) than today's (%s).", place, name, code[:12], today[:12])


def module(name_or_path: str) -> ModuleType:
    """Import the code of a method. Raises InputError for an unknown method or a folder without code."""
    name = register(name_or_path)
    location = _locate(name)
    if isinstance(location, Path):
        _check_folder(location)
    module_name = _module_name(name)
    if module_name not in sys.modules:
        _loaded_hashes[module_name] = files.sha256_of_files(*_code_files(name))
    return importlib.import_module(module_name)


def load(name_or_path: str) -> type[Method]:
    """Return the class Model of a method. Raises InputError when there is none."""
    code = module(name_or_path)
    model: type[Method] | None = getattr(code, "Model", None)
    if model is None:
        raise InputError(f"{code.__file__} has no class Model. Give the method's class this name (risbench/api.py).")
    return model


def _locate(name: str) -> Path | EntryPoint:
    """Find a method by the name of its folder, else by that of an entry point."""
    if is_path(name):
        raise InputError(f"{name!r} is no name of a method.")
    if (location := _folders().get(name)) is not None:
        return location
    for entry_point in entry_points(group="risbench.methods", name=name):
        return entry_point
    here = f", here ./{name}" if name and (Path(name) / "recipe.toml").is_file() else ""
    cure = (
        f"For a method of your own, give the path of its folder (the one with recipe.toml{here}): {_CURE}. For that of "
        "a package, install the package."
    )
    raise unknown("method", name, names(), cure)


def _folders() -> dict[str, Path]:
    """Return the folders of methods by name: the user's, in the order of RISBENCH_METHODS, before the built-in ones."""
    return _folders_below([*_user_roots(), *_builtin_roots()])


def _folders_below(roots: Sequence[Path]) -> dict[str, Path]:
    """Return the roots that are methods and the methods in the others, by name; the first of a name wins."""
    by_name: dict[str, Path] = {}
    for root in roots:
        is_method = (root / "recipe.toml").is_file()
        for location in [root] if is_method else sorted(file.parent for file in root.glob("*/recipe.toml")):
            by_name.setdefault(location.name, location)
    return by_name


def _user_roots() -> list[Path]:
    return [Path(root).resolve() for root in os.environ.get(_ENV, "").split(os.pathsep) if root]


def _builtin_roots() -> list[Path]:
    return [_PACKAGE, *([_REPOSITORY / "methods"] if (_REPOSITORY / "pyproject.toml").is_file() else [])]


def _check_folder(location: Path) -> None:
    """Refuse a folder that cannot be imported as risbench.methods.NAME."""
    name = location.name
    if not name.isidentifier() or not (location / f"{name}.py").is_file():
        raise InputError(f"The folder {location} must have the name of a Python module and its code in <name>.py.")
    if is_reserved(name):
        raise InputError(
            f"The method {location} has a name of risbench.methods itself: rename the folder and <name>.py."
        )
    if os.pathsep in str(location):
        raise InputError(f"The path {location} of a method holds a {os.pathsep!r}, which {_ENV} cannot: rename it.")
    loaded = sys.modules.get(f"{__name__}.{name}.{name}")
    if loaded is not None and not Path(str(loaded.__file__)).parent.samefile(location):
        raise InputError(f"Another method named {name!r} is loaded from {loaded.__file__}. Rename your folder.")


def _module_name(name: str) -> str:
    location = _locate(name)
    return f"{__name__}.{name}.{name}" if isinstance(location, Path) else location.module


def _module_file(name: str, entry_point: EntryPoint) -> Path:
    """Return the file of an entry point's module."""
    try:
        spec = find_spec(entry_point.module)
    except ModuleNotFoundError:  # the package around the module
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(f"The method {name!r} is {entry_point.module}, which is missing. Install it again.")
    return Path(spec.origin)


def _code_files(name: str) -> tuple[Path, Iterable[Path]]:
    """Return the folder of a method and its Python files."""
    location = _locate(name)
    if isinstance(location, Path):
        return location, location.rglob("*.py")
    file = _module_file(name, location)
    is_single = "." not in location.module and file.name != "__init__.py"  # its folder holds other packages, too
    return file.parent, [file] if is_single else file.parent.rglob("*.py")


class _MethodFinder(MetaPathFinder):
    """Make the folder of the method NAME, and nothing beside it, the module risbench.methods.NAME."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        location = _folders().get(name) if package == __name__ else None
        if location is None:
            return None
        init = location / "__init__.py"
        if init.is_file():
            return spec_from_file_location(fullname, init, submodule_search_locations=[str(location)])
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(location)]
        return spec


_RESERVED = frozenset(globals())
sys.meta_path.insert(0, _MethodFinder())
