"""The difference between two numbers, split into steps that add up.

From A to B the knobs of the score half are turned one at a time, in the order of KNOBS, on the same predictions.
Everything that other predictions change (the input half, perhaps another network) is one step under one score half. As
a rule it is the last step, under B's score half, and the knobs are turned on A's predictions. If these cannot be scored
under B's score half, such as masks of a network's size at the size of the image, it is the first step, under A's score
half, and the knobs are turned on B's predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pandas as pd

from risbench.analysis.endpoints import Endpoint
from risbench.data import source
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.render import Cell, Column, Table
from risbench.scoring import metrics
from risbench.scoring.protocol import ScoreHalf
from risbench.scoring.score import score_rows
from risbench.tables.protocols import format_setting

KNOBS = {
    "ground_truth": "ground truth",
    "scored_at": "size",
    "at_least": "comparison",
    "empty_union": "empty union",
    "no_target": "no target",
    "headline": "metric",
}
_ORDER_NOTE = f"Knobs are turned in the order {', '.join(KNOBS.values())}; in another order the steps would differ."
_KNOB_NOTES = {
    "scored_at": "size: masks of the images' size are resized; masks predicted at that size may differ.",
    "at_least": "comparison: of IoU with X, so P@X alone depends on it.",
    "empty_union": "empty union: only mIoU and P@X depend on it.",
}

Measure = Callable[[Endpoint, ScoreHalf], float]  # the headline metric of an endpoint's predictions under a score half
Turn = tuple[str, ScoreHalf]  # a knob, and the score half after it is turned


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
    """The steps from A to B; the value of the first is A's, the value of the last B's."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...]


def explain(a: Endpoint, b: Endpoint, dataset: str, split: str, data_root: str, partial: bool) -> Explanation:
    """Explain the difference between two numbers on a data set and a split; "" are those that the files name."""
    name = _agree("data set", dataset, (a.dataset, b.dataset))
    split = _agree("split", split, (a.split, b.split))
    if a.limits[0] != b.limits[0]:
        sides = [f"the first {limit} images" if limit else "all images" for limit, _ in (a.limits, b.limits)]
        raise InputError(f"A is of {sides[0]} of {split}, B of {sides[1]}: take two numbers of the same images.")

    @lru_cache
    def index() -> Index:
        return source.open_index(name, data_root, partial=partial or a.partial or b.partial)

    @lru_cache
    def rows(endpoint: Endpoint, counting: ScoreHalf) -> pd.DataFrame:
        assert endpoint.predictions is not None
        protocol = endpoint.protocol.model_copy(update={"score": counting})
        return score_rows(endpoint.predictions, index(), split, protocol)

    def measure(endpoint: Endpoint, half: ScoreHalf) -> float:
        counting = half.model_dump(include={"scored_at", "ground_truth", "no_target"})  # all that rows depend on
        sums = metrics.Sums.from_rows(rows(endpoint, ScoreHalf.model_validate(counting)), half)
        value = metrics.compute(sums)[half.headline]
        if value is None:
            raise InputError(f"{endpoint.name} has no {half.headline}, as every union is empty: take another number.")
        return value

    explanation = find_steps(a, b, measure)
    has_predictions = a.predictions is not None or b.predictions is not None
    if any(side.partial or any(side.limits) for side in (a, b)) or (has_predictions and index().partial):
        return replace(explanation, notes=(*explanation.notes, "Measured on a part of the data set."))
    return explanation


def _agree(what: str, option: str, from_files: Sequence[str]) -> str:
    """Return the option, or what the files name; raises InputError when they disagree or name nothing."""
    known = list(dict.fromkeys(filter(None, from_files)))
    if len(known) > 1:
        raise InputError(f"A is of the {what} {known[0]!r}, B of {known[1]!r}: take two numbers of one {what}.")
    if not option and not known:
        raise InputError(f"No file says its {what}: give --dataset and --split.")
    return option or known[0]


def find_steps(a: Endpoint, b: Endpoint, measure: Measure) -> Explanation:
    """Find the steps from A to B, with values from `measure`."""
    _refuse_different_no_target_rules(a, b)
    turns = _turns(a.protocol.score, b.protocol.score)
    halves = [a.protocol.score, *(half for _, half in turns)]
    start = Step("A", "", a.protocol.name, halves[0].headline, _measured_or_recorded(a, measure))
    end_value = _measured_or_recorded(b, measure)
    metric = b.protocol.score.headline
    notes = [f"A: {a.name}.", f"B: {b.name}.", *filter(None, [a.remark, b.remark])]
    on_a = _values(a, halves, measure)
    on_b = _values(b, halves, measure) if isinstance(on_a, str) else ""
    if not isinstance(on_a, str):
        steps = [start, *_knob_steps(halves[0], turns, on_a)]
        if a.predictions is not b.predictions or a.protocol.input != b.protocol.input:
            steps.append(_predictions_step(a, b, metric, end_value))
            notes.append(_predictions_note(a, b, b.protocol.name))
    elif not isinstance(on_b, str):
        steps = [start, _predictions_step(a, b, start.metric, on_b[0]), *_knob_steps(halves[0], turns, on_b)]
        notes += [on_a, _predictions_note(a, b, a.protocol.name)]
    else:
        steps = [start, Step("not separated", a.protocol.name, b.protocol.name, metric, end_value)]
        notes += [on_a, on_b, *(["The input half cannot be separated from the score half."] if turns else [])]
    notes += [_ORDER_NOTE] if len(turns) > 1 else []
    return Explanation(tuple(steps), (*notes, *(_KNOB_NOTES[knob] for knob, _ in turns if knob in _KNOB_NOTES)))


