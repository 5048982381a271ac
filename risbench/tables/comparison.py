"""Comparison tables: measured records by data set, split and method, with the published numbers beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from risbench import datasets
from risbench.errors import unknown
from risbench.render import Cell, Column, Table, superscript
from risbench.scoring.metrics import BOUNDARY, RULED
from risbench.scoring.record import Record
from risbench.scoring.slices import SHOWN, Slice
from risbench.tables import paper_table, papers
from risbench.tables.measured import TRAINED, Line, badges, group
from risbench.tables.published import headline, headlines

COMPARISON = "comparison"
METRICS = ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9", "pointing")


def named(
    name: str, records: Iterable[Record], dataset: str | None = None, shown: Sequence[Slice] = SHOWN
) -> list[Table]:
    """Build the comparison with the tables of some slices, or a table of a paper (see `papers`)."""
    if name == COMPARISON:
        return tables(records, dataset, shown=shown)
    if name not in titles():
        raise unknown("table", name, titles())
    return [paper_table.build(papers.load(name), _of(dataset, records), dataset)]


def titles() -> dict[str, str]:
    """Names of all tables, and what they show."""
    return {COMPARISON: "Measured results, and the published oIoU", **papers.titles()}


def tables(
    records: Iterable[Record], dataset: str | None = None, metric: str = "oIoU", shown: Sequence[Slice] = SHOWN
) -> list[Table]:
    """Build the comparison, and the table of each of these slices that records have."""
    found = list(records)
    by_slice = (sliced(found, division, dataset, of) for division in shown for of in ("oIoU", "gIoU"))
    return [comparison(found, dataset, metric), *(table for table in by_slice if table.rows)]


def comparison(records: Iterable[Record], dataset: str | None = None, metric: str = "oIoU") -> Table:
    """Build the table of measured records with the published headline value of `metric` beside them."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    lines, notes = group(_of(dataset, records))
    lines = [replace(line, published=headline(line.method, line.dataset, line.split, metric)) for line in lines]
    if dataset or not lines:
        lines += _unmeasured(lines, dataset, metric)
    ruled = RULED if any(_is_ruled(run) for line in lines for run in line.runs) else ()
    footnotes: dict[str, str] = {}
    rows = tuple(_row(line, metric, ruled, footnotes) for line in sorted(lines, key=Line.order))
    numbered = [f"{mark} {text}" for text, mark in footnotes.items()]
    columns = (
        Column("data set", "block"),
        Column("split", "block"),
        *map(Column, ("method", "variants", "protocol")),
        Column("n", numeric=True),
        Column("seeds"),
        *(Column(name, numeric=True) for name in METRICS),
        Column(BOUNDARY, "wide", numeric=True),
        *(Column(name, numeric=True) for name in (*ruled, f"published {metric}", "difference")),
        Column("source", "wide"),
        Column("partial", "data"),
        Column("resized", "data"),
        Column("control", "data"),
        Column("training", "data"),
    )
    title = f"Measured results, and the published {metric}"
    return Table(COMPARISON, title, columns, rows, (*numbered, *_legend(lines, metric, [metric, *ruled[:1]]), *notes))


def sliced(records: Iterable[Record], division: Slice, dataset: str | None = None, metric: str = "oIoU") -> Table:
    """Build the table of oIoU, or gIoU under the no-target rule, by the values of a slice from records that have it."""
    known = [record for record in _of(dataset, records) if division.name in record.slices]
    having = [record for record in known if _is_ruled(record) == (metric == "gIoU")]
    lines = sorted(group(_by_value(record, division, metric) for record in having)[0], key=Line.order)
    values = division.ordered(value for record in having for value in record.slices[division.name])
    rows = []
    for line in lines:
        parts = line.runs[0].slices[division.name]
        numbers = [Cell(parts[value].n if value in parts else None) for value in values]
        rows.append((*_label_cells(line), *(line.metric(value, True) for value in values), *numbers))
    columns = (
        Column("data set", "block"),
        Column("split", "block"),
        *map(Column, ("method", "variants", "protocol")),
        *(Column(value, numeric=True) for value in values),
        *(Column(f"{value} n", "data") for value in values),
    )
    meaning = f"{division.name}: {division.meaning}."
    notes = (meaning, *_numbers(lines, division), *_legend(lines, metric, values))
    name = division.name if metric == "oIoU" else f"{division.name}, {metric}"
    return Table(name, f"{metric} by {division.name}", columns, tuple(rows), notes)


def _by_value(run: Record, division: Slice, metric: str) -> Record:
    """A record whose metrics are one metric by the values of a slice."""
    parts = run.slices[division.name]
    intervals = {value: part.intervals[metric] for value, part in parts.items() if metric in part.intervals}
    metrics = {value: getattr(part, metric) for value, part in parts.items()}
    return run.model_copy(update={"metrics": metrics, "intervals": intervals})


