"""Tables as documents and for programs: Markdown, LaTeX, HTML, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence

import jinja2
from tabulate import tabulate

from risbench.render.table import SUPERSCRIPTS, Cell, Table


def to_markdown(tables: Sequence[Table]) -> str:
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


def to_latex(tables: Sequence[Table]) -> str:
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
    "§": r"\S{}",
    "✓": r"$\surd$",  # \checkmark would need another package
    "×": r"$\times$",
    "–": "--",
    "[": "{[}",  # otherwise a row that begins with a bracket is read as the option of the \\\\ before it
    "\n": " ",
    **{mark: rf"\textsuperscript{{{digit}}}" for digit, mark in enumerate(SUPERSCRIPTS)},
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


def to_html(tables: Sequence[Table]) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    shown = [table.select("block", "always", "wide") for table in tables]
    return environment.from_string(_HTML).render(tables=shown, zip=zip)


def to_csv(tables: Sequence[Table]) -> str:
    """Write the rows of all tables under the union of their columns; the first column names the table."""
    rows = [{"table": table.name, **row} for table in tables for row in table.as_dicts()]
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["table", *tables[0].names()]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(tables: Sequence[Table]) -> str:
    content = [{"name": t.name, "title": t.title, "rows": t.as_dicts(), "notes": t.notes} for t in tables]
    return json.dumps({"tables": content}, indent=1, ensure_ascii=False)
