"""A table of a paper with what was measured, and the difference, under each published row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from risbench import datasets, methods, recipe
from risbench.render import Cell, Column, Table, superscript
from risbench.scoring.record import Record
from risbench.tables import papers
from risbench.tables.measured import (
    TRAINED,
    Line,
    badges,
    group,
    is_comparable,
    overridden,
    trained_as_published,
    under_published_protocol,
)
from risbench.tables.papers import Grid, Ours, Paper, Row, Slot
from risbench.tables.published import HEADLINES, Published

Place = tuple[Row, Slot]  # a row and a column of a grid

_DAGGER = "†"
_OTHERWISE = "‡"
_EMPTY = "–"


@dataclass(frozen=True)
class Filling:
    """The runs that stand in a grid, and what must be said of the choice."""

    lines: dict[Place, Line]
    notes: list[str]


def build(paper: Paper, records: Iterable[Record], dataset: str | None = None) -> Table:
    """Build a paper's table, or the part of it that is about a data set (see `papers.only`)."""
    found = list(records)
    grid = papers.grid(paper) if dataset is None else papers.only(paper, dataset, _splits(dataset, found))
    filling = fill(grid, found)
    footnotes: dict[str, str] = {}
    rows = tuple(line for row in grid.rows for line in _lines(paper, grid, row, filling, footnotes))
    columns = (
        *([Column(paper.block.name, "block")] if paper.block else []),
        *(Column(label.name) for label in paper.labels if not label.wide),
        Column("number", "always" if grid.numbers else "data"),
        *(Column(heading, numeric=True) for heading in grid.columns.values()),
        *(Column(label.name, "wide") for label in paper.labels if label.wide),
        *(Column(name, "data") for name in ("folder", "variants", "protocol", "seeds", "training")),
    )
    title = paper.title if grid.numbers else f"{paper.title}. Measured on {dataset}"
    cells = [cell for row in rows for cell in row]
    numbered = [f"{mark} {text}." for text, mark in footnotes.items()]
    trained = [TRAINED] * any(map(_training, filling.lines.values()))
    notes = [*_readings(grid), *_legend(cells, grid), *trained, *_state(paper, grid, filling), *numbered]
    return Table(paper.name, title, columns, rows, tuple(notes))


def fill(grid: Grid, records: Iterable[Record]) -> Filling:
    """Find the runs for every place that risbench can measure; a place that has none is left out."""
    wanted = {(row, at): _wanted(row.ours, row.slot(at)) for row in grid.rows if row.ours for at in grid.columns}
    keys = set(wanted.values())
    runs = [run for run in records if _key(run) in keys and not run.control and is_comparable(run)]
    altered = {id(run): ", ".join(overridden(run)) for run in runs}
    lines, several = group(run for run in runs if not (run.partial or altered[id(run)]))
    partial = ["Records of partial copies are left out."] * any(run.partial for run in runs)
    others = [_left_out(run, altered[id(run)]) for run in runs if altered[id(run)]]
    notes = dict.fromkeys([*several, *partial, *others])
    chosen: dict[Place, Line] = {}
    for (row, at), key in wanted.items():
        metric = row.slot(at).metric
        known = [x for x in lines if _key(x.runs[0]) == key and x.metric(metric, False).value is not None]
        if not known:
            continue
        known.sort(key=lambda line: line.runs[-1].created, reverse=True)
        line = chosen[row, at] = min(known, key=_preference)
        if [x.labels() for x in known].count(line.labels()) > 1:
            where = f"{line.method} {line.labels()[0]} on {line.dataset} {line.split}"
            notes[f"{where} has records of several settings; those shown are of {line.runs[-1].created}."] = None
    return Filling(chosen, list(notes))


def _left_out(run: Record, altered: str) -> str:
    name = " ".join((run.method, *run.variants))
    return f"Left out, since settings of today's recipe were overridden: {name} on {run.dataset} with {altered}."


def _wanted(ours: Ours, slot: Slot) -> tuple[object, ...]:
    variants = [*_default_variant(slot.dataset), *ours.variants]
    return (ours.method, _network(variants, slot.dataset), slot.dataset, slot.split)


def _network(variants: Iterable[str], dataset: str) -> tuple[str, ...]:
    """Variants without those that only name what the recipe does; behind a data set's default variant none does."""
    given = tuple(variants)
    altered = set(_default_variant(dataset)) & set(given)
    return given if altered else tuple(name for name in given if name not in papers.DEFAULTS)


@cache  # a table asks hundreds of times, and reads the card of the data set each time
def _default_variant(dataset: str) -> tuple[str, ...]:
    """The variant that every run on a data set has unless it asks for the full network."""
    return tuple(filter(None, [datasets.load(dataset).default_variant if dataset in datasets.names() else ""]))


