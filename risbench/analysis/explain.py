"""The difference between two numbers, split into steps that add up.

From A to B the knobs of the score half are turned one at a time, in the order of KNOBS, on predictions that stay as
they are. What other predictions change (the input half, perhaps another network) is one step under one score half:
under B's, after the knobs were turned on A's predictions. Where A's predictions cannot be scored under B's, such as
masks of a network's size at the size of the image, it comes first, under A's, and the knobs turn on B's predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from risbench.data import source
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.render import Cell, Column, Table
from risbench.scoring import metrics, predictions, record
from risbench.scoring import protocol as protocols
from risbench.scoring import score as scoring
from risbench.scoring.predictions import Predictions
from risbench.scoring.protocol import Protocol, ScoreHalf
from risbench.tables.protocols import shown

KNOBS = {
    "ground_truth": "ground truth",
    "scored_at": "size",
    "at_least": "comparison",
    "empty_union": "empty union",
    "no_target": "no target",
    "headline": "metric",
}
_TURNED = ", ".join(name for knob, name in KNOBS.items() if knob != "no_target")  # which is refused, see explain
_ORDER = f"Knobs are turned in the order {_TURNED}; in another order the steps would be others."
_SAID = {
    "scored_at": "size: masks of the images' size are resized; masks predicted at that size may be others.",
    "at_least": "comparison: of IoU with X, so P@X alone depends on it.",
    "empty_union": "empty union: only mIoU and P@X depend on it.",
}


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two numbers, and what is at hand of it."""

    name: str
    protocol: Protocol
    predictions: Predictions | None  # None: they do not lie beside the record
    dataset: str = ""  # as the file says; "" where it says nothing
    split: str = ""
    partial: bool = False
    recorded: float | None = None  # its headline metric in percent; None: not a record
    remark: str = ""


Measure = Callable[[Side, ScoreHalf], float]  # the headline metric of a side's predictions under some score half


@dataclass(frozen=True)
class Step:
    """What is changed, and the headline metric after it, in percent."""

    what: str
    before: str
    after: str
    metric: str
    value: float