def _is_ruled(run: Record) -> bool:
    """Whether it was scored under the no-target rule."""
    return "gIoU" in run.metrics


def _numbers(lines: Iterable[Line], division: Slice) -> list[str]:
    """Say how many expressions have each value, once for all rows of which it is true."""
    protocols: dict[tuple[str, str], dict[str, None]] = {}
    for line in lines:
        parts = line.runs[0].slices[division.name]
        counts = ", ".join(f"{parts[value].n} ({value})" for value in division.ordered(parts))
        protocols.setdefault((f"{line.dataset} {line.split}", counts), {})[line.runs[0].protocol] = None
    return [f"Expressions of {where}, {', '.join(under)}: {n}." for (where, n), under in protocols.items()]


def _row(line: Line, metric: str, ruled: Sequence[str], footnotes: dict[str, str]) -> tuple[Cell, ...]:
    seeds = [str(run.seed) for run in line.runs if run.seed is not None]
    published = Cell()
    if line.published is not None:
        mark = footnotes.setdefault(line.published.footnote, superscript(len(footnotes) + 1))
        published = Cell(line.published.value, footnote=mark)
    return (
        *_label_cells(line),
        Cell(line.runs[0].n if line.runs else None),
        Cell(", ".join(seeds)),
        *(line.metric(name, name == metric) for name in (*METRICS, BOUNDARY)),
        *(line.metric(name, name == "gIoU") for name in ruled),
        published,
        line.difference(metric),
        Cell(line.published.where if line.published else ""),
        Cell("yes" if line.runs and line.runs[0].partial else ""),
        Cell("yes" if line.runs and line.runs[0].resized else ""),
        Cell(line.runs[0].control if line.runs else ""),
        Cell("; ".join(badges(line.runs[0])) if line.runs else ""),
    )


def _label_cells(line: Line) -> tuple[Cell, ...]:
    labels = (Cell(line.dataset), Cell(line.split), Cell(line.method, remark=line.remark()))
    variants, under = line.labels()
    return (*labels, Cell(variants), Cell(under, footnote="" if line.is_comparable else "†"))


def _of(dataset: str | None, records: Iterable[Record]) -> list[Record]:
    """Keep the records of one data set, which must have a card, a record or a published number."""
    found = list(records)
    known = dict.fromkeys([*datasets.names(), *(p.dataset for p in found), *(p.risbench_dataset for p in headlines())])
    if dataset is not None and dataset not in known:
        raise unknown("data set", dataset, known)
    return [record for record in found if dataset in (None, record.dataset)]


def _unmeasured(lines: Iterable[Line], dataset: str | None, metric: str) -> list[Line]:
    """Return a row for every published headline number that has no measured row."""
    measured = {(line.method, line.dataset, line.split) for line in lines}
    rows = [Line(p.risbench_method, p.risbench_dataset, p.risbench_split, published=p) for p in headlines(metric)]
    return [r for r in rows if dataset in (None, r.dataset) and (r.method, r.dataset, r.split) not in measured]


def _legend(lines: Sequence[Line], metric: str, shown: Sequence[str]) -> list[str]:
    """Explain what stands in this table, and nothing else; `shown` are the columns with an interval."""
    runs = [run for line in lines for run in line.runs]
    if not runs:
        return ["No records were found: risbench run --method M --dataset D makes one for every split and protocol."]
    said_of = f"{metric} or gIoU" if "gIoU" in shown else metric
    said = {
        "±: sample standard deviation over the seeds; the value is their mean.": any(len(x.runs) > 1 for x in lines),
        f"[low, high]: 95 % percentile interval of {said_of} by bootstrap over images.": any(
            name in line.runs[0].intervals for line in lines if len(line.runs) == 1 for name in shown
        ),
        "gIoU, cIoU: mean and overall IoU where nothing may be meant; N-acc, T-acc: the share of expressions without"
        " and with a target that are answered as such.": any(map(_is_ruled, runs)),
        "floor, ceiling: what needs no learning, and what no method at that resolution can pass.": any(
            line.is_reference for line in lines
        ),
        "partial: measured on a part of the data set; not comparable with any other number.": any(
            run.partial for run in runs
        ),
        "†: a protocol for following a training; comparable with no published number and no other protocol.": not all(
            line.is_comparable for line in lines
        ),
        TRAINED: any(map(badges, runs)),
        "resized: predicted at the images' size, and brought to the size at which the protocol scores.": any(
            run.resized for run in runs
        ),
        "difference: measured minus published, only where protocol, data, variant and weights are the source's.": any(
            line.published for line in lines
        ),
    }
    return ["Metrics in percent.", *(text for text, applies in said.items() if applies)]
