"""Measured rows: runs grouped by everything but their seeds, and whether they are comparable with published numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from risbench import datasets, methods, recipe
from risbench.data import pretrained
from risbench.recipe import Recipe
from risbench.render import Cell
from risbench.scoring import protocol
from risbench.scoring.record import Record
from risbench.tables.published import Published, headline_protocols

TRAINING_DATA_NOTE = (
    "cross-data set: trained on other data sets, too; leaked: the share of expressions whose image was trained on,"
    " which is unknown where not all of the training data are known and at hand."
)
"""Explains `training_data_badges`."""
ZERO_SHOT, UNTRAINED = "zero-shot", "untrained"
ZERO_SHOT_NOTE = (
    f"{ZERO_SHOT}: nothing was trained, and pretrained weights were evaluated as they are; {UNTRAINED}: not even those"
    " were loaded."
)
"""Explains the two words."""
PROTOCOL_NOTES = {
    "†": "†: a protocol for following a training; comparable with no published number and no other protocol.",
    "§": "§: a protocol that follows a defect of its source's code; comparable only with numbers of the same code.",
}
"""Explains the marks of `protocol_mark`."""
_WEIGHT_FILES = (".bin", ".pt", ".pth", ".safetensors", ".txt", ".weights")


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ by their seeds only, or no runs if there is only a published number."""

    method: str
    dataset: str
    split: str
    runs: tuple[Record, ...] = ()
    settings: str = ""  # that the labels do not show: overridden ones, and those that differ between groups
    published: Published | None = None

    @property
    def is_reference(self) -> bool:
        return self.method.startswith("reference/")

    @property
    def is_ceiling(self) -> bool:
        return self.method.startswith("reference/oracle")

    @property
    def is_trained(self) -> bool:
        """Whether these are no zero-shot runs; published rows are of trained networks."""
        return all(run.is_trained for run in self.runs)

    @property
    def is_comparable(self) -> bool:
        return not self.runs or is_comparable(self.runs[0])

    def labels(self) -> tuple[str, str]:
        """Return the variants and the protocol."""
        return (", ".join(self.runs[0].variants), self.runs[0].protocol) if self.runs else ("", "")

    def sort_key(self) -> tuple[object, ...]:
        """Order data sets and splits as in the papers: floors and ceilings, zero-shot methods, trained methods."""
        place = (_rank(self.dataset), _rank(self.split))
        kind = (not self.is_reference, self.is_ceiling, self.is_trained)
        return (*place, *kind, self.method, *self.labels(), self.remark())

    def remark(self) -> str:
        """Return what distinguishes these runs beyond the labels, in brackets."""
        kind = ("ceiling" if self.is_ceiling else "floor") if self.is_reference else ""
        first = self.runs[0] if self.runs else None
        partial = ": ".join(filter(None, ["partial", limit_of(first)])) if first and first.partial else ""
        control = f"control: {first.control}" if first and first.control else ""
        resized = "resized" if first and first.resized else ""
        training = training_data_badges(first) if first else []
        zero_shot = zero_shot_badge(first) if first else ""
        words = "; ".join(filter(None, [kind, zero_shot, partial, resized, control, *training, self.settings]))
        return f"({words})" if words else ""

    def cell(self, metric: str, with_interval: bool) -> Cell:
        """Return mean and spread of a metric over the seeds; the interval of a single run."""
        values = [run.metrics.get(metric) for run in self.runs]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):  # a mean over some of the runs would be another number
            return Cell()
        interval = self.runs[0].intervals.get(metric) if with_interval and len(known) == 1 else None
        ends = (interval[0], interval[1]) if interval else None
        return Cell(fmean(known), ends, stdev(known) if len(known) > 1 else None)

    def difference(self, metric: str) -> Cell:
        """Return measured minus published if both mean the same, else an empty cell."""
        value = self.cell(metric, with_interval=False).value
        if self.published is None or not isinstance(value, float) or not all(map(_measured_as_published, self.runs)):
            return Cell()
        return Cell(value - self.published.value, number_format="+.2f")


def limit_of(run: Record) -> str:
    """Return to which images a run is limited: "first 5 images"; "" for no limit."""
    limit = run.limit or run.training_limit
    where = "" if run.limit else " in training"
    return f"first {limit} image{'s' * (limit != 1)}{where}" if limit else ""


def group_runs(records: Iterable[Record]) -> tuple[list[RunGroup], list[str]]:
    """Group records that differ by their seeds only; of two with one seed the newest counts, and a note says so."""
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
    return [group for same_label in groups.values() for group in _groups_of_label(same_label)], list(notes)


def _groups_of_label(runs_by_settings: dict[tuple[str, ...], dict[int | None, Record]]) -> list[RunGroup]:
    """Make the groups of one label; if there are several, each names the settings in which it differs."""
    common = set.intersection(*map(set, runs_by_settings))
    groups = []
    for settings, by_seed in runs_by_settings.items():
        runs = sorted(by_seed.values(), key=lambda run: -1 if run.seed is None else run.seed)
        differing = [setting for setting in settings if setting not in common]
        shown = "; ".join(dict.fromkeys([*differing, *overridden_settings(runs[0])]))
        groups.append(RunGroup(runs[0].method, runs[0].dataset, runs[0].split, tuple(runs), shown))
    return groups


def _label(run: Record) -> tuple[object, ...]:
    data = (run.dataset, run.split, run.n, run.partial, run.limit, run.training_limit)
    return (run.method, tuple(run.variants), *data, run.protocol, run.resized, run.control)


