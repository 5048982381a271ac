"""Which folder of runs holds a training that was begun, so that none is done twice; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from risbench import datasets, methods, recipe
from risbench.errors import InputError
from risbench.recipe import Recipe
from risbench.runs.job import Job, trained_with

_PLACES = ("data_root", "images", "init")


def folder(job: Job, variants: Sequence[str], settings: Recipe, runs: Path) -> Path | None:
    """The newest folder of a run of the same training, whatever it was evaluated on."""
    wanted = training(job, variants)
    for file in sorted(runs.glob("*/run.toml"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            other = Job.read(file.parent)
            if other.checkpoint:  # an evaluation: nothing was trained in it
                continue
            same = training(other, trained_with(other)[1]) == wanted
            stored = recipe.validate(recipe.read(file.parent / "recipe.toml"), str(file.parent))
        except InputError:  # of another version, killed while it was made, or of a method or data set that is gone
            continue
        if same and not recipe.differences(stored.model_dump(), settings):
            return file.parent
    return None


def training(job: Job, variants: Sequence[str]) -> dict[str, Any]:
    """What of a job decides what is trained, beside its settings: not its splits, nor protocols after the first.

    The first protocol validates.
    """
    places = {name: str(Path(value).resolve()) for name in _PLACES if (value := getattr(job, name))}
    kept = job.model_dump(include={"seed", "partial"})
    names = {"method": methods.folder(job.method).name, "dataset": datasets.load(job.dataset).name}
    return {**kept, **places, **names, "variants": list(variants), "protocol": job.protocols[0]}


def is_trained(job: Job, runs: Path) -> bool:
    """Whether a run of the same training has finished its epochs, so that only evaluation can be missing."""
    settings, variants = trained_with(job)
    found = folder(job, variants, settings, runs)
    try:
        last = json.loads((found / "checkpoints" / "last" / "checkpoint.json").read_bytes()) if found else {}
    except (OSError, ValueError):  # none yet, or killed while it was written
        return False
    epoch = last.get("epoch") if isinstance(last, dict) else None
    return isinstance(epoch, int) and epoch >= settings.train.epochs
