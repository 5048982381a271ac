"""Tables about protocols: the settings of each, and the scores of one predictions file under all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from risbench.render import Cell, Column, Table
from risbench.scoring import protocol
from risbench.scoring.metrics import NO_TARGET_METRICS
from risbench.tables.comparison import METRICS

_MARK = "*"


def overview() -> Table:
    """Build the table of all protocols, a row for each knob; what differs from the default is marked."""
    known = [protocol.load(name) for name in protocol.names()]
    default, *others = known
    rows = []
    for half in ("input", "score"):
        for knob, usual in getattr(default, half):
            values = [getattr(getattr(other, half), knob) for other in others]
            marked = [Cell(format_setting(value), mark=_MARK if value != usual else "") for value in values]
            rows.append((Cell(half), Cell(knob), Cell(format_setting(usual)), *marked))
    columns = (Column("half", "block"), Column("knob"), *map(Column, protocol.names()))
    notes = [
        f"{_MARK}: differs from {default.name}. recipe: as the recipe of the method says.",
        *(f"{x.name}: for following a training, not for results." for x in known if not x.comparable),
        *(f"{x.name}: {x.source}." for x in known),
    ]
    return Table("protocols", "Protocols", columns, tuple(rows), tuple(notes))


def scores(summaries: Sequence[Mapping[str, Any]], refused: Mapping[str, str]) -> Table:
    """Build the table of one predictions file under every protocol that can score it; notes say why others cannot."""
    names = (*METRICS, *(name for name in NO_TARGET_METRICS if any(name in summary for summary in summaries)))
    columns = (Column("protocol"), Column("n", numeric=True), *(Column(name, numeric=True) for name in names))
    known = {name: protocol.load(name) for name in protocol.names()}
    legend = {
        f"{_MARK}: the headline metric of the protocol. Metrics in percent.": True,
        "partial: measured on a part of the data set.": any("partial" in summary for summary in summaries),
        "resized: masks of the images' size, brought to the size at which the protocol scores.": any(
            "resized" in summary for summary in summaries
        ),
        "†: a protocol for following a training; comparable with no published number and no other protocol.": not all(
            known[summary["protocol"]].comparable for summary in summaries
        ),
    }
    notes = ["One file has one input half: the rows differ by their score halves."]
    notes += [text for text, applies in legend.items() if applies]
    notes += [f"{name} cannot score it: {reason}" for name, reason in refused.items()]
    title = "{dataset} {split}, one predictions file under every protocol".format(**summaries[0])
    rows = tuple(_row(summary, known[summary["protocol"]], names) for summary in summaries)
    return Table("scores", title, columns, rows, tuple(notes))


def format_setting(value: Any) -> str:
    """Format a setting for people: a pair is height and width, three numbers are a colour."""
    if isinstance(value, tuple):
        return (" x " if len(value) == 2 else ", ").join(map(str, value))
    return str(value)


def _row(summary: Mapping[str, Any], chosen: protocol.Protocol, names: Sequence[str]) -> tuple[Cell, ...]:
    remark = ", ".join(word for word in ("partial", "resized") if word in summary)
    label = Cell(chosen.name, remark=f"({remark})" if remark else "", footnote="" if chosen.comparable else "†")
    values = (Cell(summary.get(name), mark=_MARK if name == chosen.score.headline else "") for name in names)
    return (label, Cell(summary["n"]), *values)