def _refuse_different_no_target_rules(a: Endpoint, b: Endpoint) -> None:
    start, end = a.protocol.score, b.protocol.score
    if (start.no_target == "refused") != (end.no_target == "refused"):
        raise InputError(
            f"{start.headline} of {a.protocol.name} and {end.headline} of {b.protocol.name} have no steps between them:"
            " only one of the two has a rule for expressions without a target. Explain two numbers under one rule."
        )


def _turns(start: ScoreHalf, end: ScoreHalf) -> list[Turn]:
    """Turn the knobs that differ, in the order of KNOBS."""
    turns, half = [], start
    for knob in KNOBS:
        if getattr(half, knob) != getattr(end, knob):
            half = half.model_copy(update={knob: getattr(end, knob)})
            turns.append((knob, half))
    return turns


def _measured_or_recorded(endpoint: Endpoint, measure: Measure) -> float:
    """Return the number of an endpoint; raises InputError when its predictions give another one than the record."""
    if endpoint.predictions is None:
        assert endpoint.recorded is not None
        return endpoint.recorded
    value = measure(endpoint, endpoint.protocol.score)
    if endpoint.recorded not in (None, value):
        raise InputError(
            f"{endpoint.name}: the record says {endpoint.recorded}, its predictions score {value} here. Take the"
            " annotation files that the record was made with."
        )
    return value


def _values(endpoint: Endpoint, halves: Sequence[ScoreHalf], measure: Measure) -> list[float] | str:
    """Return the values of an endpoint's predictions under each score half, or the reason why they have none."""
    if endpoint.predictions is None:
        return f"The predictions of {endpoint.name} do not lie beside its record."
    try:
        return [measure(endpoint, half) for half in halves]
    except InputError as error:
        return f"The predictions of {endpoint.name} cannot be scored at every step: {error}"


def _knob_steps(start: ScoreHalf, turns: Sequence[Turn], values: Sequence[float]) -> list[Step]:
    """Return a step for each knob; `values` are those before the first turn, and after each."""
    return [
        Step(KNOBS[knob], format_setting(getattr(old, knob)), format_setting(getattr(new, knob)), new.headline, value)
        for (knob, new), old, value in zip(turns, [start, *(half for _, half in turns)], values[1:], strict=False)
    ]


def _predictions_step(a: Endpoint, b: Endpoint, metric: str, value: float) -> Step:
    """Return the step from A's predictions to B's, or to other sentences of the same predictions."""
    if a.predictions is b.predictions:
        return Step("sentences", a.protocol.input.sentences, b.protocol.input.sentences, metric, value)
    if a.predictions is None or b.predictions is None:
        return Step("not separated", a.protocol.name, b.protocol.name, metric, value)
    old, new = a.predictions.header, b.predictions.header
    same_network = old and new and (old.method, old.checkpoint) == (new.method, new.checkpoint)
    return Step("input half" if same_network else "predictions", a.protocol.name, b.protocol.name, metric, value)


def _predictions_note(a: Endpoint, b: Endpoint, protocol_name: str) -> str:
    """Say what the step between the predictions contains."""
    if a.predictions is None or b.predictions is None:
        missing = a if a.predictions is None else b
        return f"not separated: what is left, with the input half of {missing.name}, which needs its predictions."
    if a.predictions is b.predictions:
        return f"sentences: which of the answers count, under the score half of {protocol_name}."
    step = f"From A's predictions to B's, under the score half of {protocol_name}"
    old, new = a.predictions.header, b.predictions.header
    if old is None or new is None:
        return f"{step}; a file does not name its origin."
    facts: dict[str, tuple[Any, Any]] = {
        "method": (old.method, new.method),
        "checkpoint": (old.checkpoint[:12], new.checkpoint[:12]),
        **{knob: (old.input.get(knob), new.input.get(knob)) for knob in {**old.input, **new.input}},
        "size of the masks": (format_setting(old.scored_at), format_setting(new.scored_at)),
    }
    differing = [f"{name} {before} to {after}" for name, (before, after) in facts.items() if before != after]
    return f"{step}: {', '.join(differing) or 'the files name the same origin'}."


def explanation_table(explanation: Explanation, exact: bool) -> Table:
    """Lay out the steps.

    Unless `exact`, values are rounded before they are subtracted, so that the steps add up as printed.
    """
    steps = explanation.steps
    values = [Fraction(step.value) if exact else Fraction(f"{step.value:.2f}") for step in steps]
    changes = [None, *(float(after - before) for before, after in pairwise(values))]
    rows = [
        (
            *map(Cell, (step.what, step.before, step.after, step.metric)),
            Cell(float(value)),
            Cell(change, number_format="+.2f"),
        )
        for step, value, change in zip(steps, values, changes, strict=True)
    ]
    total = (Cell("B minus A"), *[Cell()] * 4, Cell(float(values[-1] - values[0]), number_format="+.2f"))
    words = map(Column, ("step", "from", "to", "metric"))
    columns = (*words, Column("value", numeric=True), Column("change", numeric=True))
    notes = ("Percent.", *explanation.notes)
    return Table("explanation", "A difference, step by step", columns, (*rows, total), notes)
