"""The papers' tables and the methods' headline numbers, read from results/papers.toml, which explains every key."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from risbench.errors import InputError, defect
from risbench.files import parse_toml, read_bytes


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Selection(_Part):
    """Rows of published.csv: all that agree in every field that is set."""

    source: str
    table: str | None = None
    method: str | None = None
    backbone: str | None = None
    variant: str | None = None


class PublishedMethod(_Part):
    """How published.csv names a method of risbench, and where its headline numbers stand."""

    printed: str
    headline: tuple[Selection, ...]
    protocols: tuple[str, ...]


class Configuration(_Part):
    """What risbench trains: a method's folder and variants of its recipe."""

    method: str
    variants: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.method, *self.variants))


class FilledRow(Configuration):
    """A row that risbench can fill, by the method and the variant as printed."""

    printed: tuple[str, str]


class ExtraRow(Configuration):
    """A row that the paper does not have, by its labels."""

    labels: tuple[str, ...]


class Label(_Part):
    """A column of words."""

    name: str
    text: str = "{number.variant}"
    part: str = ""
    check: bool = False
    missing: str = ""
    wide: bool = False

    @field_validator("text")
    @classmethod
    def _names_columns(cls, text: str) -> str:
        for _, field, _, _ in string.Formatter().parse(text):
            if field is not None and not re.fullmatch(r"number\.[a-z]\w*", field):
                raise ValueError(f"{{{field}}} is no column: write {{number.COLUMN}}")
        return text

    @field_validator("part")
    @classmethod
    def _has_a_group(cls, part: str) -> str:
        try:
            groups = re.compile(part).groups
        except re.error as error:
            raise ValueError(f"{part!r} is no regular expression: {error}") from None
        if part and not groups:
            raise ValueError(f"{part!r} has no group: put what is shown in brackets")
        return part


class Paper(_Part):
    """One table of a paper."""

    name: str
    title: str
    numbers: tuple[Selection, ...]
    metrics: tuple[str, ...] | None = None
    columns: tuple[Literal["dataset", "split", "metric"], ...]
    group: Label | None = None
    labels: tuple[Label, ...]
    filled_rows: tuple[FilledRow, ...] = ()
    extra_rows: tuple[ExtraRow, ...] = ()
    note: str = ""


class _File(_Part):
    default_variants: frozenset[str]
    methods: Mapping[str, PublishedMethod] = Field(alias="method")
    papers: tuple[Paper, ...] = Field(alias="table")


def data_file(name: str) -> Path:
    """Return the path of a data file: in `results/` of a checkout, beside this module in a wheel."""
    installed = Path(__file__).with_name(name)
    return installed if installed.is_file() else Path(__file__).parents[2] / "results" / name


@functools.cache
def _read() -> _File:
    path = data_file("papers.toml")
    try:
        return _File.model_validate(parse_toml(read_bytes(path).decode("utf-8-sig")))
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise damaged(path, f"wrong value at {defect(error)}") from None
    except ValueError as error:
        raise damaged(path, f"it is not TOML: {error}") from None


def damaged(path: Path, reason: str) -> InputError:
    """Return the error for a data file that does not hold what it should."""
    return InputError(f"{path} is damaged ({reason}): correct it, or take the file of the release again.")


def titles() -> dict[str, str]:
    """Return the title of every paper's table by its name."""
    return {paper.name: paper.title for paper in _read().papers}


def load(name: str) -> Paper:
    """Return the table with a name from `titles`."""
    return next(paper for paper in _read().papers if paper.name == name)


def methods() -> Mapping[str, PublishedMethod]:
    """Return the published methods that risbench trains, by the name of their folder."""
    return _read().methods


def default_variants() -> frozenset[str]:
    """Return the variants that repeat the default of their recipe."""
    return _read().default_variants
