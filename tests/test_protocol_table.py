"""Tables about protocols: what is marked, and what the notes say."""

from __future__ import annotations

from risbench import protocol, protocol_table, references, render, score
from risbench.data.index import Index


def test_what_differs_from_the_default_is_marked_and_nothing_else() -> None:
    table = protocol_table.overview()
    cells = {(row[1].value, name): cell for row in table.rows for name, cell in zip(table.names(), row, strict=True)}
    for knob, name, text in (
        ("threshold", "original", "recipe"),
        ("threshold", "lts", "0.25*"),
        ("at_least", "lts", ">*"),
        ("scored_at", "lavt", "480 x 480*"),
        ("scored_at", "cris", "original"),
        ("border", "cris", "123, 117, 104*"),
        ("empty_union", "lavt", "0"),
        ("empty_union", "simrec", "1*"),
        ("sentences", "zs-lavt", "joined*"),
    ):
        assert cells[knob, name].text == text
    assert {knob for knob, _ in cells} == {*protocol.InputHalf.model_fields, *protocol.ScoreHalf.model_fields}
    notes = " ".join(table.notes)
    assert all(protocol.load(name).source in notes for name in protocol.names())
    assert "lavt-train: for following a training" in notes


def test_scores_mark_the_headline_and_say_why_a_protocol_cannot(small_index: Index) -> None:
    found = references.predict("oracle-16", small_index, "testA")
    summaries, refused = score.under_all(found, small_index, "testA")
    table = protocol_table.scores(summaries, refused)
    names = table.names()
    marked = {str(row[0].value): [n for n, cell in zip(names, row, strict=True) if cell.mark] for row in table.rows}
    assert marked == {name: [protocol.load(name).score.headline] for name in protocol.names() if name != "zs-lavt"}
    labels = {row[0].text for row in table.rows}
    assert {"original", "lavt (resized)", "lavt-train† (resized)"} <= labels
    by_name = {row[0].value: row for row in table.rows}
    assert by_name["rela"][names.index("mIoU")].value == next(s["mIoU"] for s in summaries if s["protocol"] == "rela")
    assert any(note.startswith("zs-lavt cannot score it: Answered alone") for note in table.notes)
    assert "†: " in render.render([table], "terminal")
