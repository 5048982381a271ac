"""Comparison tables: measured records by data set, split and method, with the published numbers beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from risbench import datasets
from risbench.errors import unknown
from risbench.render import Cell, Column, Table, superscript
from risbench.scoring.metrics import BOUNDARY_IOU, NO_TARGET_METRICS
from risbench.scoring.record import Record
from risbench.scoring.slices import DEFAULT_SLICES, Slice
from risbench.scoring.statistics import MIN_IMAGES
from risbench.tables import paper_table, papers
from risbench.tables.measured import (
    PROTOCOL_NOTES,
    TRAINING_DATA_NOTE,
    ZERO_SHOT_NOTE,
    RunGroup,
    group_runs,
    limit_of,
    protocol_mark,
    training_data_badges,
    zero_shot_badge,
)
from risbench.tables.published import headline, headlines

COMPARISON = "comparison"
METRICS = ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9", "pointing")
DETAIL = dict.fromkeys(("pointing", "P@0.5", "P@0.7", "P@0.9"), 2)  # of the columns of metrics on a narrow terminal
_LABEL_COLUMNS = (
    Column("data set", "block"),
    Column("split", "block"),
    *map(Column, ("method", "variants", "protocol")),
)


def build(
    name: str, records: Iterable[Record], dataset: str | None = None, slices: Sequence[Slice] = DEFAULT_SLICES
) -> list[Table]:
    """Build the comparison with the tables of some slices, or a paper's table (results/papers.toml)."""
    if name == COMPARISON:
        return comparison_tables(records, dataset, slices=slices)
    if name not in titles():
        raise unknown("table", name, titles())
    return [paper_table.build(papers.load(name), _of_dataset(dataset, records), dataset)]


def titles() -> dict[str, str]:
    """Return the title of every table by its name."""
    return {COMPARISON: "Measured results, and the published oIoU", **papers.titles()}


def comparison_tables(
    records: Iterable[Record],
    dataset: str | None = None,
    metric: str = "oIoU",
    slices: Sequence[Slice] = DEFAULT_SLICES,
) -> list[Table]:
    """Build the comparison, and a table for each of these slices that records have."""
    records = list(records)
    by_slice = (
        slice_table(records, slice_, dataset, iou_metric) for slice_ in slices for iou_metric in ("oIoU", "gIoU")
    )
    return [comparison_table(records, dataset, metric), *(table for table in by_slice if table.rows)]


def comparison_table(records: Iterable[Record], dataset: str | None = None, metric: str = "oIoU") -> Table:
    """Build the table of measured records with the published headline value of `metric` beside them."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    groups, notes = group_runs(_of_dataset(dataset, records))
    groups = [replace(x, published=headline(x.method, x.dataset, x.split, metric)) for x in groups]
    if dataset or not groups:
        groups += _unmeasured(groups, dataset, metric)
    no_target_metrics = (
        NO_TARGET_METRICS if any(_has_no_target_rule(run) for group in groups for run in group.runs) else ()
    )
    footnotes: dict[str, str] = {}
    rows = tuple(_row(group, metric, no_target_metrics, footnotes) for group in sorted(groups, key=RunGroup.sort_key))
    numbered = [f"{mark} {text}" for text, mark in footnotes.items()]
    columns = (
        *_LABEL_COLUMNS,
        Column("n", numeric=True, detail=3),
        Column("seed", detail=3),
        *(Column(name, numeric=True, detail=DETAIL.get(name, 0)) for name in METRICS),
        Column(BOUNDARY_IOU, "wide", numeric=True),
        *(Column(name, numeric=True) for name in (*no_target_metrics, f"published {metric}", "difference")),
        Column("source", "wide"),
        Column("partial", "data"),
        Column("resized", "data"),
        Column("control", "data"),
        Column("training", "data"),
    )
    title = f"Measured results, and the published {metric}"
    legend = _legend(groups, metric, [metric, *no_target_metrics[:1]])
    return Table(COMPARISON, title, columns, rows, (*numbered, *legend, *notes))


def slice_table(records: Iterable[Record], slice_: Slice, dataset: str | None = None, metric: str = "oIoU") -> Table:
    """Build the table of oIoU, or gIoU under the no-target rule, by the values of a slice from records that have it."""
    of_dataset = _of_dataset(dataset, records)
    sliced = [x for x in of_dataset if slice_.name in x.slices and _has_no_target_rule(x) == (metric == "gIoU")]
    groups = sorted(group_runs(_by_value(x, slice_, metric) for x in sliced)[0], key=RunGroup.sort_key)
    values = slice_.ordered(value for record in sliced for value in record.slices[slice_.name])
    rows = []
    for group in groups:
        parts = group.runs[0].slices[slice_.name]
        counts = [Cell(parts[value].n if value in parts else None) for value in values]
        rows.append((*_label_cells(group), *(group.cell(value, with_interval=True) for value in values), *counts))
    columns = (
        *_LABEL_COLUMNS,
        *(Column(value, numeric=True) for value in values),
        *(Column(f"{value} n", "data") for value in values),
    )
    meaning = f"{slice_.name}: {slice_.meaning}."
    notes = (meaning, *_expression_counts(groups, slice_), *_legend(groups, metric, values))
    name = slice_.name if metric == "oIoU" else f"{slice_.name}, {metric}"
    return Table(name, f"{metric} by {slice_.name}", columns, tuple(rows), notes)


def _by_value(run: Record, slice_: Slice, metric: str) -> Record:
    """Return a record whose metrics are the values of one metric, by the values of a slice."""
    parts = run.slices[slice_.name]
    intervals = {
        value: part.intervals[metric]
        for value, part in parts.items()
        if metric in part.intervals and part.n >= MIN_IMAGES  # older records have some of a single image
    }
    metrics = {value: getattr(part, metric) for value, part in parts.items()}
    return run.model_copy(update={"metrics": metrics, "intervals": intervals})


def _has_no_target_rule(run: Record) -> bool:
    """Whether a run was scored under the no-target rule."""
    return "gIoU" in run.metrics


def _expression_counts(groups: Iterable[RunGroup], slice_: Slice) -> list[str]:
    """Say how many expressions have each value, once for all protocols with the same counts."""
    protocols: dict[tuple[str, str], dict[str, None]] = {}
    for group in groups:
        parts = group.runs[0].slices[slice_.name]
        counts = ", ".join(f"{parts[value].n} ({value})" for value in slice_.ordered(parts))
        protocols.setdefault((f"{group.dataset} {group.split}", counts), {})[group.runs[0].protocol] = None
    return [f"Expressions of {where}, {', '.join(names)}: {n}." for (where, n), names in protocols.items()]


def _row(group: RunGroup, metric: str, no_target_metrics: Sequence[str], footnotes: dict[str, str]) -> tuple[Cell, ...]:
    seeds = [str(run.seed) for run in group.runs if run.seed is not None]
    published = Cell()
    if group.published is not None:
        mark = footnotes.setdefault(group.published.footnote, superscript(len(footnotes) + 1))
        published = Cell(group.published.value, footnote=mark)
    return (
        *_label_cells(group),
        Cell(group.runs[0].n if group.runs else None),
        Cell(", ".join(seeds)),
        *(group.cell(name, with_interval=name == metric) for name in (*METRICS, BOUNDARY_IOU)),
        *(group.cell(name, with_interval=name == "gIoU") for name in no_target_metrics),
        published,
        group.difference(metric),
        Cell(group.published.where if group.published else ""),
        Cell((limit_of(group.runs[0]) or "yes") if group.runs and group.runs[0].partial else ""),
        Cell("yes" if group.runs and group.runs[0].resized else ""),
        Cell(group.runs[0].control if group.runs else ""),
        Cell("; ".join(_training(group.runs[0])) if group.runs else ""),
    )


def _training(run: Record) -> list[str]:
    """Return what a reader has to know of a run's training and training data."""
    return [*filter(None, [zero_shot_badge(run)]), *training_data_badges(run)]


