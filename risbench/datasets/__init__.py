"""Find a data set by its name, or by the path of its card.

A card is a TOML file of facts: files, splits with counts and their sources, licence, citation. The built-in cards are
in datasets/ at the top of a checkout, and in this folder in an installed wheel.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from risbench.errors import InputError, unknown

_PACKAGE = Path(__file__).parent
_REPOSITORY = _PACKAGE.parents[1]


class _CardTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Count(_CardTable):
    """A number of images, refs or expressions: enforced if it has a source, else unverified, and only warned about."""

    n: int = Field(ge=0)
    source: str = ""


class SplitCounts(_CardTable):
    """The size of a split. A count written as a bare number has the `source` of the split; None is unknown."""

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
        """Return the known counts by the unit: images, refs, expressions."""
        counts = {"images": self.images, "refs": self.refs, "expressions": self.expressions}
        return {unit: count for unit, count in counts.items() if count is not None}


class Card(_CardTable):
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
    """Package of risbench.data that generates the files on first use."""
    where: str
    """How to get the files."""
    licence: str
    citation: str
    splits: dict[str, SplitCounts] = Field(min_length=1)
    sha256: dict[str, str] = {}
    kinds: dict[str, float] = {}
    notes: str = ""
    file_sha256: str = ""
    """sha256 of the card itself; `load` sets it."""


def names() -> list[str]:
    """Return the names of the data sets with a built-in card."""
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
    folder = _REPOSITORY / "datasets" if (_REPOSITORY / "pyproject.toml").is_file() else _PACKAGE
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
        raise _card_error(error, path) from None


def _card_error(error: ValidationError, path: Path) -> InputError:
    """Describe the first defect; an unknown key comes first, because it may be a misspelt required key."""
    first = min(error.errors(), key=lambda defect: defect["type"] != "extra_forbidden")
    *table, key = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        model: type[_CardTable] = (Card, SplitCounts, Count)[max(0, len(table) - 1)]
        inside = f" of [{'.'.join(table)}]" if table else ""
        return unknown(f"key{inside} in the card {path}:", key, model.model_fields)
    return InputError(f"The card {path} has a wrong value at {'.'.join([*table, key])}: {first['msg']}. Mend it.")