def _settings(run: Record) -> tuple[str, ...]:
    """Return everything beyond the label and the seed that makes two numbers incomparable, as `name=value`."""
    sections = {part: v if isinstance(v, dict) else {"": v} for part, v in run.recipe.items()}  # foreign ones are flat
    settings = {f"{part}.{key}".strip("."): v for part, values in sections.items() for key, v in values.items()}
    for key in (pretrained.KEY, *recipe.REMARKS):  # what the run was trained on holds the first, the others are words
        settings.pop(key, None)
    weights = pretrained.describe(run.pretrained)
    facts = {"trained on": ", ".join(run.training_data), "weights": weights, "annotations": run.index[:8]}
    return tuple(f"{name}={value}" for name, value in {**settings, **facts}.items())


def overridden_settings(run: Record) -> list[str]:
    """Return the settings in which a run differs from its method's recipe with its variants, as `section.key=value`."""
    train = run.recipe.get("train")
    others = train.get("datasets") if isinstance(train, dict) else None
    trained_on = [run.dataset, *map(str, others if isinstance(others, list) else [])]
    known = _known_datasets(_cards_folders()).issuperset(trained_on)
    max_words = max(_max_words(name, _cards_folders()) for name in trained_on) if known else None
    return changed_settings(run.method, run.variants, run.recipe, max_words)


def changed_settings(
    method: str, variants: Sequence[str], values: Mapping[str, Any], max_words: int | None = 0
) -> list[str]:
    """Return the resolved settings that differ from a method's recipe with these variants, as `section.key=value`.

    `max_words` is the card's value if the recipe leaves text.max_tokens to the card; None for a card that is not at
    hand, whose value any may be. Whether training began from pretrained weights, the paths of weights and what they
    were trained on are left out: a record states the weights separately.
    """
    settings = _todays_recipe(method, tuple(variants), os.environ.get("RISBENCH_METHODS", ""))
    if settings is None:
        return []
    changed = recipe.differences(values, settings)
    if not settings.text.max_tokens and max_words in (None, changed.get("text.max_tokens")):
        changed.pop("text.max_tokens", None)
    usual = {f"model.{key}": value for key, value in settings.model.items()}
    return [
        f"{name}={value}"
        for name, value in changed.items()
        if name not in ("model.pretrained", pretrained.KEY) and not _is_weights_path(value, usual.get(name))
    ]


# a table needs these once for each of thousands of records, and each time files would be read


@cache
def _todays_recipe(method: str, variants: tuple[str, ...], folders: str) -> Recipe | None:
    """Return a method's recipe with variants; None if there is no such method or variant. `folders` is a key alone."""
    if method not in methods.names():
        return None
    file = methods.recipe_file(method)
    if not set(variants) <= set(recipe.variant_names(file)):
        return None
    return recipe.load(file, [recipe.FULL, *variants])[0]


def _cards_folders() -> str:
    return os.environ.get("RISBENCH_DATASETS", "")


@cache
def _known_datasets(folders: str) -> frozenset[str]:
    return frozenset(datasets.names())


@cache
def _max_words(dataset: str, folders: str) -> int:
    return datasets.load(dataset).max_words


def _is_weights_path(value: object, usual: object) -> bool:
    """Whether a setting of the network is the path of weights or word vectors: a file, or any text if it was empty."""
    if not isinstance(value, str) or not isinstance(usual, str):
        return False
    return not usual or "/" in value or Path(value).suffix in _WEIGHT_FILES


def zero_shot_badge(run: Record) -> str:
    """Return what a run evaluated if it trained nothing: pretrained weights as they are, or random ones; or ""."""
    if run.is_trained:
        return ""
    return ZERO_SHOT if pretrained.are_loaded(run.pretrained) else UNTRAINED


def training_data_badges(run: Record) -> list[str]:
    """Return what weakens a run's result in its training data: other data sets, leaked images, or unknown data."""
    trained_on = set(run.training_data)
    is_unknown = pretrained.UNKNOWN in trained_on
    badges = {
        "cross-data set": trained_on & _known_datasets(_cards_folders()) - {run.dataset}
        or any(pretrained.coco_split(name) is not None for name in trained_on),
        f"leaked {run.leaked or 0:.2f} %": run.leaked,
        "training data unknown": is_unknown,
        "leaked unknown": trained_on and run.leaked is None and not is_unknown,
    }
    return [badge for badge, applies in badges.items() if applies]


def is_comparable(run: Record) -> bool:
    """Whether a run's protocol is for results, not for following a training."""
    return run.protocol not in protocol.names() or protocol.load(run.protocol).comparable


def protocol_mark(name: str) -> str:
    """Return the mark of a protocol whose numbers compare with few others; see PROTOCOL_NOTES."""
    if name not in protocol.names():
        return ""
    chosen = protocol.load(name)
    if not chosen.comparable:
        return "†"
    return "§" if chosen.defect else ""


def trained_as_published(run: Record) -> bool:
    """Whether all parts of a run began pretrained and it was trained on its data set only, as the sources' networks."""
    known = _known_datasets(_cards_folders())
    trained_on = set(run.training_data) & known  # the rest was seen by the pretrained weights
    return pretrained.are_loaded(run.pretrained) and trained_on == {run.dataset}


def scored_as_published(run: Record) -> bool:
    """Whether a run was scored under a protocol of the method's headline."""
    return run.protocol in headline_protocols(run.method)


def _measured_as_published(run: Record) -> bool:
    """Whether a run measures what the source measured: its network and training, its protocol, all of the data."""
    changed = run.partial or run.control or run.variants or overridden_settings(run)
    return not changed and trained_as_published(run) and scored_as_published(run)


def _rank(name: str) -> tuple[int, str]:
    order = (
        "mini",
        "mini-gres",
        "refcoco",
        "refcoco+",
        "refcocog",
        "refcocog-google",
        "grefcoco",
        "train",
        "val",
        "testA",
        "testB",
    )
    return (order.index(name) if name in order else len(order), name)
