"""A table, independent of any format: cells with intervals, spreads and marks, columns, rows and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Value = str | int | float | None

SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


@dataclass(frozen=True)
class Cell:
    """One value with its interval, its spread and its marks."""

    value: Value = None
    interval: tuple[float, float] | None = None  # 95 %
    spread: float | None = None  # sample standard deviation over seeds
    remark: str = ""  # words for people, not part of the value
    footnote: str = ""  # the mark of a footnote, for people
    number_format: str = ".2f"  # of a float, for people
    mark: str = ""  # for people and programs
    best: bool = False  # of the values it can be compared with, beyond chance
    ditto: bool = False  # the same as in the row above: left out for people

    @property
    def head(self) -> str:
        """The value and its marks, for people."""
        value = "" if self.value is None else self.value
        text = format(value, self.number_format) if isinstance(value, float) else str(value)
        return "" if self.ditto else text + self.mark + self.footnote

    @property
    def annotation(self) -> str:
        """The interval, the spread and the remark, for people."""
        interval = "[{:.2f}, {:.2f}]".format(*self.interval) if self.interval else ""
        spread = f"± {self.spread:.2f}" if self.spread is not None else ""
        return " ".join(filter(None, [interval, spread, self.remark]))

    @property
    def text(self) -> str:
        """Head and annotation on one line."""
        return f"{self.head} {self.annotation}".strip()

    def fields(self) -> dict[str, Value]:
        """Return what a program reads: the value under "", everything else under its name, None if it is absent."""
        low, high = self.interval or (None, None)
        numbers: dict[str, Value] = {"": self.value, "low": low, "high": high, "spread": self.spread}
        return numbers | {"mark": self.mark or None, "best": "yes" if self.best else None}


@dataclass(frozen=True)
class Column:
    """A column, and where it is shown."""

    name: str
    shown: Literal["block", "always", "wide", "data"] = "always"
    """block: groups the rows; wide: not in a terminal; data: only for programs."""
    numeric: bool = False
    detail: int = 0
    """How soon it leaves a narrow terminal: the highest number first; see `risbench.render.terminal`."""
    intervals: bool = False  # programs get the ends of an interval even if no cell has one


@dataclass(frozen=True)
class Table:
    """A table, independent of any format."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def select(self, *shown: str) -> Table:
        """Keep the columns with one of these values of `shown`."""
        kept = [i for i, column in enumerate(self.columns) if column.shown in shown]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    def names(self) -> list[str]:
        """Return the names of the columns."""
        return [column.name for column in self.columns]

    def blocks(self) -> list[tuple[str, list[tuple[Cell, ...]]]]:
        """Group the rows that agree in the block columns: (heading, rows)."""
        blocks: dict[str, list[tuple[Cell, ...]]] = {}
        for row in self.rows:
            parts = [c.text for c, column in zip(row, self.columns, strict=True) if column.shown == "block"]
            blocks.setdefault(" ".join(parts), []).append(row)
        return list(blocks.items())

    def as_dicts(self) -> list[dict[str, Value]]:
        """Return the rows for programs; a field of a cell becomes a column where any row has it."""
        cells = [[cell.fields() for cell in column] for column in zip(*self.rows, strict=True)]
        used = [["", *_used_fields(column, some)] for column, some in zip(self.columns, cells, strict=False)]
        return [
            {
                f"{name} {field}".strip(): cell.fields()[field]
                for name, cell, fields in zip(self.names(), row, used, strict=True)
                for field in fields
            }
            for row in self.rows
        ]


def _used_fields(column: Column, cells: Sequence[dict[str, Value]]) -> list[str]:
    """Return the fields beside the value that any cell of a column has, in the order in which they occur."""
    occurring = (field for cell in cells for field, value in cell.items() if field and value is not None)
    return list(dict.fromkeys([*(["low", "high"] if column.intervals else []), *occurring]))


def superscript(number: int) -> str:
    """Write the number of a footnote."""
    return "".join(SUPERSCRIPTS[int(digit)] for digit in str(number))
