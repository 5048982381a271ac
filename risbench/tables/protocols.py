"""Tables about protocols: the settings of each, and the scores of one predictions file under all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from risbench.render import Cell, Column, Table
from risbench.scoring import protocol
from risbench.scoring.metrics import NO_TARGET_METRICS
from risbench.scoring.statistics import NO_INTERVAL
from risbench.tables.comparison import DETAIL, METRICS
from risbench.tables.measured import PROTOCOL_NOTES, protocol_mark

_MARK = "*"
_DETAIL = {"border": 4, "cut_at": 4, "mask_resize": 4, "resampling": 3, "empty_union": 3, "max_tokens": 2}
_DETAIL |= dict.fromkeys(("image_size", "threshold", "scored_at", "ground_truth", "headline"), 0)  # the others: 1


def overview() -> list[Table]:
    """Build the tables of all protocols' input and score halves; what differs from the default is marked."""
    known = [protocol.load(name) for name in protocol.names()]
    notes = [
        f"{_MARK}: differs from {known[0].name}. recipe: as the recipe of the method says.",
        *PROTOCOL_NOTES.values(),
        *(f"§ {x.name}: {x.defect}." for x in known if x.defect),
        *(f"{x.name}: {x.source}." for x in known),
    ]
    return [_settings("input", known, ()), _settings("score", known, tuple(notes))]


def _settings(half: str, known: Sequence[protocol.Protocol], notes: tuple[str, ...]) -> Table:
    """Build the table of one half: a row for each protocol, a column for each knob."""
    usual = getattr(known[0], half)
    rows = []
    for each in known:
        values = [(value, getattr(usual, knob)) for knob, value in getattr(each, half)]
        marked = (
            Cell(format_setting(value), mark="" if value == of_default else _MARK) for value, of_default in values
        )
        rows.append((Cell(each.name, footnote=protocol_mark(each.name)), *marked))
    knobs = type(usual).model_fields
    columns = (Column("protocol"), *(Column(knob.replace("_", " "), detail=_DETAIL.get(knob, 1)) for knob in knobs))
    title = {"input": "Protocols: what acts before a mask is stored", "score": "Protocols: what acts on stored masks"}
    return Table(f"{half} halves", title[half], columns, tuple(rows), notes)


def scores(summaries: Sequence[Mapping[str, Any]], refused: Mapping[str, str]) -> Table:
    """Build the table of one predictions file under every protocol that can score it; notes say why others cannot."""
    names = (*METRICS, *(name for name in NO_TARGET_METRICS if any(name in summary for summary in summaries)))
    metrics = (Column(name, numeric=True, detail=DETAIL.get(name, 0)) for name in names)
    columns = (Column("protocol"), Column("n", numeric=True, detail=3), *metrics)
    known = {name: protocol.load(name) for name in protocol.names()}
    legend = {
        f"{_MARK}: the headline metric of the protocol. Metrics in percent.": True,
        "[low, high]: 95 % interval over images.": any(any(s["intervals"].values()) for s in summaries),
        NO_INTERVAL: not all(s["intervals"].get(known[s["protocol"]].score.headline) for s in summaries),
        "partial: measured on a part of the data set.": any("partial" in summary for summary in summaries),
        "resized: masks of the images' size, brought to the size at which the protocol scores.": any(
            "resized" in summary for summary in summaries
        ),
        **{
            note: mark in [protocol_mark(summary["protocol"]) for summary in summaries]
            for mark, note in PROTOCOL_NOTES.items()
        },
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
    label = Cell(chosen.name, remark=f"({remark})" if remark else "", footnote=protocol_mark(chosen.name))
    intervals: dict[str, Any] = {chosen.score.headline: summary["intervals"].get(chosen.score.headline)}
    values = (Cell(summary.get(x), intervals.get(x), mark=_MARK if x in intervals else "") for x in names)
    return (label, Cell(summary["n"]), *values)
