"""Comparison tables: measured records by data set, split and method, with the published numbers beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from risbench import datasets, protocol
from risbench.errors import unknown
from risbench.published import HEADLINES, Published, headline, headlines
from risbench.record import Record
from risbench.render import Cell, Column, Table, superscript
from risbench.slices import SLICES, Slice

METRICS = ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9", "pointing")


@dataclass(frozen=True)
class _Line:
    """One row to be: runs that differ by nothing but their seeds, or none where only a published number exists."""

    method: str
    dataset: str
    split: str
    runs: tuple[Record, ...] = ()
    differs: str = ""  # the settings by which it differs from rows with the same labels
    published: Published | None = None

    @property
    def is_reference(self) -> bool:
        return self.method.startswith("reference/")

    @property
    def is_ceiling(self) -> bool:
        return self.method.startswith("reference/oracle")

    @property
    def is_comparable(self) -> bool:
        return not self.runs or _is_comparable(self.runs[0])

    def labels(self) -> tuple[str, str]:
        """The variants and the protocol."""
        return (", ".join(self.runs[0].variants), self.runs[0].protocol) if self.runs else ("", "")

    def order(self) -> tuple[object, ...]:
        """Data sets and splits as in the papers, floors and ceilings above the methods."""
        place = (_rank(self.dataset), _rank(self.split))
        return (*place, not self.is_reference, self.is_ceiling, self.method, *self.labels(), self.remark())

    def remark(self) -> str:
        """What sets the row apart, for people."""
        kind = ("ceiling" if self.is_ceiling else "floor") if self.is_reference else ""
        first = self.runs[0] if self.runs else None
        partial = "partial" if first and first.partial else ""
        control = f"control: {first.control}" if first and first.control else ""
        resized = "resized" if first and first.resized else ""
        said = "; ".join(filter(None, [kind, partial, resized, control, self.differs]))
        return f"({said})" if said else ""

    def metric(self, name: str, with_interval: bool) -> Cell:
        """Mean and spread over the seeds; the interval of a single run."""
        values = [run.metrics.get(name) for run in self.runs]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):  # a mean over some of the runs would be another number
            return Cell()
        interval = self.runs[0].intervals.get(name) if with_interval and len(known) == 1 else None
        ends = (interval[0], interval[1]) if interval else None
        return Cell(fmean(known), ends, stdev(known) if len(known) > 1 else None)

    def difference(self, name: str) -> Cell:
        """Measured minus published, where both mean the same."""
        value = self.metric(name, False).value
        if self.published is None or not isinstance(value, float) or not all(map(_as_published, self.runs)):
            return Cell()
        return Cell(value - self.published.value, form="+.2f")


def tables(records: Iterable[Record], dataset: str | None = None, metric: str = "oIoU") -> list[Table]:
    """Build the comparison and the table of every slice that records have."""
    found = list(records)
    by_slice = (sliced(found, division, dataset) for division in SLICES)
    return [comparison(found, dataset, metric), *(table for table in by_slice if table.rows)]


def comparison(records: Iterable[Record], dataset: str | None = None, metric: str = "oIoU") -> Table:
    """Build the table of measured records with the published headline value of `metric` beside them."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    lines, notes = _lines(_of(dataset, records))
    lines = [replace(line, published=headline(line.method, line.dataset, line.split, metric)) for line in lines]
    if dataset or not lines:
        lines += _unmeasured(lines, dataset, metric)
    footnotes: dict[str, str] = {}
    rows = tuple(_row(line, metric, footnotes) for line in sorted(lines, key=_Line.order))
    numbered = [f"{mark} {text}" for text, mark in footnotes.items()]
    columns = (
        Column("data set", "block"),
        Column("split", "block"),
        *map(Column, ("method", "variants", "protocol")),
        Column("n", numeric=True),
        Column("seeds"),
        *(Column(name, numeric=True) for name in (*METRICS, f"published {metric}", "difference")),
        Column("source", "wide"),
        Column("partial", "data"),
        Column("resized", "data"),
        Column("control", "data"),
    )
    title = f"Measured results, and the published {metric}"
    return Table("comparison", title, columns, rows, (*numbered, *_legend(lines, metric, [metric]), *notes))


def sliced(records: Iterable[Record], division: Slice, dataset: str | None = None) -> Table:
    """Build the table of oIoU by the values of a slice, from the records that have it."""
    having = [record for record in _of(dataset, records) if division.name in record.slices]
    lines = sorted(_lines(_by_value(record, division) for record in having)[0], key=_Line.order)
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
    notes = (meaning, *_numbers(lines, division), *_legend(lines, "oIoU", values))
    return Table(division.name, f"oIoU by {division.name}", columns, tuple(rows), notes)


def _by_value(run: Record, division: Slice) -> Record:
    """A record whose metrics are oIoU by the values of a slice."""
    parts = run.slices[division.name]
    intervals = {value: part.intervals["oIoU"] for value, part in parts.items() if "oIoU" in part.intervals}
    return run.model_copy(
        update={"metrics": {value: part.oIoU for value, part in parts.items()}, "intervals": intervals}
    )


def _numbers(lines: Iterable[_Line], division: Slice) -> list[str]:
    """Say how many expressions have each value, once for all rows of which it is true."""
    protocols: dict[tuple[str, str], dict[str, None]] = {}
    for line in lines:
        parts = line.runs[0].slices[division.name]
        counts = ", ".join(f"{parts[value].n} ({value})" for value in division.ordered(parts))
        protocols.setdefault((f"{line.dataset} {line.split}", counts), {})[line.runs[0].protocol] = None
    return [f"Expressions of {where}, {', '.join(under)}: {n}." for (where, n), under in protocols.items()]


