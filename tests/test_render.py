"""The formats of tables: what programs read back, and what each format does to awkward text."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser

import pytest

from risbench import render
from risbench.errors import InputError
from risbench.render import Cell, Column, Table

AWKWARD = "a|b_c & <i>50%</i> {x} \\ ~^ #$"


def measured(*cells: Cell, name: str = "t", column: str = "oIoU") -> Table:
    """A table of one number column, with a row for each cell."""
    columns = (Column("data set", "block"), Column("method"), Column(column, numeric=True))
    rows = tuple((Cell("refcoco"), Cell("lts"), cell) for cell in cells)
    return Table(name, "Title", columns, rows, ("Metrics in percent.",))


def awkward() -> Table:
    columns = (Column("data set", "block"), Column("method"), Column("oIoU", numeric=True), Column("note", "data"))
    return Table("t", "Title", columns, ((Cell("d"), Cell(AWKWARD), Cell(1.0), Cell("hidden")),), (AWKWARD,))


def test_an_unknown_format_lists_the_known() -> None:
    with pytest.raises(InputError, match="Unknown format 'pdf'.*terminal, markdown, latex, csv, html, json"):
        render.render([], "pdf")


def test_csv_reads_back_with_all_digits() -> None:
    table = measured(Cell(64.123456, (63.5, 64.75)), Cell(60, spread=1.5, mark="†", best=True))
    first, second = csv.DictReader(io.StringIO(render.render([table], "csv")))
    assert float(first["oIoU"]) == 64.123456
    assert (float(first["oIoU low"]), float(first["oIoU high"]), first["oIoU spread"]) == (63.5, 64.75, "")
    assert second["oIoU"] == "60"
    assert (second["oIoU spread"], second["oIoU mark"], second["oIoU best"]) == ("1.5", "†", "yes")


def test_fields_of_cells_are_columns_in_the_order_in_which_they_occur() -> None:
    (row, _) = measured(Cell(60.0, spread=1.5), Cell(64.0, (63.5, 64.75))).as_dicts()
    assert list(row) == ["data set", "method", "oIoU", "oIoU spread", "oIoU low", "oIoU high"]


def test_csv_of_several_tables_names_the_table_of_each_row() -> None:
    tables = [measured(Cell(64.0), name="comparison"), measured(Cell(40.0), name="kinds", column="plain")]
    rows = list(csv.DictReader(io.StringIO(render.render(tables, "csv"))))
    assert [(row["table"], row["plain"]) for row in rows] == [("comparison", ""), ("kinds", "40.0")]


def test_json_has_rows_and_notes() -> None:
    (table,) = json.loads(render.render([measured(Cell(64.0, (63.5, 64.75)))], "json"))["tables"]
    assert table["rows"][0]["oIoU high"] == 64.75
    assert table["notes"] == ["Metrics in percent."]


def test_markdown_escapes_pipes_and_markup() -> None:
    text = render.render([awkward()], "markdown")
    (line,) = [line for line in text.splitlines() if line.startswith("| d ")]
    assert line.replace(r"\|", "").count("|") == 4
    assert r"a\|b\_c & &lt;i>50%" in line
    assert "hidden" not in text


def test_latex_escapes_its_special_characters() -> None:
    text = render.render([awkward()], "latex")
    (line,) = [line for line in text.splitlines() if line.startswith("d &")]
    escaped = r"a|b\_c \& \textless{}i\textgreater{}50\%\textless{}/i\textgreater{} \{x\}"
    assert line == rf"d & {escaped} \textbackslash{{}} \textasciitilde{{}}\textasciicircum{{}} \#\$ & 1.00 \\"
    assert text.count(r"\begin{tabular}{llr}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_latex_is_ascii_with_intervals_spreads_and_footnotes() -> None:
    cells = (Cell(64.0, (63.5, 64.75)), Cell(60.0, spread=0.0, footnote="†"), Cell(65.43, footnote="¹"))
    text = render.render([measured(*cells)], "latex")
    assert r"60.00$\dagger$ $\pm$ 0.00" in text
    assert "64.00 {[}63.50, 64.75]" in text
    assert r"65.43\textsuperscript{1}" in text
    assert text.isascii()


def test_html_escapes_text_and_closes_its_tags() -> None:
    class Tags(HTMLParser):
        open: list[str] = []
        data = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.open += [tag] * (tag not in ("meta", "br"))

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

        def handle_data(self, data: str) -> None:
            self.data += data

    tags = Tags()
    tags.feed(render.render([awkward()], "html"))
    assert tags.open == []
    assert tags.data.count(AWKWARD) == 2
