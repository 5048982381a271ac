"""Which measured runs fill the rows of a paper's table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from risbench import datasets, methods, recipe
from risbench.scoring.record import Record
from risbench.tables import papers
from risbench.tables.grid import Grid, Quantity, Row
from risbench.tables.measured import RunGroup, group_runs, is_comparable, overridden_settings, trained_as_published
from risbench.tables.papers import Configuration
from risbench.tables.published import headline_protocols

Position = tuple[Row, Quantity]  # a row and a column of a grid
RunKey = tuple[str, tuple[str, ...], str, str]  # method, variants without defaults, data set, split


@dataclass(frozen=True)
class Filling:
    """The runs at each position of a grid, and notes about the choice."""

    groups: dict[Position, RunGroup]
    notes: list[str]


def fill(grid: Grid, records: Iterable[Record]) -> Filling:
    """Choose the runs for every position that risbench can measure; positions without runs are left out."""
    wanted = {
        (row, column): _wanted_key(row.configuration, row.quantity(column))
        for row in grid.rows
        if row.configuration
        for column in grid.columns
    }
    keys = set(wanted.values())
    runs = [run for run in records if _key(run) in keys and not run.control and is_comparable(run)]
    groups, notes = _usable_groups(runs)
    chosen: dict[Position, RunGroup] = {}
    for (row, column), key in wanted.items():
        metric = row.quantity(column).metric
        known = [x for x in groups if _key(x.runs[0]) == key and x.cell(metric, with_interval=False).value is not None]
        if known:
            group = chosen[row, column] = _best(known)
            if [x.labels() for x in known].count(group.labels()) > 1:
                notes[_several_settings(group)] = None
    return Filling(chosen, list(notes))


def _usable_groups(runs: Iterable[Record]) -> tuple[list[RunGroup], dict[str, None]]:
    """Group the complete runs without overridden settings; notes say which runs are left out."""
    with_settings = [(run, ", ".join(overridden_settings(run))) for run in runs]
    groups, several = group_runs(run for run, overridden in with_settings if not (run.partial or overridden))
    partial = ["Records of partial copies are left out."] * any(run.partial for run, _ in with_settings)
    others = [_left_out(run, overridden) for run, overridden in with_settings if overridden]
    return groups, dict.fromkeys([*several, *partial, *others])


def _best(groups: Iterable[RunGroup]) -> RunGroup:
    """Return the preferred group; of equal ones the newest."""
    newest_first = sorted(groups, key=lambda group: group.runs[-1].created, reverse=True)
    return min(newest_first, key=_preference)


def _preference(group: RunGroup) -> tuple[bool, bool, int]:
    """Order groups: trained as the source's network first, under its protocol first."""
    protocols = (*headline_protocols(group.method), group.runs[0].protocol)
    trained = all(map(trained_as_published, group.runs))
    return (not trained, group.runs[0].resized, protocols.index(group.runs[0].protocol))


def _left_out(run: Record, overridden: str) -> str:
    name = " ".join((run.method, *run.variants))
    return f"Left out, since settings of today's recipe were overridden: {name} on {run.dataset} with {overridden}."


def _several_settings(group: RunGroup) -> str:
    where = f"{group.method} {group.labels()[0]} on {group.dataset} {group.split}"
    return f"{where} has records of several settings; those shown are of {group.runs[-1].created}."


def _wanted_key(configuration: Configuration, quantity: Quantity) -> RunKey:
    variants = [*default_variant(quantity.dataset), *configuration.variants]
    return (
        configuration.method,
        _without_defaults(variants, quantity.dataset),
        quantity.dataset,
        quantity.split,
    )


def _key(run: Record) -> RunKey:
    return (run.method, _without_defaults(run.variants, run.dataset), run.dataset, run.split)


def _without_defaults(variants: Iterable[str], dataset: str) -> tuple[str, ...]:
    """Drop variants that repeat the recipe's default, unless a data set's default variant has changed it."""
    variants = tuple(variants)
    if set(default_variant(dataset)) & set(variants):
        return variants
    return tuple(name for name in variants if name not in papers.default_variants())


@cache  # a table needs it hundreds of times, and each time the card would be read
def default_variant(dataset: str) -> tuple[str, ...]:
    """Return the variant that every run on a data set has unless the full network is chosen."""
    return tuple(filter(None, [datasets.load(dataset).default_variant if dataset in datasets.names() else ""]))


def is_available(configuration: Configuration) -> bool:
    """Whether the method's folder and the variants of its recipe exist."""
    if configuration.method not in methods.names():
        return False
    return set(configuration.variants) <= set(recipe.variant_names(methods.recipe_file(configuration.method)))
