"""A paper's table: below each published row what was measured, and the difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from risbench import datasets
from risbench.render import Cell, Column, Table, superscript
from risbench.scoring.record import Record
from risbench.tables.filling import Filling, Position, default_variant, fill, is_available
from risbench.tables.grid import Grid, Row, dataset_grid, full_grid
from risbench.tables.measured import (
    TRAINING_DATA_NOTE,
    ZERO_SHOT_NOTE,
    RunGroup,
    scored_as_published,
    trained_as_published,
    training_data_badges,
    zero_shot_badge,
)
from risbench.tables.papers import Paper
from risbench.tables.published import Published

_DAGGER = "†"
_DOUBLE_DAGGER = "‡"
_NOT_MEASURED = "–"


def build(paper: Paper, records: Iterable[Record], dataset: str | None = None) -> Table:
    """Build a paper's table, or the part of it that is about a data set (see `dataset_grid`)."""
    records = list(records)
    grid = full_grid(paper) if dataset is None else dataset_grid(paper, dataset, _splits(dataset, records))
    filling = fill(grid, records)
    footnotes: dict[str, str] = {}
    rows = tuple(line for row in grid.rows for line in _lines(paper, grid, row, filling, footnotes))
    title = paper.title if grid.numbers else f"{paper.title}. Measured on {dataset}"
    cells = [cell for row in rows for cell in row]
    numbered = [f"{mark} {text}." for text, mark in footnotes.items()]
    runs = [run for group in filling.groups.values() for run in group.runs]
    training = [ZERO_SHOT_NOTE] * any(map(zero_shot_badge, runs))
    training += [TRAINING_DATA_NOTE] * any(map(training_data_badges, runs))
    notes = [*_readings(grid), *_legend(cells, grid), *training, *_state(paper, grid, filling), *numbered]
    return Table(paper.name, title, _columns(paper, grid), rows, tuple(notes))


def _splits(dataset: str, records: Iterable[Record]) -> Iterable[str]:
    if dataset in datasets.names():
        return datasets.load(dataset).splits
    return {record.split for record in records if record.dataset == dataset}


# cells


def _columns(paper: Paper, grid: Grid) -> tuple[Column, ...]:
    return (
        *([Column(paper.group.name, "block")] if paper.group else []),
        *(Column(label.name) for label in paper.labels if not label.wide),
        Column("number", "always" if grid.numbers else "data"),
        *(Column(heading, numeric=True) for heading in grid.columns.values()),
        *(Column(label.name, "wide") for label in paper.labels if label.wide),
        *(Column(name, "data") for name in ("folder", "variants", "protocol", "seed", "training")),
    )


def _lines(
    paper: Paper, grid: Grid, row: Row, filling: Filling, footnotes: dict[str, str]
) -> Iterator[tuple[Cell, ...]]:
    """Yield the published numbers of a row, then the measured ones, then the differences if there are any."""
    kinds = {
        "published": [_published(row.published.get(column), footnotes) for column in grid.columns],
        "measured": [_measured((row, column), grid, filling, footnotes) for column in grid.columns],
        "difference": [_difference((row, column), filling) for column in grid.columns],
    }
    shown = {
        "published": bool(row.published),
        "measured": row.configuration is not None,
        "difference": any(cell.text for cell in kinds["difference"]),
    }
    first = next(kind for kind in kinds if shown[kind])
    group = [Cell(row.group)] if paper.group else []
    for kind in filter(shown.__getitem__, kinds):
        labels = [
            (label, Cell(text, ditto=kind != first)) for label, text in zip(paper.labels, row.labels, strict=True)
        ]
        yield (
            *group,
            *(cell for label, cell in labels if not label.wide),
            Cell(kind),
            *kinds[kind],
            *(cell for label, cell in labels if label.wide),
            *(_run_cells(row, grid, filling) if kind == "measured" else [Cell("")] * 5),
        )


