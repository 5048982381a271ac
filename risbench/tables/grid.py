"""The shape of a paper's table: its rows, its columns and the published numbers in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from risbench import datasets
from risbench.errors import InputError
from risbench.scoring.metrics import NO_TARGET_METRICS
from risbench.tables import papers, published
from risbench.tables.papers import Configuration, Label, Paper
from risbench.tables.published import Published


class Quantity(NamedTuple):
    """What a number measures, by risbench's names; "" where a row or a column leaves it open, or it is not known."""

    dataset: str
    split: str
    metric: str


@dataclass(frozen=True)
class Row:
    """One row: its words, what fills it, and the published numbers by column."""

    group: str
    labels: tuple[str, ...]
    fixed: Quantity  # open where the columns say more
    configuration: Configuration | None
    published: dict[Quantity, Published] = field(default_factory=dict, compare=False)

    def quantity(self, column: Quantity) -> Quantity:
        """Return what a number in this row and a column measures."""
        return Quantity(*(fixed or free for fixed, free in zip(self.fixed, column, strict=True)))


@dataclass(frozen=True)
class Grid:
    """Headings by column, rows, and all published numbers in them."""

    columns: dict[Quantity, str]
    rows: list[Row]
    numbers: list[Published]


def numbers(paper: Paper) -> list[Published]:
    """Return the published numbers of a table, row by row."""
    known = [number for number in published.load() if paper.metrics is None or number.read_as in paper.metrics]
    return [number for selection in paper.numbers for number in known if number.is_in(selection)]


def full_grid(paper: Paper) -> Grid:
    """Lay out a table as the paper prints it."""
    return _lay_out(paper, numbers(paper))


def dataset_grid(paper: Paper, dataset: str, splits: Iterable[str]) -> Grid:
    """Lay out the part of a table that is about one data set.

    A data set that the paper does not have takes the place of all of the paper's data sets. The grid then has no
    published numbers, only the rows that risbench can fill, and each column once. Raises InputError if the data set is
    scored by other metrics.
    """
    everything = numbers(paper)
    _refuse_other_metrics(paper, everything, dataset)
    of_dataset = [number for number in everything if number.risbench_dataset == dataset]
    if of_dataset:
        return _lay_out(paper, of_dataset)
    known_splits, filled = set(splits), {row.printed for row in paper.filled_rows}
    fillable = [number for number in everything if (number.method, number.variant) in filled or paper.extra_rows]
    moved = [_move(n, dataset) for n in fillable if n.read_as and n.risbench_split in known_splits]
    grid = _lay_out(paper, moved)
    return Grid(grid.columns, [replace(row, published={}) for row in grid.rows if row.configuration], [])


def _refuse_other_metrics(paper: Paper, everything: Iterable[Published], dataset: str) -> None:
    """Refuse a data set with expressions without a target if the table has no metric of the no-target rule."""
    metrics = dict.fromkeys(number.risbench_metric for number in everything if number.risbench_metric)
    if metrics.keys() & set(NO_TARGET_METRICS) or dataset not in datasets.names():
        return
    if datasets.load(dataset).no_target:
        raise InputError(
            f"{paper.name} has {', '.join(metrics)}, but {dataset}, which has expressions without a target, is measured"
            f" in {', '.join(NO_TARGET_METRICS)}: give another data set, or print `risbench table --dataset {dataset}`."
        )


def _move(number: Published, dataset: str) -> Published:
    split, metric = number.risbench_split, number.risbench_metric
    return replace(number, dataset=dataset, split=split, read_on=f"{dataset} {split}", metric=metric, source="")


def _lay_out(paper: Paper, numbers: Sequence[Published]) -> Grid:
    configurations = {row.printed: _configuration(row) for row in paper.filled_rows}
    columns: dict[Quantity, str] = {}
    rows: dict[Row, Row] = {}
    for number in numbers:
        column = _quantity(number, [name in paper.columns for name in Quantity._fields])
        heading = " ".join(getattr(number, name) for name in paper.columns)
        columns.setdefault(column, heading.replace("(", " ("))
        row = _row(paper, number, configurations.get((number.method, number.variant)))
        rows.setdefault(row, row).published[column] = number
    return Grid(columns, [*rows, *_extra_rows(paper, next(iter(rows), None))], list(numbers))


def _row(paper: Paper, number: Published, configuration: Configuration | None) -> Row:
    """Return the row of a number, without numbers."""
    group = label_text(paper.group, number) if paper.group else ""
    labels = tuple(label_text(label, number) for label in paper.labels)
    fixed = _quantity(number, [name not in paper.columns for name in Quantity._fields])
    return Row(group, labels, fixed, configuration)


def label_text(label: Label, number: Published) -> str:
    """Return the text of a label column for a row of published.csv."""
    if label.check:
        return "✓" if label.name in number.variant.split("+") else ""
    try:
        text = label.text.format(number=number) or label.missing
    except (AttributeError, ValueError) as error:
        raise papers.damaged(papers.data_file("papers.toml"), f"the label {label.name!r}: {error}") from None
    match = re.match(label.part, text) if label.part else None
    return match[1] if match else text


def _quantity(number: Published, kept: Sequence[bool]) -> Quantity:
    """Return what a number measures, with only the fields that are kept."""
    fields = (number.risbench_dataset, number.risbench_split, number.risbench_metric)
    return Quantity(*(value if keep else "" for value, keep in zip(fields, kept, strict=True)))


def _extra_rows(paper: Paper, first: Row | None) -> list[Row]:
    """Return the rows that the paper does not have, in the group of the first row."""
    if first is None:
        return []
    return [Row(first.group, row.labels, first.fixed, _configuration(row)) for row in paper.extra_rows]


def _configuration(row: Configuration) -> Configuration:
    """Return the configuration alone, without what else the data file says of the row."""
    return Configuration(method=row.method, variants=row.variants)
