"""The sides of a comparison: the runs that each argument names, and whether they answer the same expressions.

An argument names one run (its folder, its file of rows, or a predictions file, which is scored) or, separated by
commas, several runs of one method that differ by their seeds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from risbench import datasets
from risbench.analysis.run_rows import RunOptions, RunRows, common_split, open_run_rows
from risbench.data import source
from risbench.errors import InputError
from risbench.scoring import protocol as protocols
from risbench.scoring.predictions import refuse_expressions
from risbench.tables.measured import RunGroup, group_runs


@dataclass(frozen=True)
class Side:
    """One run, or several that differ by their seeds only."""

    name: str  # A is the baseline
    runs: tuple[RunRows, ...]

    def description(self) -> str:
        """Return name, method, seeds and paths, for a note."""
        seeds = [str(run.record.seed) for run in self.runs if run.record and run.record.seed is not None]
        known = [self.runs[0].method, f"seed {', '.join(seeds)}" if seeds else ""]
        paths = ", ".join(str(run.path) for run in self.runs)
        return f"{self.name}: {'; '.join([*filter(None, known), paths])}."


def short_names(sides: Sequence[Side]) -> dict[str, str]:
    """Return what people call each side, by its letter: method and variants, or the runs' folders or files.

    Empty where neither tells the sides apart.
    """
    for names in ([side.runs[0].method for side in sides], [_place(side) for side in sides]):
        if all(names) and len(set(names)) == len(names):
            return {side.name: name for side, name in zip(sides, names, strict=True)}
    return {side.name: "" for side in sides}


def _place(side: Side) -> str:
    path = side.runs[0].path
    first = path.parent.parent.name if path.parent.name == "rows" else path.name
    return f"{first} and {len(side.runs) - 1} more" if len(side.runs) > 1 else first


def open_sides(arguments: Sequence[str], options: RunOptions) -> list[Side]:
    """Open the sides of a comparison.

    Raises InputError when an argument names no run, or when the sides do not answer the same expressions.
    """
    if options.protocol:
        protocols.load(options.protocol)  # refuses an unknown name
    groups = [_paths(argument) for argument in arguments]
    if len(groups) > len(ascii_uppercase):
        raise InputError(f"{len(groups)} sides are more than the alphabet has letters for: compare fewer at once.")
    options = _with_defaults(options, [path for paths in groups for path in paths if path.is_dir()])
    sides = [
        Side(name, tuple(open_run_rows(path, options) for path in paths))
        for name, paths in zip(ascii_uppercase, groups, strict=False)
    ]
    runs = [run for side in sides for run in side.runs]
    for run in runs[1:]:
        _refuse_different_expressions(runs[0], run)
    for side in sides:
        _refuse_different_methods(side)
    return sides


def _paths(argument: str) -> list[Path]:
    """Return the paths of one side: the argument if it exists, or else its parts between commas."""
    if os.path.exists(argument):
        return [Path(argument)]
    paths = [Path(part.strip()) for part in argument.split(",") if part.strip()]
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: give the folder of a run, its rows, or a predictions file.")
        if paths.count(path) > 1:
            raise InputError(f"{path} stands twice in one side: give each run once.")
    if not paths:
        raise InputError(f"{argument!r} names no run: give a folder such as runs/ID, or a file.")
    return paths


def _with_defaults(options: RunOptions, folders: Sequence[Path]) -> RunOptions:
    """Fill in protocol and split if folders of runs are compared."""
    if not folders:
        return options
    protocol = options.protocol or protocols.names()[0]
    return replace(options, protocol=protocol, split=options.split or common_split(folders, protocol))


def expression_texts(run: RunRows, options: RunOptions) -> dict[int, str]:
    """Return the text of every expression by its sent_id; empty if the options name no data set."""
    if not options.dataset and not options.data_root:
        return {}
    name = options.dataset or run.dataset
    if not name:
        raise InputError(f"The data set of {run.path} is not known: give --dataset beside --data-root.")
    card = datasets.load(name)
    if run.dataset and card.name != run.dataset:
        raise InputError(f"{run.path} is of {run.dataset}, not of {card.name}: give --dataset {run.dataset}.")
    if not (run.split or options.split):
        raise InputError(f"The split of {run.path} is not known: give --split.")
    split = source.open_index(name, options.data_root, partial=options.partial).split(run.split or options.split)
    unknown = np.setdiff1d(run.rows["sent_id"], split.sent_id)
    refuse_expressions(f"Not in split {split.name!r}", unknown, "Give the data set and the split that were scored.")
    return dict(zip(split.sent_id.tolist(), split.raw, strict=True))


def _refuse_different_expressions(first: RunRows, other: RunRows) -> None:
    """Refuse a run of another data set, split or protocol, or with other expressions or ground truth."""
    for what in ("dataset", "split", "protocol"):
        first_value, other_value = getattr(first, what), getattr(other, what)
        if first_value and other_value and first_value != other_value:
            raise InputError(
                f"{first.path} is of {what} {first_value!r}, {other.path} of {other_value!r}: compare like with like."
            )
    both = f"{first.path} and {other.path}"
    in_one = np.setxor1d(first.rows["sent_id"], other.rows["sent_id"])
    refuse_expressions(f"In one of {both} only", in_one, "Compare answers to the same expressions.")
    for column, name in (("image_id", "image"), ("true_area", "ground truth")):
        differ = first.rows[column].to_numpy() != other.rows[column].to_numpy()
        differing = first.rows["sent_id"].to_numpy()[differ]
        refuse_expressions(f"Of another {name} in {both}", differing, "Score both with the same data set and protocol.")


def _refuse_different_methods(side: Side) -> None:
    """Refuse runs of one side that are not of one method, or repeat a seed, as far as their records tell."""
    methods = sorted({run.method for run in side.runs if run.method})
    checkpoints = [run.checkpoint for run in side.runs if run.checkpoint]
    cure = "write runs that are to be compared with a space between them."
    if len(methods) > 1 or len(set(checkpoints)) < len(checkpoints):
        what = f"of {' and '.join(methods)}" if len(methods) > 1 else "of one checkpoint"
        raise InputError(
            f"The runs of {side.description()[:-1]} are {what}, not one method's with different seeds: {cure}"
        )
    records = [run.record for run in side.runs if run.record]
    groups, _ = group_runs(records)
    if sum(len(group.runs) for group in groups[:1]) < len(records):
        names = " and ".join(map(_group_name, groups))
        raise InputError(
            f"The runs of {side.description()[:-1]} are not one method's with different seeds ({names}): {cure}"
        )


def _group_name(group: RunGroup) -> str:
    return " ".join(filter(None, [group.method, *group.labels(), group.remark()]))