def _row(line: _Line, metric: str, footnotes: dict[str, str]) -> tuple[Cell, ...]:
    seeds = [str(run.seed) for run in line.runs if run.seed is not None]
    published = Cell()
    if line.published is not None:
        mark = footnotes.setdefault(line.published.footnote, superscript(len(footnotes) + 1))
        published = Cell(line.published.value, footnote=mark)
    return (
        *_label_cells(line),
        Cell(line.runs[0].n if line.runs else None),
        Cell(", ".join(seeds)),
        *(line.metric(name, name == metric) for name in METRICS),
        published,
        line.difference(metric),
        Cell(line.published.where if line.published else ""),
        Cell("yes" if line.runs and line.runs[0].partial else ""),
        Cell("yes" if line.runs and line.runs[0].resized else ""),
        Cell(line.runs[0].control if line.runs else ""),
    )


def _label_cells(line: _Line) -> tuple[Cell, ...]:
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


def _lines(records: Iterable[Record]) -> tuple[list[_Line], list[str]]:
    """Group records that differ by their seeds only; of two with one seed the newest stands, and a note says so."""
    groups: dict[tuple[object, ...], dict[tuple[str, ...], dict[int | None, Record]]] = {}
    notes: dict[str, None] = {}
    for record in sorted(records, key=lambda record: record.created):
        same_label = groups.setdefault(_label(record), {})
        runs = same_label.setdefault(_settings(record), {})
        older = runs.get(record.seed)
        if older is not None and older.checkpoint != record.checkpoint:
            where = f"{record.method} on {record.dataset} {record.split} ({record.protocol}, seed {record.seed})"
            notes[f"{where} has records of several checkpoints; the newest is shown, of {record.created}."] = None
        runs[record.seed] = record
    return [line for same_label in groups.values() for line in _same_label(same_label)], list(notes)


def _same_label(groups: dict[tuple[str, ...], dict[int | None, Record]]) -> list[_Line]:
    """Make the rows of one label; where there are several, each says in which settings it differs."""
    common = set.intersection(*map(set, groups))
    lines = []
    for settings, by_seed in groups.items():
        runs = sorted(by_seed.values(), key=lambda run: -1 if run.seed is None else run.seed)
        differs = "; ".join(setting for setting in settings if setting not in common)
        lines.append(_Line(runs[0].method, runs[0].dataset, runs[0].split, tuple(runs), differs))
    return lines


def _label(run: Record) -> tuple[object, ...]:
    data = (run.dataset, run.split, run.n, run.partial)
    return (run.method, tuple(run.variants), *data, run.protocol, run.resized, run.control)


def _settings(run: Record) -> tuple[str, ...]:
    """Everything beyond the label and the seed that makes two numbers incomparable, as `name=value`."""
    sections = {part: v if isinstance(v, dict) else {"": v} for part, v in run.recipe.items()}  # others' may be flat
    recipe = {f"{part}.{key}".strip("."): v for part, values in sections.items() for key, v in values.items()}
    more = {"trained on": ", ".join(run.training_data), "weights": run.weights, "annotations": run.index[:8]}
    return tuple(f"{name}={value}" for name, value in {**recipe, **more}.items())


def _as_published(run: Record) -> bool:
    """Tell whether a run is what the source measured: its network and training, its protocol, all of the data."""
    altered = run.partial or run.control or run.variants or run.weights == "from scratch" or not _is_comparable(run)
    trained_on = set(run.training_data) & set(datasets.names())  # the rest is what the pretrained weights have seen
    return not altered and trained_on == {run.dataset} and run.protocol in HEADLINES[run.method].protocols


def _is_comparable(run: Record) -> bool:
    return run.protocol not in protocol.names() or protocol.load(run.protocol).comparable


def _unmeasured(lines: Iterable[_Line], dataset: str | None, metric: str) -> list[_Line]:
    """Return a row for every published headline number that has no measured row."""
    measured = {(line.method, line.dataset, line.split) for line in lines}
    rows = [_Line(p.risbench_method, p.risbench_dataset, p.split, published=p) for p in headlines(metric)]
    return [r for r in rows if dataset in (None, r.dataset) and (r.method, r.dataset, r.split) not in measured]


def _legend(lines: Sequence[_Line], metric: str, shown: Sequence[str]) -> list[str]:
    """Explain what stands in this table, and nothing else; `shown` are the columns with an interval."""
    runs = [run for line in lines for run in line.runs]
    if not runs:
        return ["No records were found: risbench run --method M --dataset D makes one for every split and protocol."]
    said = {
        "±: sample standard deviation over the seeds; the value is their mean.": any(len(x.runs) > 1 for x in lines),
        f"[low, high]: 95 % interval of {metric} by bootstrap over images.": any(
            name in run.intervals for run in runs for name in shown
        ),
        "floor, ceiling: what needs no learning, and what no method at that resolution can pass.": any(
            line.is_reference for line in lines
        ),
        "partial: measured on a part of the data set; not comparable with any other number.": any(
            run.partial for run in runs
        ),
        "†: a protocol for following a training; comparable with no published number and no other protocol.": not all(
            line.is_comparable for line in lines
        ),
        "resized: predicted at the images' size, and brought to the size at which the protocol scores.": any(
            run.resized for run in runs
        ),
        "difference: measured minus published, only where protocol, data, variant and weights are the source's.": any(
            line.published for line in lines
        ),
    }
    return ["Metrics in percent.", *(text for text, applies in said.items() if applies)]


def _rank(name: str) -> tuple[int, str]:
    order = ("mini", "refcoco", "refcoco+", "refcocog", "refcocog-google", "grefcoco", "train", "val", "testA", "testB")
    return (order.index(name) if name in order else len(order), name)
