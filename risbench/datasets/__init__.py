"""Find a data set by its name, or by the path of its card.

A card is a TOML file of facts: files, splits with counts and their sources, licence, citation. The built-in ones lie in
datasets/ at the top of a checkout, and in this very folder in an installed wheel.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from risbench.errors import InputError, unknown

_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parents[1]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Count(_Facts):
    """How many there are. With a source the count is enforced, without one it is unverified and only warns."""

    n: int = Field(ge=0)
    source: str = ""


class SplitCounts(_Facts):
    """The size of a split. A count written as a bare number has the split's `source`; None is not known."""

    images: Count | None = None
    refs: Count | None = None
    expressions: Count | None = None
    source: str = ""
    evaluation: bool = True

    @model_validator(mode="before")
    @classmethod
    def _bare_numbers(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        source = values.get("source", "")
        return {k: {"n": v, "source": source} if type(v) is int else v for k, v in values.items()}

    def counts(self) -> dict[str, Count]:
        """The counts that are known, by the name of what is counted."""
        named = {"images": self.images, "refs": self.refs, "expressions": self.expressions}
        return {name: count for name, count in named.items() if count is not None}


class Card(_Facts):
    """The facts of one data set."""

    name: str
    title: str
    folder: str
    """Folder of the annotation files under the data root."""
    refs: str
    """File name of the refs: a pickle, or JSON (.json)."""
    instances: str
    """File name of the images, annotations and categories, in COCO's JSON."""
    images: str
    """Folder of the images under the data root."""
    partition: str
    """Who divided the refs into splits: unc, umd or google."""
    max_words: int
    default_variant: str = ""
    generator: str = ""
    """Module of risbench.data that makes the files on first use."""
    where: str
    """How to get the files."""
    licence: str
    citation: str
    splits: dict[str, SplitCounts] = Field(min_length=1)
    sha256: dict[str, str] = {}
    kinds: dict[str, float] = {}
    notes: str = ""
    file_sha256: str = ""
    """Of the card's own file; `load` sets it."""


def names() -> list[str]:
    """Names of the data sets that have a card."""
    return sorted(_cards())


def load(name_or_path: str) -> Card:
    """Read the card of a data set: a known name, or the path of a .toml file."""
    if name_or_path.endswith(".toml"):
        return _read(Path(name_or_path))
    if name_or_path not in _cards():
        raise unknown(
            "data set", name_or_path, names(), "For a data set of your own, give the path of its card (.toml)."
        )
    return _read(_cards()[name_or_path])


def _cards() -> dict[str, Path]:
    folder = _REPOSITORY / "datasets" if (_REPOSITORY / "pyproject.toml").is_file() else _HERE
    return {path.stem: path for path in folder.glob("*.toml")}


def _read(path: Path) -> Card:
    try:
        content = path.read_bytes()
        values = tomllib.loads(content.decode())
    except OSError as error:
        raise InputError(f"The card {path} cannot be read: {error.strerror}. Give the path of a TOML file.") from None
    except ValueError as error:  # TOML's and UTF-8's errors
        raise InputError(f"The card {path} is not TOML: {error}. Mend that line.") from None
    try:
        return Card(**{**values, "file_sha256": hashlib.sha256(content).hexdigest()})
    except ValidationError as error:
        raise _explained(error, path) from None


def _explained(error: ValidationError, path: Path) -> InputError:
    """Say in one sentence what is wrong; an unknown key first, since a known one may be missing because of it."""
    first = min(error.errors(), key=lambda defect: defect["type"] != "extra_forbidden")
    *table, key = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        model: type[_Facts] = (Card, SplitCounts, Count)[max(0, len(table) - 1)]
        inside = f" of [{'.'.join(table)}]" if table else ""
        return unknown(f"key{inside} in the card {path}:", key, model.model_fields)
    return InputError(f"The card {path} has a wrong value at {'.'.join([*table, key])}: {first['msg']}. Mend it.")
