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


# on a terminal

COUNTS = tuple(
    Column(name, numeric=True, detail=detail)
    for name, detail in (("oIoU", 0), ("wins", 2), ("p", 0), ("losses", 2), ("smallest difference", 1))
)


def wide() -> Table:
    """Two blocks of a column of words and five of numbers, three of them details, and one with intervals."""
    numbers = (Cell(64.0, (63.5, 64.75)), Cell(12345), Cell(0.0123, number_format=".4f"), Cell(678), Cell(0.5))
    rows = tuple((Cell(block), Cell("a method of several words"), *numbers) for block in ("refcoco", "mini"))
    return Table("t", "Title", (Column("data set", "block"), Column("method"), *COUNTS), rows, ("Metrics in percent.",))


def shown(columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render.render([wide()], "terminal")
    assert max(map(len, text.splitlines())) <= columns
    return text


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        (70, []),
        (69, ["losses"]),
        (62, ["wins", "losses"]),
        (56, ["wins", "losses", "smallest difference"]),
        (45, ["wins", "losses", "smallest difference", "intervals"]),
        (36, ["wins", "p", "losses", "smallest difference", "intervals"]),
        (18, ["wins", "p", "losses", "smallest difference", "intervals"]),
    ],
)
def test_a_narrow_terminal_leaves_details_out_then_intervals_then_columns_from_the_right(
    columns: int, left_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(columns, monkeypatch)
    note = (
        f"Left out at {columns} columns: {', '.join(left_out)}. A wider terminal shows them, and so does --format csv."
    )
    assert (" ".join(text.split()).count(note) == 1) if left_out else "Left out" not in text
    values = {"oIoU": "64.00", "wins": "12345", "p": "0.0123", "losses": "678", "intervals": "[63.50, 64.75]"}
    assert {name: text.count(value) for name, value in values.items()} == {
        name: 0 if name in left_out else 2 for name in values
    }


def test_numbers_and_headings_are_whole_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "7")
    assert render.render([wide()], "terminal").count("64.00") == 2


def test_where_output_is_no_terminal_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = Table("t", "Title", (Column("method"), *COUNTS * 30), ((Cell("lts"), *[Cell(12.5)] * 150),))
    text = render.render([long], "terminal")
    assert text.count("12.50") == 150 and "Left out" not in text


def test_a_line_is_folded_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "  expressions: train 120624, val 10834, https://example.org/a-very-long-address/of/a/file"
    monkeypatch.setenv("COLUMNS", "30")
    assert render.fold(line, indent=4).splitlines() == [
        "  expressions: train 120624,",
        "    val 10834,",
        "    https://example.org/a-very-long-address/of/a/file",
    ]
    monkeypatch.delenv("COLUMNS")
    assert render.fold(line, indent=4) == line


def test_a_terminal_gets_no_control_characters() -> None:
    cells = (Cell("a\x1b[31mb\nc"), Cell("d", remark="e\x07"), Cell(1.0))
    columns = (Column("data set", "block"), Column("method"), Column("oIoU", numeric=True))
    text = render.render([Table("t", "Title", columns, (cells,), ("note\x9b2J",))], "terminal")
    assert "a\ufffd[31mb\ufffdc" in text and "e\ufffd" in text and "note\ufffd2J" in text
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_a_note_of_several_tables_is_printed_once_on_a_terminal() -> None:
    tables = [measured(Cell(1.0)), measured(Cell(2.0))]
    assert render.render(tables, "terminal").count("Metrics in percent.") == 1
    assert render.render(tables, "markdown").count("Metrics in percent.") == 2
    assert [table["notes"] for table in json.loads(render.render(tables, "json"))["tables"]] == [
        ["Metrics in percent."]
    ] * 2


def test_programs_get_the_ends_of_an_interval_that_no_cell_has() -> None:
    columns = (Column("method"), Column("oIoU", numeric=True, intervals=True))
    (row,) = Table("t", "Title", columns, ((Cell("lts"), Cell(64.0)),)).as_dicts()
    assert row == {"method": "lts", "oIoU": 64.0, "oIoU low": None, "oIoU high": None}