def _key(run: Record) -> tuple[object, ...]:
    return (run.method, _network(run.variants, run.dataset), run.dataset, run.split)


def _preference(line: Line) -> tuple[bool, bool, int]:
    """Order lines: trained as the source's network first, under its protocol first."""
    protocols = (*HEADLINES[line.method].protocols, line.runs[0].protocol)
    trained = all(map(trained_as_published, line.runs))
    return (not trained, line.runs[0].resized, protocols.index(line.runs[0].protocol))


def _splits(dataset: str, records: Iterable[Record]) -> Iterable[str]:
    if dataset in datasets.names():
        return datasets.load(dataset).splits
    return {record.split for record in records if record.dataset == dataset}


def _lines(
    paper: Paper, grid: Grid, row: Row, filling: Filling, footnotes: dict[str, str]
) -> Iterator[tuple[Cell, ...]]:
    """Yield the published numbers of a row, then what was measured, then the differences where there are any."""
    kinds = {
        "published": [_published(row.published.get(at), footnotes) for at in grid.columns],
        "measured": [_measured((row, at), grid, filling, footnotes) for at in grid.columns],
        "difference": [_difference((row, at), filling) for at in grid.columns],
    }
    shown = {
        "published": bool(row.published),
        "measured": row.ours is not None,
        "difference": any(cell.text for cell in kinds["difference"]),
    }
    first = next(kind for kind in kinds if shown[kind])
    blocks = [Cell(row.block)] if paper.block else []
    for kind, numbers in kinds.items():
        labels = [
            (label, Cell(text, ditto=kind != first)) for label, text in zip(paper.labels, row.labels, strict=True)
        ]
        if shown[kind]:
            yield (
                *blocks,
                *(cell for label, cell in labels if not label.wide),
                Cell(kind),
                *numbers,
                *(cell for label, cell in labels if label.wide),
                *_runs(row, grid, filling, kind == "measured"),
            )


def _runs(row: Row, grid: Grid, filling: Filling, is_measured: bool) -> list[Cell]:
    """What fills a row: folder, variants, protocols, seeds and what its training data mean, by column if it varies."""
    if not is_measured or row.ours is None:
        return [Cell("")] * 5
    runs = [run for place, line in filling.lines.items() if place[0] == row for run in line.runs]
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    protocols = dict.fromkeys(run.protocol for run in runs)
    lines = {heading: filling.lines[row, at] for at, heading in grid.columns.items() if (row, at) in filling.lines}
    trained = {heading: _training(line) for heading, line in lines.items()}
    told = [f"{heading}: {text}" for heading, text in trained.items() if text]
    training = told if len(set(trained.values())) > 1 else list(trained.values())[:1]
    names = (row.ours.variants, protocols, map(str, seeds))
    return [Cell(row.ours.method), *(Cell(", ".join(each)) for each in names), Cell(", ".join(training))]


def _training(line: Line) -> str:
    """What the training data of its runs mean for a line."""
    return "; ".join(dict.fromkeys(badge for run in line.runs for badge in badges(run)))


def _numbered(text: str, footnotes: dict[str, str]) -> str:
    """The mark of a footnote, which is a new one for a new text."""
    return footnotes.setdefault(text, superscript(len(footnotes) + 1)) if text else ""


def _published(number: Published | None, footnotes: dict[str, str]) -> Cell:
    if number is None:
        return Cell()
    return Cell(number.value, form=f".{number.digits}f", footnote=_numbered(number.remark, footnotes))


def _measured(place: Place, grid: Grid, filling: Filling, footnotes: dict[str, str]) -> Cell:
    if place not in filling.lines:
        return Cell(remark=_EMPTY if place[0].ours else "")
    row, at = place
    line = filling.lines[place]
    cell = line.metric(row.slot(at).metric, True)
    otherwise = bool(grid.numbers) and not all(map(trained_as_published, line.runs))
    told = _numbered(_training(line), footnotes)
    return replace(cell, mark=_OTHERWISE if otherwise else "", footnote=told, best=_is_best(place, grid, filling))


def _difference(place: Place, filling: Filling) -> Cell:
    """Measured minus published, where the network was trained as the source's; a dagger where protocols differ."""
    row, at = place
    number, line = row.published.get(at), filling.lines.get(place)
    if number is None or line is None or not all(map(trained_as_published, line.runs)):
        return Cell()
    value = line.metric(row.slot(at).metric, False).value
    assert isinstance(value, float)  # `fill` takes no other
    same_protocol = number.protocol and all(map(under_published_protocol, line.runs))
    return Cell(value - number.value, form="+.2f", mark="" if same_protocol else _DAGGER)