@dataclass(frozen=True)
class Explanation:
    """The first step is A as it is; the value of the last one is B's."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...]


def explain(a: Side, b: Side, measure: Measure) -> Explanation:
    """Walk from A to B."""
    start, end = a.protocol.score, b.protocol.score
    if start.no_target != end.no_target:
        raise InputError(
            f"{start.headline} of {a.protocol.name} and {end.headline} of {b.protocol.name} have no steps between them:"
            " only one of the two has a rule for expressions that mean nothing. Explain two numbers under one rule."
        )
    turned = _turned(start, end)
    halves = [start, *(half for _, half in turned)]
    begin = Step("A", "", a.protocol.name, start.headline, _own(a, measure))
    last = _own(b, measure)
    on_a = _walk(a, halves, measure)
    on_b = _walk(b, halves, measure) if isinstance(on_a, str) else ""
    notes = [f"A: {a.name}.", f"B: {b.name}.", *filter(None, [a.remark, b.remark])]
    if not isinstance(on_a, str):
        steps = [begin, *_knobs(turned, start, on_a)]
        if a.predictions is not b.predictions or a.protocol.input != b.protocol.input:
            steps.append(_other(a, b, end.headline, last))
            notes.append(_about(a, b, under=b))
    elif not isinstance(on_b, str):
        steps = [begin, _other(a, b, start.headline, on_b[0]), *_knobs(turned, start, on_b)]
        notes += [on_a, _about(a, b, under=a)]
    else:
        steps = [begin, Step("not separated", a.protocol.name, b.protocol.name, end.headline, last)]
        notes += [on_a, on_b, *(["The input half cannot be separated from the score half."] if turned else [])]
    if len(turned) > 1:
        notes.append(_ORDER)
    return Explanation(tuple(steps), (*notes, *(_SAID[knob] for knob, _ in turned if knob in _SAID)))


def table(found: Explanation, exact: bool) -> Table:
    """Lay out the steps; unless `exact`, values are rounded before they are subtracted: they add up as printed."""
    values = [Fraction(step.value) if exact else Fraction(f"{step.value:.2f}") for step in found.steps]
    changes = [None, *(float(after - before) for before, after in pairwise(values))]
    rows = [
        (*map(Cell, _words(step)), Cell(float(value)), Cell(change, form="+.2f"))
        for step, value, change in zip(found.steps, values, changes, strict=True)
    ]
    whole = (Cell("B minus A"), *[Cell()] * 4, Cell(float(values[-1] - values[0]), form="+.2f"))
    words = map(Column, ("step", "from", "to", "metric"))
    columns = (*words, Column("value", numeric=True), Column("change", numeric=True))
    return Table("explanation", "A difference, step by step", columns, (*rows, whole), ("Percent.", *found.notes))


def _words(step: Step) -> tuple[str, ...]:
    return step.what, step.before, step.after, step.metric


def between(a: Side, b: Side, dataset: str, split: str, data_root: str, partial: bool) -> Explanation:
    """Explain two sides on a data set and a split; where these are empty, on those that the files say."""
    name, part = _agreed("data set", dataset, (a.dataset, b.dataset)), _agreed("split", split, (a.split, b.split))

    @lru_cache
    def index() -> Index:
        return source.open_index(name, data_root, partial=partial or a.partial or b.partial)

    @lru_cache
    def rows(side: Side, counted: ScoreHalf) -> pd.DataFrame:
        assert side.predictions is not None
        return scoring.rows(side.predictions, index(), part, side.protocol.model_copy(update={"score": counted}))

    def measure(side: Side, half: ScoreHalf) -> float:
        kept = half.model_dump(include={"scored_at", "ground_truth", "no_target"})  # all that rows depend on
        counted = ScoreHalf.model_validate(kept)
        value = metrics.compute(metrics.Sums.of(rows(side, counted), half))[half.headline]
        if value is None:
            raise InputError(f"{side.name} has no {half.headline}, as every union is empty: take another number.")
        return value

    found = explain(a, b, measure)
    measured = a.predictions is not None or b.predictions is not None
    if not (a.partial or b.partial or (measured and index().partial)):
        return found
    return replace(found, notes=(*found.notes, "Measured on a part of the data set."))


def sides(a: Path, b: Path | None, protocol: str) -> tuple[Side, Side]:
    """Read two files, each a record or predictions, or one predictions file for two protocols."""
    names = [name.strip() for name in protocol.split(",") if name.strip()]
    for folder in (path for path in (a, b) if path and path.is_dir()):
        raise InputError(f"{folder} is a folder: give a record of the run, such as {folder}/records/val-original.json.")
    if b is None:
        return _two_protocols(a, names)
    files = [path for path in (a, b) if not _is_record(path)]
    if len(names) != len(files):
        raise InputError(
            f"--protocol {protocol!r} names {len(names)} protocols for {len(files)} predictions files: give one for"
            " each; a record says its own."
        )
    under = iter(names)
    first, second = (
        _of_record(path) if _is_record(path) else _of_file(path, protocols.load(next(under))) for path in (a, b)
    )
    return first, second


def _two_protocols(path: Path, names: Sequence[str]) -> tuple[Side, Side]:
    if _is_record(path) or len(names) != 2:
        raise InputError(
            f"{path} alone: give another record, or two protocols for a predictions file, such as"
            " --protocol original,lavt."
        )
    first, second = map(protocols.load, names)
    a = _of_file(path, first)
    kept = first.input
    if {first.input.sentences, second.input.sentences} == {"each", "random"}:
        kept = kept.model_copy(update={"sentences": second.input.sentences})  # the drawn ones are among the others
    remark = (
        f"One file has one input half: what that of {second.name} changes cannot be separated, which needs predictions"
        f" made under {second.name}."
    )
    scored = second.model_copy(update={"input": kept})
    own = kept == second.input
    named = _named(path, second) if own else f"{path} under the score half of {second.name}"
    b = replace(a, name=named, protocol=scored, remark="" if own else remark)
    return a, b


def _is_record(path: Path) -> bool:
    return path.suffix == ".json"


def _of_record(path: Path) -> Side:
    """A record of a run, with the predictions that lie beside it."""
    found = record.read(path)
    chosen = protocols.load(found.protocol)
    value = found.metrics.get(chosen.score.headline)
    if value is None:
        raise InputError(f"The record {path} has no {chosen.score.headline}, the headline of {chosen.name}.")
    file = path.parent.parent / "predictions" / f"{path.stem}.parquet"
    given = predictions.read(file) if file.is_file() else None
    network = " ".join([found.method, *found.variants, *filter(None, [found.control])])
    named = f"{path}, {network} under {chosen.name}"
    return Side(named, chosen, given, found.dataset, found.split, found.partial, value)


def _of_file(path: Path, chosen: Protocol) -> Side:
    given = predictions.read(path)
    said = (given.header.dataset, given.header.split) if given.header else ("", "")
    return Side(_named(path, chosen), chosen, given, *said)


def _named(path: Path, chosen: Protocol) -> str:
    return f"{path} under {chosen.name}"


def _agreed(what: str, given: str, said: Sequence[str]) -> str:
    known = list(dict.fromkeys(filter(None, said)))
    if len(known) > 1:
        raise InputError(f"A is of the {what} {known[0]!r}, B of {known[1]!r}: take two numbers of one {what}.")
    if not given and not known:
        raise InputError(f"No file says its {what}: give --dataset and --split.")
    return given or known[0]


def _turned(start: ScoreHalf, end: ScoreHalf) -> list[tuple[str, ScoreHalf]]:
    """The knobs that differ, in order, each with the score half after it is turned."""
    found, half = [], start
    for knob in KNOBS:
        if getattr(half, knob) != getattr(end, knob):
            half = half.model_copy(update={knob: getattr(end, knob)})
            found.append((knob, half))
    return found


def _own(side: Side, measure: Measure) -> float:
    """The number of a side, which its predictions must give where they are at hand."""
    if side.predictions is None:
        assert side.recorded is not None
        return side.recorded
    value = measure(side, side.protocol.score)
    if side.recorded not in (None, value):
        raise InputError(
            f"{side.name}: the record says {side.recorded}, its predictions score {value} here. Take the annotation"
            " files that the record was made with."
        )
    return value


def _walk(side: Side, halves: Sequence[ScoreHalf], measure: Measure) -> list[float] | str:
    """The values of a side's predictions under each score half, or why there are none."""
    if side.predictions is None:
        return f"The predictions of {side.name} do not lie beside its record."
    try:
        return [measure(side, half) for half in halves]
    except InputError as error:
        return f"The predictions of {side.name} cannot be scored at every step: {error}"


