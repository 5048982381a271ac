"""Write the folder of a new method: a small network that trains on mini and meets the contract."""

from __future__ import annotations

import keyword
import shutil
from pathlib import Path

from risbench import files, methods
from risbench.errors import InputError

TEMPLATE = Path(__file__).parent / "template"  # itself the folder of a method


def new_method(name: str, parent: Path) -> Path:
    """Write the folder `parent`/NAME of a new method, and return it. Raises InputError for a name that cannot be."""
    _check_name(name)
    folder = parent / name
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists already: give another name, or another --folder.")
    with files.replacing(folder) as new:
        new.mkdir()
        shutil.copy(TEMPLATE / "template.py", new / f"{name}.py")
        for file in ("recipe.toml", "README.md"):
            shutil.copy(TEMPLATE / file, new / file)
        for path in new.iterdir():
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("TEMPLATE", name), encoding="utf-8")
    return folder


def _check_name(name: str) -> None:
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name.startswith("_"):
        raise InputError(
            f"{name!r} cannot be the name of a method: Python must be able to import it. Take letters, digits and _, "
            "and begin with a letter."
        )
    if methods.is_reserved(name):
        raise InputError(f"{name!r} is a name of risbench.methods itself: give the method another name.")
    if name == "reference" or name in methods.names():
        raise InputError(f"There is a method {name} already: give another name.")
