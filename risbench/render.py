"""Tables, and the six formats in which they can be written.

For people (terminal, markdown, latex, html) numbers have two decimals. For programs (csv, json) they have all digits,
and the ends of an interval and the spread over seeds have columns of their own.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jinja2
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from risbench.errors import unknown

Value = str | int | float | None

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


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
        columns = [[cell.fields() for cell in column] for column in zip(*self.rows, strict=True)]
        used = [["", *_used_fields(column)] for column in columns]
        return [
            {
                f"{name} {field}".strip(): cell.fields()[field]
                for name, cell, fields in zip(self.names(), row, used, strict=True)
                for field in fields
            }
            for row in self.rows
        ]


def _used_fields(column: Sequence[dict[str, Value]]) -> list[str]:
    """Return the fields beside the value that any cell of a column has, in the order in which they occur."""
    occurring = (field for cell in column for field, value in cell.items() if field and value is not None)
    return list(dict.fromkeys(occurring))


def superscript(number: int) -> str:
    """Write the number of a footnote."""
    return "".join(_SUPERSCRIPTS[int(digit)] for digit in str(number))


def render(tables: Sequence[Table], format_: str) -> str:
    """Write tables as text in one of FORMATS."""
    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS)
    return FORMATS[format_](tables)


def _terminal(tables: Sequence[Table]) -> str:
    console = Console(highlight=False)
    width = console.width if sys.stdout.isatty() else 120
    console.width = 1000  # a line broken by the terminal is better than a number cut short
    with console.capture() as capture:
        for table in tables:
            console.print(Text(table.title, style="bold underline"), "", sep="\n")
            for heading, rows in table.blocks():
                if heading:
                    console.print(Text(heading, style="bold"))
                _print_block(console, table.columns, rows, width)
            for note in (*table.notes, ""):
                console.print(note, style="dim", markup=False, width=width)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _print_block(console: Console, columns: Sequence[Column], rows: Sequence[tuple[Cell, ...]], width: int) -> None:
    """Print a block with the widest spacing that fits, or without intervals if it does not fit otherwise."""
    without_intervals = [tuple(replace(cell, interval=None) for cell in row) for row in rows]
    loose, close, *narrow = (_grid(columns, cells, gap) for cells in (rows, without_intervals) for gap in (1, 0))
    fitting = [grid for grid in (close, *narrow) if console.measure(grid).minimum <= width]
    grid = loose if console.measure(loose).maximum <= width else (fitting or [close])[0]
    console.print(grid, width=max(width, console.measure(grid).minimum))
    if grid in narrow:
        console.print("Too narrow for the intervals; --format markdown shows them.", style="dim")
    console.print()


def _grid(columns: Sequence[Column], rows: Sequence[tuple[Cell, ...]], gap: int) -> RichTable:
    """Lay out one block: annotations go below their values, columns that are empty in this block are left out."""
    first, *rest = (i for i, c in enumerate(columns) if c.shown == "always" and any(row[i].text for row in rows))
    grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    names = max(len(row[first].head) for row in rows)
    remarks = min(22, max(len(row[first].annotation) for row in rows))  # longer ones are folded
    grid.add_column(columns[first].name, overflow="fold", width=max(names, remarks, len(columns[first].name)))
    for column, cells in ((columns[i], [row[i] for row in rows]) for i in rest):
        widest = max((len(line) for cell in cells for line in _terminal_cell(cell).plain.splitlines()), default=0)
        unbroken = {"justify": "right", "no_wrap": True, "min_width": widest}
        layout: dict[str, Any] = unbroken if column.numeric else {"max_width": 11}
        grid.add_column(column.name.replace(" ", "\n"), overflow="fold", **layout)
    for row in rows:
        grid.add_row(*(_terminal_cell(row[i]) for i in (first, *rest)))
    return grid


def _terminal_cell(cell: Cell) -> Text:
    head = Text(f"{cell.head}*", style="bold") if cell.best else Text(cell.head)  # the star, if bold is not visible
    return Text("\n").join(filter(None, [head, Text(cell.annotation, style="dim")]))


def _markdown(tables: Sequence[Table]) -> str:
    return "\n".join(_markdown_table(table.select("block", "always", "wide")) for table in tables)


def _markdown_table(table: Table) -> str:
    align = ["right" if column.numeric else "left" for column in table.columns]
    rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    names = [_markdown_text(name) for name in table.names()]
    grid = tabulate(rows, names, tablefmt="pipe", colalign=align if rows else None, disable_numparse=True)
    return "\n".join(
        [f"**{_markdown_text(table.title)}**", "", grid, "", *(f"- {_markdown_text(n)}" for n in table.notes), ""]
    )


def _markdown_cell(cell: Cell) -> str:
    head = _markdown_text(cell.head)
    bold = f"**{head}**" if cell.best else head
    return f"{bold} {_markdown_text(cell.annotation)}".strip()


def _markdown_text(text: str) -> str:
    """Escape what Markdown, or a cell of its tables, would read as markup; an interval's bracket stays."""
    return re.sub(r"[\\`*_|]|\[(?![-\d])", r"\\\g<0>", text.replace("<", "&lt;").replace("\n", " "))


