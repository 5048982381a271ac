"""Measured rows: runs that differ by nothing but their seeds, and whether they mean the same as a published number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from risbench import datasets, methods, recipe
from risbench.render import Cell
from risbench.scoring import protocol
from risbench.scoring.record import Record
from risbench.tables.published import HEADLINES, Published

TRAINED = (
    "cross-data set: trained on other data sets, too; leaked: the share of expressions whose image was trained on, as"
    " far as the training sets were at hand."
)
"""What `badges` mean."""
_FILES = (".bin", ".pt", ".pth", ".safetensors", ".txt", ".weights")  # of weights and words


@dataclass(frozen=True)
class Line:
    """One row to be: runs that differ by nothing but their seeds, or none where only a published number exists."""

    method: str
    dataset: str
    split: str
    runs: tuple[Record, ...] = ()
    differs: str = ""  # settings that its labels do not tell: overridden ones, and those of other rows with its labels
    published: Published | None = None

    @property
    def is_reference(self) -> bool:
        return self.method.startswith("reference/")

    @property
    def is_ceiling(self) -> bool:
        return self.method.startswith("reference/oracle")

    @property
    def is_comparable(self) -> bool:
        return not self.runs or is_comparable(self.runs[0])

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
        trained = badges(first) if first else []
        said = "; ".join(filter(None, [kind, partial, resized, control, *trained, self.differs]))
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


def group(records: Iterable[Record]) -> tuple[list[Line], list[str]]:
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


def _same_label(groups: dict[tuple[str, ...], dict[int | None, Record]]) -> list[Line]:
    """Make the rows of one label; where there are several, each says in which settings it differs."""
    common = set.intersection(*map(set, groups))
    lines = []
    for settings, by_seed in groups.items():
        runs = sorted(by_seed.values(), key=lambda run: -1 if run.seed is None else run.seed)
        own = [setting for setting in settings if setting not in common]
        differs = "; ".join(dict.fromkeys([*own, *overridden(runs[0])]))
        lines.append(Line(runs[0].method, runs[0].dataset, runs[0].split, tuple(runs), differs))
    return lines


def _label(run: Record) -> tuple[object, ...]:
    data = (run.dataset, run.split, run.n, run.partial)
    return (run.method, tuple(run.variants), *data, run.protocol, run.resized, run.control)


def _settings(run: Record) -> tuple[str, ...]:
    """Everything beyond the label and the seed that makes two numbers incomparable, as `name=value`."""
    sections = {part: v if isinstance(v, dict) else {"": v} for part, v in run.recipe.items()}  # others' may be flat
    flat = {f"{part}.{key}".strip("."): v for part, values in sections.items() for key, v in values.items()}
    more = {"trained on": ", ".join(run.training_data), "weights": run.weights, "annotations": run.index[:8]}
    return tuple(f"{name}={value}" for name, value in {**flat, **more}.items())


def overridden(run: Record) -> list[str]:
    """What a run sets otherwise than its method's recipe with its variants, as `section.key=value`."""
    trained_on = [run.dataset, *run.recipe.get("train", {}).get("datasets", [])]
    words = [datasets.load(name).max_words for name in trained_on if name in datasets.names()]
    return altered(run.method, run.variants, run.recipe, max(words, default=0))


def altered(method: str, variants: Sequence[str], values: Mapping[str, Any], words: int = 0) -> list[str]:
    """What resolved settings say otherwise than a method's recipe with these variants, as `section.key=value`.

    `words` are those of the card where the recipe leaves text.max_tokens to it. Not told: whether training began from
    pretrained weights, and where they lie, which a record states by itself.
    """
    if method not in methods.names():
        return []
    file = methods.recipe_file(method)
    if not set(variants) <= set(recipe.variants(file)):
        return []
    settings, _ = recipe.load(file, [recipe.FULL, *variants])
    told = recipe.differences(values, settings)
    if not settings.text.max_tokens and told.get("text.max_tokens") == words:
        del told["text.max_tokens"]
    usual = {f"model.{key}": value for key, value in settings.model.items()}
    return [
        f"{name}={value}"
        for name, value in told.items()
        if name != "model.pretrained" and not _is_a_place(value, usual.get(name))
    ]


def _is_a_place(value: object, usual: object) -> bool:
    """Whether a setting of the network says where weights or words lie: a file, or anything where none was named."""
    if not isinstance(value, str) or not isinstance(usual, str):
        return False
    return not usual or "/" in value or Path(value).suffix in _FILES


def badges(run: Record) -> list[str]:
    """What the training data of a run mean for its result: other data sets, leaked images, or that nobody knows."""
    named = set(run.training_data)
    others = named & set(datasets.names()) - {run.dataset} or any("COCO" in name for name in named)
    said = {
        "cross-data set": others,
        f"leaked {run.leaked or 0:.2f} %": run.leaked,
        "training data unknown": "unknown" in named,
    }
    return [badge for badge, applies in said.items() if applies]


def is_comparable(run: Record) -> bool:
    """Whether a run's protocol is one for results, not one for following a training."""
    return run.protocol not in protocol.names() or protocol.load(run.protocol).comparable


def trained_as_published(run: Record) -> bool:
    """Whether a run began from pretrained weights and saw its own data set alone, as the sources' networks did."""
    trained_on = set(run.training_data) & set(datasets.names())  # the rest is what the pretrained weights have seen
    pretrained = not any(word in run.weights for word in ("from scratch", "random"))
    return pretrained and trained_on == {run.dataset}


def under_published_protocol(run: Record) -> bool:
    """Whether the source of the method's headline scored as this run was scored."""
    return run.protocol in HEADLINES[run.method].protocols


def _as_published(run: Record) -> bool:
    """Tell whether a run is what the source measured: its network and training, its protocol, all of the data."""
    altered = run.partial or run.control or run.variants or overridden(run)
    return not altered and trained_as_published(run) and under_published_protocol(run)


def _rank(name: str) -> tuple[int, str]:
    order = ("mini", "refcoco", "refcoco+", "refcocog", "refcocog-google", "grefcoco", "train", "val", "testA", "testB")
    return (order.index(name) if name in order else len(order), name)
