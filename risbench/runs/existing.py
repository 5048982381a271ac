"""Find the folder of an earlier run of the same training, so that nothing is trained twice; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from risbench import datasets, methods, recipe
from risbench.errors import InputError
from risbench.recipe import Recipe
from risbench.runs.job import Job, training_settings

_PATHS = ("data_root", "images", "init")


def find_folder(job: Job, variants: Sequence[str], settings: Recipe, runs: Path) -> Path | None:
    """Return the newest folder of a run of the same training, whichever splits it was evaluated on."""
    key = training_key(job, variants)
    for file in sorted(runs.glob("*/run.toml"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            other = Job.read(file.parent)
            if other.checkpoint:  # an evaluation, which trained nothing
                continue
            has_same_key = training_key(other, training_settings(other)[1]) == key
            stored = recipe.validate(recipe.read(file.parent / "recipe.toml"), str(file.parent))
        except InputError:  # of another version, killed at its start, or of a method or data set that was removed
            continue
        if has_same_key and not recipe.differences(stored.model_dump(), settings):
            return file.parent
    return None


def training_key(job: Job, variants: Sequence[str]) -> dict[str, Any]:
    """Return what identifies a training beside its settings.

    Splits and later protocols do not belong to it. The first protocol does: it validates the training.
    """
    paths = {name: str(Path(value).resolve()) for name in _PATHS if (value := getattr(job, name))}
    options = job.model_dump(include={"seed", "partial"})
    names = {"method": methods.folder(job.method).name, "dataset": datasets.load(job.dataset).name}
    return {**options, **paths, **names, "variants": list(variants), "protocol": job.protocols[0]}


def is_trained(job: Job, runs: Path) -> bool:
    """Whether a run of the same training has finished all its epochs."""
    settings, variants = training_settings(job)
    folder = find_folder(job, variants, settings, runs)
    try:
        last = json.loads((folder / "checkpoints" / "last" / "checkpoint.json").read_bytes()) if folder else {}
    except (OSError, ValueError):  # no checkpoint yet, or killed while it was written
        return False
    epoch = last.get("epoch") if isinstance(last, dict) else None
    return isinstance(epoch, int) and epoch >= settings.train.epochs