def _knobs(turned: Sequence[tuple[str, ScoreHalf]], start: ScoreHalf, values: Sequence[float]) -> list[Step]:
    """A step for each knob; `values` are those before the first, and after each."""
    before = [start, *(half for _, half in turned)]
    return [
        Step(KNOBS[knob], shown(getattr(old, knob)), shown(getattr(new, knob)), new.headline, value)
        for (knob, new), old, value in zip(turned, before, values[1:], strict=False)
    ]


def _other(a: Side, b: Side, metric: str, value: float) -> Step:
    """The step from A's predictions to B's, or to the sentences that B's protocol asks of the same ones."""
    if a.predictions is b.predictions:
        return Step("sentences", a.protocol.input.sentences, b.protocol.input.sentences, metric, value)
    if a.predictions is None or b.predictions is None:
        return Step("not separated", a.protocol.name, b.protocol.name, metric, value)
    old, new = a.predictions.header, b.predictions.header
    same = old and new and (old.method, old.checkpoint) == (new.method, new.checkpoint)
    return Step("input half" if same else "predictions", a.protocol.name, b.protocol.name, metric, value)


def _about(a: Side, b: Side, under: Side) -> str:
    """Say what the step between the predictions holds."""
    if a.predictions is None or b.predictions is None:
        lost = a if a.predictions is None else b
        return f"not separated: what is left, with the input half of {lost.name}, which needs its predictions."
    if a.predictions is b.predictions:
        return f"sentences: which of the answers count, under the score half of {under.protocol.name}."
    what = f"From A's predictions to B's, under the score half of {under.protocol.name}"
    old, new = a.predictions.header, b.predictions.header
    if old is None or new is None:
        return f"{what}; a file does not say what made it."
    made: dict[str, tuple[Any, Any]] = {
        "method": (old.method, new.method),
        "checkpoint": (old.checkpoint[:12], new.checkpoint[:12]),
        **{knob: (old.input.get(knob), new.input.get(knob)) for knob in {**old.input, **new.input}},
        "size of the masks": (shown(old.scored_at), shown(new.scored_at)),
    }
    differing = [f"{name} {before} to {after}" for name, (before, after) in made.items() if before != after]
    return f"{what}: {', '.join(differing) or 'they say the same of what made them'}."
