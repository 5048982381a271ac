"""Tables about protocols: what is marked, and what the notes say."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from risbench import render
from risbench.cli.app import app
from risbench.data.index import Index
from risbench.scoring import predictions_file, protocol, references
from risbench.scoring.score import score_under_all_protocols
from risbench.tables import protocols

ALL = [name for name in protocol.names() if name not in ("zs-lavt", "grefcoco", "gsva")]  # every sentence, a target


def test_what_differs_from_the_default_is_marked_and_nothing_else() -> None:
    tables = protocols.overview()
    cells = {
        (name.replace(" ", "_"), row[0].value): cell
        for table in tables
        for row in table.rows
        for name, cell in zip(table.names()[1:], row[1:], strict=True)
    }
    for knob, name, text in (
        ("threshold", "original", "recipe"),
        ("threshold", "lts", "0.25*"),
        ("at_least", "lts", ">*"),
        ("scored_at", "lavt", "480 x 480*"),
        ("scored_at", "cris", "original"),
        ("border", "cris", "123, 117, 104*"),
        ("geometry", "simrec", "letterbox-cut*"),
        ("empty_union", "lavt", "0"),
        ("empty_union", "simrec", "1*"),
        ("sentences", "zs-lavt", "joined*"),
        ("no_target", "gsva", "mask counts*"),
    ):
        assert cells[knob, name].text == text
    assert {knob for knob, _ in cells} == {*protocol.InputHalf.model_fields, *protocol.ScoreHalf.model_fields}
    notes = " ".join(tables[1].notes)
    assert all(protocol.load(name).source in notes for name in protocol.names())
    labels = [row[0].text for row in tables[0].rows]
    assert [label for label in labels if label not in protocol.names()] == ["lavt-train†", "seqtr§"]
    assert "†: a protocol for following a training" in notes and "§ seqtr: a ground truth of several polygons" in notes


def test_scores_mark_the_headline_and_say_why_a_protocol_cannot(small_index: Index) -> None:
    predictions = references.predict("oracle-16", small_index, "testA")
    summaries, refused = score_under_all_protocols(predictions, small_index, "testA")
    table = protocols.scores(summaries, refused)
    names = table.names()
    marked = {str(row[0].value): [n for n, cell in zip(names, row, strict=True) if cell.mark] for row in table.rows}
    assert marked == {name: [protocol.load(name).score.headline] for name in ALL}
    labels = {row[0].text for row in table.rows}
    assert {"original", "lavt (resized)", "lavt-train† (resized)"} <= labels
    by_name = {row[0].value: row for row in table.rows}
    assert by_name["rela"][names.index("mIoU")].value == next(s["mIoU"] for s in summaries if s["protocol"] == "rela")
    assert any(note.startswith("zs-lavt cannot score it: Predicted separately") for note in table.notes)
    assert "†: " in render.render([table], "terminal")


def test_protocols_are_listed_with_what_differs() -> None:
    out = CliRunner().invoke(app, ["protocols"]).stdout
    assert "0.25*" in out and "480 x 480*" in out and "LAVT-pytorch" in out
    assert CliRunner().invoke(app, ["protocols", "--format", "csv"]).stdout.count("lavt-train,") == 2
    lines = CliRunner().invoke(app, ["protocols", "--json"]).stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == protocol.names()


def test_one_file_is_scored_under_every_protocol(
    small_index: Index, small_root: Path, small_card: Path, tmp_path: Path
) -> None:
    file = tmp_path / "testA.parquet"
    predictions_file.write(file, references.predict("oracle-32", small_index, "testA"))
    options = ["--dataset", str(small_card), "--data-root", str(small_root), "--split", "testA", "--protocol", "all"]
    out = CliRunner().invoke(app, ["score", str(file), *options]).stdout
    assert "zs-lavt cannot score it: Predicted separately" in out and "rela" in out
    answer = json.loads(CliRunner().invoke(app, ["score", str(file), *options, "--json"]).stdout)
    assert [summary["protocol"] for summary in answer["scores"]] == ALL
    assert list(answer["refused"]) == ["zs-lavt"]
