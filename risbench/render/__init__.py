"""Tables, and the six formats in which they can be written.

For people (terminal, markdown, latex, html) numbers have two decimals. For programs (csv, json) they have all digits,
and the ends of an interval and the spread over seeds have columns of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from risbench.errors import unknown
from risbench.render.documents import to_csv, to_html, to_json, to_latex, to_markdown
from risbench.render.table import Cell, Column, Table, Value, superscript
from risbench.render.terminal import fold, to_terminal

__all__ = ["FORMATS", "Cell", "Column", "Table", "Value", "fold", "render", "superscript"]

FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "terminal": to_terminal,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "html": to_html,
    "json": to_json,
}


def render(tables: Sequence[Table], format_: str, elsewhere: str = "--format csv") -> str:
    """Write tables as text in one of FORMATS; `elsewhere` shows what a narrow terminal leaves out."""
    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS)
    return to_terminal(tables, elsewhere) if format_ == "terminal" else FORMATS[format_](tables)