def _run_cells(row: Row, grid: Grid, filling: Filling) -> list[Cell]:
    """Return folder, variants, protocols, seeds and training data of what fills a row."""
    assert row.configuration
    groups = {
        heading: filling.groups[row, column]
        for column, heading in grid.columns.items()
        if (row, column) in filling.groups
    }
    runs = [run for group in groups.values() for run in group.runs]
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    protocols = dict.fromkeys(run.protocol for run in runs)
    names = (row.configuration.variants, protocols, map(str, seeds), _training_data_by_column(groups))
    return [Cell(row.configuration.method), *(Cell(", ".join(each)) for each in names)]


def _training_data_by_column(groups: dict[str, RunGroup]) -> list[str]:
    """Return what the training data mean: once, or with the column's heading if the columns differ."""
    training = {heading: _training_data(group) for heading, group in groups.items()}
    if len(set(training.values())) > 1:
        return [f"{heading}: {text}" for heading, text in training.items() if text]
    return list(training.values())[:1]


def _training_data(group: RunGroup) -> str:
    """Return what training and training data of a group's runs mean for its result."""
    badges = [badge for run in group.runs for badge in (zero_shot_badge(run), *training_data_badges(run))]
    return "; ".join(dict.fromkeys(filter(None, badges)))


def _footnote_mark(text: str, footnotes: dict[str, str]) -> str:
    """Return the mark of a footnote; a new text gets a new mark."""
    return footnotes.setdefault(text, superscript(len(footnotes) + 1)) if text else ""


def _published(number: Published | None, footnotes: dict[str, str]) -> Cell:
    if number is None:
        return Cell()
    return Cell(number.value, number_format=f".{number.digits}f", footnote=_footnote_mark(number.remark, footnotes))


def _measured(position: Position, grid: Grid, filling: Filling, footnotes: dict[str, str]) -> Cell:
    row, column = position
    if position not in filling.groups:
        return Cell(remark=_NOT_MEASURED if row.configuration else "")
    group = filling.groups[position]
    trained_otherwise = bool(grid.numbers) and group.is_trained and not all(map(trained_as_published, group.runs))
    return replace(
        group.cell(row.quantity(column).metric, with_interval=True),
        mark=_DOUBLE_DAGGER if trained_otherwise else "",
        footnote=_footnote_mark(_training_data(group), footnotes),
        best=_is_best(position, grid, filling),
    )


def _difference(position: Position, filling: Filling) -> Cell:
    """Return measured minus published if the source's network was trained alike; a dagger if protocols differ."""
    row, column = position
    number, group = row.published.get(column), filling.groups.get(position)
    if number is None or group is None or not all(map(trained_as_published, group.runs)):
        return Cell()
    value = group.cell(row.quantity(column).metric, with_interval=False).value
    assert isinstance(value, float)  # `fill` chooses no group without a value
    same_protocol = number.protocol and all(map(scored_as_published, group.runs))
    return Cell(value - number.value, number_format="+.2f", mark="" if same_protocol else _DAGGER)


# the best of a column


def _is_best(position: Position, grid: Grid, filling: Filling) -> bool:
    """Whether a measured value is the best of its column beyond chance.

    Its interval must lie above every other number in the column, among trained or among zero-shot rows. All measured
    numbers must have one protocol, and so must the published ones; the difference from the published number must have
    no dagger.
    """
    row, column = position
    quantity = row.quantity(column)
    others = [x for x in grid.rows if x != row and (x.group, x.quantity(column)) == (row.group, quantity)]
    known = [filling.groups[x, column] for x in others if (x, column) in filling.groups]
    rivals = [group for group in known if group.is_trained == filling.groups[position].is_trained]
    published = [x.published[column] for x in (row, *others) if column in x.published]
    difference = _difference(position, filling)
    comparable = not grid.numbers or (difference.value is not None and not difference.mark)
    measured_under = {group.runs[0].protocol for group in (filling.groups[position], *rivals)}
    if not comparable or len(measured_under) > 1 or len({number.protocol for number in published}) > 1:
        return False
    ends = [*(number.value for number in published), *(_interval(rival, quantity.metric)[1] for rival in rivals)]
    return bool(ends) and _interval(filling.groups[position], quantity.metric)[0] > max(ends)


