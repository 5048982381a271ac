"""Replacing a baseline, and the table of what changes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from risbench.errors import InputError
from risbench.gate import baseline as baselines
from risbench.gate.baseline import Baseline, DataLocation, Number, Training
from risbench.gate.check import LEVEL
from risbench.gate.create import create_baseline
from risbench.render import Cell, Column, Table
from risbench.scoring import statistics


def update_baseline(
    path: Path, sources: Sequence[Path], location: DataLocation, split: str = "", protocol_name: str = ""
) -> Table:
    """Write a baseline again, from these runs or predictions, and show what changes.

    Without sources, stored predictions are scored again, and trainings are repeated seed by seed.
    """
    if path.suffix != ".json":
        raise InputError(f"--baseline {path} does not name a baseline: give a file that ends in .json.")
    if sources:
        return _change_table(path, _read_if_valid(path), create_baseline(path, sources, location, split, protocol_name))
    old = baselines.read(path)
    for option, value, stored in (("split", split, old.split), ("protocol", protocol_name, old.protocol)):
        if value and value != stored:
            raise InputError(f"{path} is of {option} {stored!r}: leave --{option} out, or give runs or predictions.")
    return _change_table(
        path, old, _create_again(path, old, location._replace(dataset=location.dataset or old.dataset))
    )


def _read_if_valid(path: Path) -> Baseline | None:
    """Read the baseline that is to be replaced; None if it is missing or damaged."""
    try:
        return baselines.read(path)
    except InputError:
        return None


def _create_again(path: Path, old: Baseline, location: DataLocation) -> Baseline:
    """Score the stored predictions again, or train with every seed again."""
    if not old.training:
        file = baselines.predictions_path(old, baselines.folder_of(path))
        return create_baseline(path, [file], location, old.split, old.protocol)
    from risbench.gate import rerun

    with tempfile.TemporaryDirectory() as runs:
        seeds = [result.seed for result in old.training.seeds]
        folders = [rerun.train_and_evaluate(old, old.training, seed, location, Path(runs)) for seed in seeds]
        return create_baseline(path, folders, location, old.split)


def _change_table(path: Path, old: Baseline | None, new: Baseline) -> Table:
    was, now = _numbers(old) if old else {}, _numbers(new)
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    rows = tuple((Cell(name), Cell(was.get(name)), Cell(now.get(name))) for name in names)
    columns = (Column("number"), Column("was", numeric=True), Column("is", numeric=True))
    notes = () if new.training is None else (_threshold_note(new, new.training),)
    title = f"{path}: {len(names)} of {len(now)} numbers changed" if old else f"{path}: {len(now)} numbers"
    return Table("update", title, columns, rows, notes)


def _numbers(baseline: Baseline) -> Mapping[str, Number]:
    """Return all numbers of a baseline by name and protocol or seed."""
    scores = {f"{name}, {key}": value for key, score in baseline.scores.items() for name, value in score.items()}
    seeds = baseline.training.seeds if baseline.training else []
    guarded = baselines.guarded_metrics(baseline.protocol)
    return scores | {f"{name}, seed {result.seed}": result.metrics[name] for result in seeds for name in guarded}


def _threshold_note(baseline: Baseline, training: Training) -> str:
    """Say below which values a training fails."""
    lows = {
        name: statistics.prediction_interval(baselines.seed_values(training, name), LEVEL)[0]
        for name in baselines.guarded_metrics(baseline.protocol)
    }
    thresholds = ", ".join(f"{name} {low:.2f}" for name, low in lows.items())
    return (
        f"By these seeds a training fails below {thresholds}. A model that ignores the words must lie below that, too."
    )
