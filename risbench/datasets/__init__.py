"""Find a data set by its name, or by the path of its card.

A card is a TOML file of facts: files, splits with counts and their sources, licence, citation. The built-in cards are
in datasets/ at the top of a checkout, and in this folder in an installed wheel. Cards of a user's lie in the folders
that RISBENCH_DATASETS names. Every name is one card's: a second card of a name is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from risbench import files
from risbench.errors import InputError, unknown

_PACKAGE = Path(__file__).parent
_REPOSITORY = _PACKAGE.parents[1]
_ENV = "RISBENCH_DATASETS"  # folders of the user's cards
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 ._+-]{0,62}[A-Za-z0-9+])?")


def _check_name(name: str) -> str:
    """Refuse a name that is not safe in the name of a file, or that would be read as a path."""
    if not _NAME.fullmatch(name) or name.endswith(".toml"):
        raise ValueError(
            f"{name!r} is no name: take at most 64 letters, digits and the characters - _ + . (no .toml at its end)"
        )
    return name


def _check_place(place: str) -> str:
    """Refuse a path that leads out of the data root; a card may come from elsewhere."""
    parts = PurePosixPath(place).parts
    if PurePosixPath(place).is_absolute() or PureWindowsPath(place).anchor or ".." in parts or "\\" in place:
        raise ValueError(
            f"{place!r} leads out of the data root: write a path below it with /, without .. (--images, in Python "
            "images=, names another folder of images)"
        )
    if any(len(part.encode()) > 255 for part in parts) or len(place) > 1000:
        raise ValueError(f"{place[:40]!r}... is longer than a path can be")
    return place


_Name = Annotated[str, AfterValidator(_check_name)]
_Place = Annotated[str, AfterValidator(_check_place)]


class _CardTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _no_control_characters(cls, value: Any) -> Any:
        if isinstance(value, str) and (wrong := re.search(r"[^\t\n\r\x20-\x7e\xa0-\U0010ffff]", value)):
            raise ValueError(f"it holds the control character {wrong[0]!r}")
        return value


class Count(_CardTable):
    """A number of images, refs or expressions: enforced if it has a source, else unverified, and only warned about."""

    n: int = Field(ge=0, lt=2**53)
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

    name: _Name
    title: str
    folder: _Place
    """Folder of the annotation files under the data root."""
    refs: _Place
    """File name of the refs: a pickle, or JSON (.json)."""
    instances: _Place
    """File name of the images, annotations and categories, in COCO's JSON."""
    images: _Place
    """Folder of the images under the data root."""
    partition: str
    """Who divided the refs into splits: unc, umd or google."""
    max_words: int = Field(ge=1, le=512)
    """Longest expression that methods keep unless their recipe sets text.max_tokens."""
    no_target: bool = False
    """Whether there are expressions without a target, which have gIoU and cIoU in place of oIoU and mIoU."""
    default_variant: str = ""
    generator: str = ""
    """Package of risbench.data that generates the files on first use."""
    where: str
    """How to get the files."""
    licence: str
    citation: str
    splits: dict[_Name, SplitCounts] = Field(min_length=1)
    sha256: dict[str, str] = {}
    kinds: dict[str, float] = {}
    notes: str = ""
    file_sha256: str = ""
    """sha256 of the card itself; `load` sets it."""


def names() -> list[str]:
    """Return the names of the built-in data sets, and of those in the folders of RISBENCH_DATASETS."""
    return sorted(_cards())


def load(name_or_path: str) -> Card:
    """Read the card of a data set: a known name, or the path of a .toml file. Raises InputError if it is wrong."""
    is_path = name_or_path.endswith(".toml")
    cards = _cards()
    if not is_path and name_or_path not in cards:
        raise unknown("data set", name_or_path, sorted(cards), _cure())
    path = Path(name_or_path) if is_path else cards[name_or_path]
    card = _read(path)
    if not is_path and card.name != name_or_path:
        raise InputError(f"The card {path} is of the data set {card.name!r}: give the file the same name.")
    other = cards.get(card.name, path)
    if other != path and files.read_bytes(other) != files.read_bytes(path):
        raise InputError(f"The cards {path} and {other} differ and are both named {card.name!r}: rename the first.")
    return card


def defects(name_or_path: str) -> list[str]:
    """Return one sentence for everything that is wrong in a card, by its keys; empty for a sound card."""
    try:
        load(name_or_path)
    except _WrongCard as error:
        return error.defects
    except InputError as error:
        return [str(error)]
    return []


class _WrongCard(InputError):
    """A card whose keys or values are wrong: the message is the first defect."""

    def __init__(self, defects: list[str]) -> None:
        super().__init__(defects[0])
        self.defects = defects


def _cards() -> dict[str, Path]:
    """Return the path of every card by its name."""
    folder = _REPOSITORY / "datasets" if (_REPOSITORY / "pyproject.toml").is_file() else _PACKAGE
    folders = [Path(os.path.realpath(folder)), *_user_folders()]
    cards: dict[str, Path] = {}
    for path in (path for folder in dict.fromkeys(folders) for path in sorted(folder.glob("*.toml"))):
        other = cards.setdefault(path.stem, path)
        if other != path:
            raise InputError(
                f"{_ENV} holds the card {path}, but {path.stem} is the data set of {other}. Give the file, and `name` "
                "in it, another name."
            )
    return cards


def _user_folders() -> list[Path]:
    """Return the folders of cards that the user has named, each once."""
    roots = filter(None, os.environ.get(_ENV, "").split(os.pathsep))
    return list(dict.fromkeys(Path(os.path.realpath(root)) for root in roots))


def _cure() -> str:
    missing = [str(folder) for folder in _user_folders() if not folder.is_dir()]
    problem = f" {_ENV} names {', '.join(missing)}, which is no folder." if missing else ""
    return f"For a data set of your own, give the path of its card (.toml), or the folder around it in {_ENV}.{problem}"


def _read(path: Path) -> Card:
    try:
        content = files.read_bytes(path)
        values = files.parse_toml(content)
    except OSError as error:
        raise InputError(f"The card {path} cannot be read: {error.strerror}. Give the path of a TOML file.") from None
    except InputError:
        raise
    except ValueError as error:  # TOML's and UTF-8's errors
        raise InputError(f"The card {path} is not TOML: {error}. Mend that line.") from None
    try:
        return Card(**{**values, "file_sha256": hashlib.sha256(content).hexdigest()})
    except ValidationError as error:
        raise _WrongCard(_card_defects(error, path)) from None


def _card_defects(error: ValidationError, path: Path) -> list[str]:
    """Describe the defects; an unknown key comes first, because it may be a misspelt required key."""
    ordered = sorted(error.errors(), key=lambda defect: defect["type"] != "extra_forbidden")
    return [_card_defect(dict(defect), path) for defect in ordered]


def _card_defect(defect: dict[str, Any], path: Path) -> str:
    *table, key = [str(part) for part in defect["loc"]]
    if defect["type"] == "extra_forbidden":
        model: type[_CardTable] = (Card, SplitCounts, Count)[max(0, len(table) - 1)]
        inside = f" of [{'.'.join(table)}]" if table else ""
        known = [name for name in model.model_fields if name != "file_sha256"]
        return str(unknown(f"key{inside} in the card {path}:", key, known))
    place = ".".join([*table, key]).removesuffix(".[key]")
    problem = str(defect["msg"]).removeprefix("Value error, ")
    return f"The card {path} has a wrong value at {place}: {problem}. Mend it."