def _interval(group: RunGroup, metric: str) -> tuple[float, float]:
    """Return the lowest and the highest end over the seeds; infinite ends if a run has no interval."""
    intervals = [run.intervals.get(metric) for run in group.runs]
    known = [interval for interval in intervals if interval]
    if len(known) < len(intervals):
        return (float("-inf"), float("inf"))
    return (min(low for low, _ in known), max(high for _, high in known))


# notes


def _readings(grid: Grid) -> list[str]:
    """Say why numbers are read as they are, and of which methods if the reasons differ."""
    methods: dict[str, dict[str, None]] = {}
    for number in grid.numbers:
        if number.reason:
            methods.setdefault(number.reason, {})[number.method] = None
    if len(methods) == 1:
        return [f"{reason}." for reason in methods]
    return [f"{', '.join(names)}: {reason}." for reason, names in methods.items()]


def _legend(cells: Iterable[Cell], grid: Grid) -> list[str]:
    """Explain the signs that occur in this table."""
    cells = list(cells)
    marks = {cell.mark for cell in cells}
    others = "every other number" if grid.numbers else "the intervals of all other rows"
    notes = {
        "±: sample standard deviation over the seeds; the value is their mean.": any(
            cell.spread is not None for cell in cells
        ),
        "[low, high]: 95 % percentile interval by bootstrap over images.": any(cell.interval for cell in cells),
        f"{_NOT_MEASURED}: not measured.": any(cell.remark == _NOT_MEASURED for cell in cells),
        "difference: measured minus published, of one metric.": any(cell.value == "difference" for cell in cells),
        f"{_DAGGER}: another protocol than the source's, or the source's is not known.": _DAGGER in marks,
        f"{_DOUBLE_DAGGER}: trained otherwise than the source's network (from scratch or on other data): no"
        " difference.": _DOUBLE_DAGGER in marks,
        f"Bold (in a terminal *): the best of its column beyond chance. Its 95 % interval (of several seeds from the"
        f" lowest to the highest end) lies above {others} in the column, and all are of one protocol.": any(
            cell.best for cell in cells
        ),
    }
    return ["Metrics in percent.", *(text for text, applies in notes.items() if applies)]


def _state(paper: Paper, grid: Grid, filling: Filling) -> list[str]:
    """Say what was measured and how, and what is missing."""
    quantities = [row.quantity(column) for row in grid.rows for column in grid.columns]
    configurations = list(dict.fromkeys(row.configuration for row in grid.rows if row.configuration))
    available = [configuration for configuration in configurations if is_available(configuration)]
    measured = {row.configuration for row, _ in filling.groups}
    notes = [paper.note] if paper.note else []
    if variants := {name: None for quantity in quantities for name in default_variant(quantity.dataset)}:
        notes.append(f"Every row is of the variant `{', '.join(variants)}`.")
    if protocols := dict.fromkeys(group.runs[0].protocol for group in filling.groups.values()):
        notes.append(f"Measured under the protocol {' or '.join(protocols)}.")
    elif available:
        method, dataset = " --variant ".join([available[0].method, *available[0].variants]), quantities[0].dataset
        notes.append(f"Nothing is measured yet. A row: risbench run --method {method} --dataset {dataset}")
    if absent := [str(x) for x in configurations if x not in (*available, *measured)]:
        notes.append(f"Not in risbench yet, so not measured: {', '.join(absent)}.")
    if grid.numbers and any(row.configuration is None for row in grid.rows):
        notes.append("A row without `measured` is of a method that risbench does not train.")
    return [*notes, *filling.notes]