def _is_best(place: Place, grid: Grid, filling: Filling) -> bool:
    """Whether a measured value may be called the best of its column, beyond chance.

    Its interval must lie above every other number there. All measured ones need one protocol, and so do the published
    ones: that for which the difference has no dagger.
    """
    row, at = place
    slot = row.slot(at)
    others = [x for x in grid.rows if x != row and (x.block, x.slot(at)) == (row.block, slot)]
    rivals = [filling.lines[x, at] for x in others if (x, at) in filling.lines]
    published = [x.published[at] for x in (row, *others) if at in x.published]
    difference = _difference(place, filling)
    comparable = not grid.numbers or (difference.value is not None and not difference.mark)
    measured_under = {line.runs[0].protocol for line in (filling.lines[place], *rivals)}
    if not comparable or len(measured_under) > 1 or len({number.protocol for number in published}) > 1:
        return False
    numbers = [*(number.value for number in published), *(_ends(line, slot.metric)[1] for line in rivals)]
    return bool(numbers) and _ends(filling.lines[place], slot.metric)[0] > max(numbers)


def _ends(line: Line, metric: str) -> tuple[float, float]:
    """The interval of a line, from the lowest to the highest end over its seeds; without bounds where one has none."""
    intervals = [run.intervals.get(metric) for run in line.runs]
    known = [interval for interval in intervals if interval]
    if len(known) < len(intervals):
        return (float("-inf"), float("inf"))
    return (min(low for low, _ in known), max(high for _, high in known))


def _readings(grid: Grid) -> list[str]:
    """Say why numbers are read as they are; of which methods, where the reasons differ."""
    methods: dict[str, dict[str, None]] = {}
    for number in grid.numbers:
        if number.reason:
            methods.setdefault(number.reason, {})[number.method] = None
    if len(methods) == 1:
        return [f"{reason}." for reason in methods]
    return [f"{', '.join(names)}: {reason}." for reason, names in methods.items()]


def _legend(cells: Iterable[Cell], grid: Grid) -> list[str]:
    """Explain what stands in this table, and nothing else."""
    there = list(cells)
    marks = {cell.mark for cell in there}
    others = "every other number" if grid.numbers else "the intervals of all other rows"
    said = {
        "±: sample standard deviation over the seeds; the value is their mean.": any(
            cell.spread is not None for cell in there
        ),
        "[low, high]: 95 % percentile interval by bootstrap over images.": any(cell.interval for cell in there),
        f"{_EMPTY}: not measured.": any(cell.remark == _EMPTY for cell in there),
        "difference: measured minus published, of one metric.": any(cell.value == "difference" for cell in there),
        f"{_DAGGER}: another protocol than the source's, or the source's is not known.": _DAGGER in marks,
        f"{_OTHERWISE}: trained otherwise than the source's network (from scratch or on other data): no difference.": (
            _OTHERWISE in marks
        ),
        f"Bold (in a terminal *): the best of its column beyond chance. Its 95 % interval (of several seeds from the"
        f" lowest to the highest end) lies above {others} in the column, and all are of one protocol.": any(
            cell.best for cell in there
        ),
    }
    return ["Metrics in percent.", *(text for text, applies in said.items() if applies)]


def _state(paper: Paper, grid: Grid, filling: Filling) -> list[str]:
    """Say what was measured and how, and what is missing."""
    said = [paper.note] if paper.note else []
    slots = [row.slot(at) for row in grid.rows for at in grid.columns]
    if small := {name: None for slot in slots for name in _default_variant(slot.dataset)}:
        said.append(f"Every row is of the variant `{', '.join(small)}`.")
    ours = dict.fromkeys(row.ours for row in grid.rows if row.ours)
    there = [x for x in ours if is_there(x)]
    measured = {row.ours for row, _ in filling.lines}
    if protocols := dict.fromkeys(line.runs[0].protocol for line in filling.lines.values()):
        said.append(f"Measured under the protocol {' or '.join(protocols)}.")
    elif there:
        method = " --variant ".join([there[0].method, *there[0].variants])
        said.append(f"Nothing is measured yet. A row: risbench run --method {method} --dataset {slots[0].dataset}")
    if absent := [" ".join((x.method, *x.variants)) for x in ours if x not in (*there, *measured)]:
        said.append(f"Not in risbench yet, so not measured: {', '.join(absent)}.")
    if grid.numbers and any(row.ours is None for row in grid.rows):
        said.append("A row without `measured` is of a method that risbench does not train.")
    return [*said, *filling.notes]


def is_there(ours: Ours) -> bool:
    """Whether the method's folder and the variants of its recipe exist."""
    known = ours.method in methods.names()
    return known and set(ours.variants) <= set(recipe.variants(methods.recipe_file(ours.method)))
