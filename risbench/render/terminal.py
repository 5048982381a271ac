"""Tables on a terminal: numbers never break, and what does not fit is left out in a fixed order, and named.

Columns of detail leave first, those with the highest number and of equal ones the rightmost; then the intervals; then
the other columns of numbers from the right, but for the first. At last words are folded more narrowly. All blocks of a
table have the same columns, except for those that are empty in a block. Nothing is left out where output is no
terminal and COLUMNS is not set.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from risbench.render.table import Cell, Column, Table

_UNLIMITED = 100_000  # columns
_NOTES = 120  # columns of notes where output is no terminal
_REMARK = 24  # columns of a remark before it is folded, unless the cell is wider
_FIRST, _WORDS = (24, 12), (11, 7)  # columns to which words of the first and of other columns are folded, and at last

Rows = Sequence[tuple[Cell, ...]]


@dataclass(frozen=True)
class _Layout:
    """What of a table is shown."""

    places: tuple[int, ...]  # of the columns, the first one included
    intervals: bool = True
    folded: bool = False


def to_terminal(tables: Sequence[Table], elsewhere: str = "--format csv") -> str:
    """Lay tables out for the width of the terminal; a note that several have is printed once.

    `elsewhere` shows what is left out.
    """
    width = _terminal_width()
    console = Console(highlight=False, width=_UNLIMITED)
    printed: set[str] = set()
    with console.capture() as capture:
        for table in tables:
            _print_table(console, table, width, elsewhere)
            for note in [note for note in table.notes if note not in printed] + [""]:
                console.print(_plain(note), style="dim", markup=False, width=width or _NOTES)
            printed.update(table.notes)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def fold(line: str, indent: int) -> str:
    """Fold a line of words to the width of the terminal, if there is one; words, numbers and addresses stay whole."""
    width = _terminal_width()
    if width is None:
        return line
    later = " " * indent
    return textwrap.fill(line, width, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)


def _terminal_width() -> int | None:
    """Return the number of columns, as COLUMNS or the terminal says; None: output goes elsewhere."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    return Console().width if sys.stdout.isatty() else None


def _print_table(console: Console, table: Table, width: int | None, elsewhere: str) -> None:
    limit = width or _UNLIMITED
    console.print(Text(table.title, style="bold underline"), "", sep="\n", width=limit)
    layouts = list(_layouts(table))
    fitting = (layout for layout in layouts if _fits(table, layout, limit))
    layout = next(fitting, layouts[-1])
    for heading, rows in table.blocks():
        if heading:
            console.print(Text(_plain(heading), style="bold"), width=limit)
        console.print(_grid(table.columns, rows, layout, limit))
        console.print()
    if left_out := _left_out(table, layouts[0], layout):
        shows = f"A wider terminal shows them, and so does {elsewhere}."
        note = f"Left out at {width} columns: {', '.join(left_out)}. {shows}"
        console.print(note, style="dim", markup=False, width=limit)


def _layouts(table: Table) -> Iterator[_Layout]:
    """Yield what is shown, from everything to as little as possible."""
    columns = table.columns
    filled = [any(row[i].text for row in table.rows) for i in range(len(columns))]
    layout = _Layout(tuple(i for i, column in enumerate(columns) if column.shown == "always" and filled[i]))
    yield layout
    details = [i for i in layout.places[1:] if columns[i].detail]
    for i in sorted(details, key=lambda i: (-columns[i].detail, -i)):
        layout = _without(layout, i)
        yield layout
    if any(row[i].interval for row in table.rows for i in layout.places):
        layout = replace(layout, intervals=False)
        yield layout
    numbers = [i for i in layout.places[1:] if columns[i].numeric]
    for i in reversed(numbers[1:]):
        layout = _without(layout, i)
        yield layout
    yield replace(layout, folded=True)


def _without(layout: _Layout, place: int) -> _Layout:
    return replace(layout, places=tuple(i for i in layout.places if i != place))


def _left_out(table: Table, everything: _Layout, layout: _Layout) -> list[str]:
    """Name what a layout does not show."""
    missing = [table.columns[i].name for i in everything.places if i not in layout.places]
    return [*missing, *(["intervals"] if everything.intervals and not layout.intervals else [])]


# widths


def _fits(table: Table, layout: _Layout, limit: int) -> bool:
    """Whether every block fits, with words folded and one blank between columns."""
    blocks = [_widths(table.columns, rows, layout) for _, rows in table.blocks()]
    return all(sum(narrow for narrow, _ in widths) + len(widths) - 1 <= limit for widths in blocks)


def _widths(columns: Sequence[Column], rows: Rows, layout: _Layout) -> list[tuple[int, int]]:
    """Return the least and the natural width of every column of a block."""
    return [_width(columns[i], [row[i] for row in rows], layout, i) for i in _shown(rows, layout)]


def _shown(rows: Rows, layout: _Layout) -> list[int]:
    """Return the places of the columns that are shown in a block: the first, and those that are not empty."""
    return [i for i in layout.places if i == layout.places[0] or any(row[i].text for row in rows)]


def _width(column: Column, cells: Sequence[Cell], layout: _Layout, place: int) -> tuple[int, int]:
    heads = max((len(_head(cell)) for cell in cells), default=0)
    annotations = max((len(_annotation(cell, layout)) for cell in cells), default=0)
    title = max(map(len, column.name.split()))
    if column.numeric:
        return (max(heads, annotations, title),) * 2
    natural = max(heads, min(annotations, _REMARK), title)
    folded = (_FIRST if place == layout.places[0] else _WORDS)[layout.folded]
    return min(natural, max(folded, title)), natural


def _spread(widths: Sequence[tuple[int, int]], limit: int) -> list[int]:
    """Widen columns from their least to their natural width, from the left, as far as there is room."""
    room = limit - sum(narrow for narrow, _ in widths) - len(widths) + 1
    chosen = []
    for narrow, natural in widths:
        more = min(max(room, 0), natural - narrow)
        room -= more
        chosen.append(narrow + more)
    return chosen


# what is printed


def _grid(columns: Sequence[Column], rows: Rows, layout: _Layout, limit: int) -> RichTable:
    """Lay out one block: annotations go below their values."""
    widths = _widths(columns, rows, layout)
    loose = sum(natural for _, natural in widths) + 2 * (len(widths) - 1) <= limit
    grid = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, int(loose), 0, 0))
    places = _shown(rows, layout)
    for i, width in zip(places, _spread(widths, limit), strict=True):
        justify: Literal["right", "left"] = "right" if columns[i].numeric else "left"
        name = columns[i].name.replace(" ", "\n") if i != places[0] else columns[i].name
        grid.add_column(name, overflow="fold", justify=justify, width=width)
    for row in rows:
        grid.add_row(*(_text(row[i], layout) for i in places))
    return grid


def _text(cell: Cell, layout: _Layout) -> Text:
    head = Text(_head(cell), style="bold" if cell.best else "")
    annotation = Text(_annotation(cell, layout), style="dim")
    return Text("\n").join(filter(None, [head, annotation]))


def _head(cell: Cell) -> str:
    return _plain(f"{cell.head}*" if cell.best else cell.head)  # the star, if bold is not visible


def _annotation(cell: Cell, layout: _Layout) -> str:
    return _plain(cell.annotation if layout.intervals else replace(cell, interval=None).annotation)


def _plain(text: str) -> str:
    """Replace control characters, such as those that move the cursor or change colours."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