def _latex(tables: Sequence[Table]) -> str:
    return "\n".join(_latex_table(table.select("block", "always", "wide")) for table in tables)


def _latex_table(table: Table) -> str:
    names = " & ".join(map(_latex_text, table.names()))
    blocks = [[" & ".join(map(_latex_cell, row)) + r" \\" for row in rows] for _, rows in table.blocks()]
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table*}",
        rf"\caption{{{_latex_text(table.title)}}}",
        r"\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in table.columns)}}}",
        r"\toprule",
        rf"{names} \\",
    ]
    for rows in blocks:
        lines += [r"\midrule", *rows]
    notes = [rf"\par {_latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table*}", ""])


def _latex_cell(cell: Cell) -> str:
    head = _latex_text(cell.head)
    bold = rf"\textbf{{{head}}}" if cell.best else head
    return f"{bold} {_latex_text(cell.annotation)}".strip()


_LATEX: dict[str, str] = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "✓": r"$\surd$",  # \checkmark would need another package
    "×": r"$\times$",
    "–": "--",
    "[": "{[}",  # otherwise a row that begins with a bracket is read as the option of the \\\\ before it
    "\n": " ",
    **{mark: rf"\textsuperscript{{{digit}}}" for digit, mark in enumerate(_SUPERSCRIPTS)},
}


def _latex_text(text: str) -> str:
    return text.translate({ord(c): escaped for c, escaped in _LATEX.items()})


_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ tables[0].title }}</title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; }
table { border-collapse: collapse; margin: 0 0 .75rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; font-size: 1.1rem; padding-bottom: .5rem; }
th, td { padding: .25rem .75rem; text-align: left; white-space: nowrap; }
thead th { border-top: 2px solid; border-bottom: 1px solid; }
tbody:last-of-type { border-bottom: 2px solid; }
tbody th { padding-top: .6rem; border-top: 1px solid #ccc; }
tbody tr:hover td { background: #f3f5f8; }
small { color: #667; }
.number { text-align: right; }
.notes { color: #555; margin: 0 0 2.5rem; }
</style>
{% for table in tables %}
{% set shown = table.select("always", "wide") %}
<table>
<caption>{{ table.title }}</caption>
<thead><tr>
{%- for column in shown.columns -%}
<th{% if column.numeric %} class="number"{% endif %}>{{ column.name }}</th>
{%- endfor -%}
</tr></thead>
{% for heading, rows in table.blocks() %}
<tbody>
<tr><th colspan="{{ shown.columns | length }}">{{ heading }}</th></tr>
{% for row in rows %}
<tr>
{%- for column, cell in zip(table.columns, row) if column.shown != "block" -%}
<td{% if column.numeric %} class="number"{% endif %}>
{%- if cell.best %}<b>{{ cell.head }}</b>{% else %}{{ cell.head }}{% endif -%}
{% if cell.annotation %}<small> {{ cell.annotation }}</small>{% endif -%}
</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
<p class="notes">
{%- for note in table.notes %}{{ note }}{% if not loop.last %}<br>{% endif %}
{% endfor -%}
</p>
{% endfor %}
</html>
"""


def _html(tables: Sequence[Table]) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    shown = [table.select("block", "always", "wide") for table in tables]
    return environment.from_string(_HTML).render(tables=shown, zip=zip)


def _csv(tables: Sequence[Table]) -> str:
    """Write the rows of all tables under the union of their columns; the first column names the table."""
    rows = [{"table": table.name, **row} for table in tables for row in table.as_dicts()]
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["table", *tables[0].names()]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(tables: Sequence[Table]) -> str:
    content = [{"name": t.name, "title": t.title, "rows": t.as_dicts(), "notes": t.notes} for t in tables]
    return json.dumps({"tables": content}, indent=1, ensure_ascii=False)


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "html": _html,
    "json": _json,
}