def _label_cells(group: RunGroup) -> tuple[Cell, ...]:
    variants, protocol = group.labels()
    return (
        Cell(group.dataset),
        Cell(group.split),
        Cell(group.method, remark=group.remark()),
        Cell(variants),
        Cell(protocol, footnote=protocol_mark(protocol)),
    )


def _of_dataset(dataset: str | None, records: Iterable[Record]) -> list[Record]:
    """Keep the records of one data set, which must have a card, a record or a published number."""
    records = list(records)
    published = (number.risbench_dataset for number in headlines())
    known = dict.fromkeys([*datasets.names(), *(record.dataset for record in records), *published])
    if dataset is not None and dataset not in known:
        raise unknown("data set", dataset, known)
    return [record for record in records if dataset in (None, record.dataset)]


def _unmeasured(groups: Iterable[RunGroup], dataset: str | None, metric: str) -> list[RunGroup]:
    """Return a group without runs for every published headline number that was not measured."""
    measured = {(group.method, group.dataset, group.split) for group in groups}
    rows = [RunGroup(p.risbench_method, p.risbench_dataset, p.risbench_split, published=p) for p in headlines(metric)]
    return [r for r in rows if dataset in (None, r.dataset) and (r.method, r.dataset, r.split) not in measured]


def _legend(groups: Sequence[RunGroup], metric: str, with_interval: Sequence[str]) -> list[str]:
    """Explain what occurs in this table; `with_interval` are the columns that have intervals."""
    runs = [run for group in groups for run in group.runs]
    if not runs:
        return ["No records were found: risbench run --method M --dataset D makes one for every split and protocol."]
    interval_of = f"{metric} or gIoU" if "gIoU" in with_interval else metric
    notes = {
        "±: sample standard deviation over the seeds; the value is their mean.": any(len(x.runs) > 1 for x in groups),
        f"[low, high]: 95 % percentile interval of {interval_of} by bootstrap over images.": any(
            name in group.runs[0].intervals for group in groups if len(group.runs) == 1 for name in with_interval
        ),
        f"Without [low, high]: no interval, which needs {MIN_IMAGES} images with a value.": any(
            group.runs[0].metrics.get(name) is not None and name not in group.runs[0].intervals
            for group in groups
            if len(group.runs) == 1
            for name in with_interval
        ),
        "gIoU, cIoU: mean and overall IoU of all expressions, with and without a target; N-acc, T-acc: the share of"
        " expressions without and with a target that are recognised as such.": any(map(_has_no_target_rule, runs)),
        "floor, ceiling: what needs no learning, and what no method at that resolution can pass.": any(
            group.is_reference for group in groups
        ),
        "partial: measured on a part of the data set; not comparable with any other number.": any(
            run.partial for run in runs
        ),
        **{note: mark in map(protocol_mark, (run.protocol for run in runs)) for mark, note in PROTOCOL_NOTES.items()},
        ZERO_SHOT_NOTE: any(map(zero_shot_badge, runs)),
        TRAINING_DATA_NOTE: any(map(training_data_badges, runs)),
        "resized: predicted at the images' size, and brought to the size at which the protocol scores.": any(
            run.resized for run in runs
        ),
        "difference: measured minus published, only where protocol, data, variant and weights are the source's.": any(
            group.published for group in groups
        ),
    }
    return ["Metrics in percent.", *(text for text, applies in notes.items() if applies)]
