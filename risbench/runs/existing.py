"""Find the folder of an earlier run of the same training, so that nothing is trained twice; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from risbench import datasets, files, recipe
from risbench.errors import InputError
from risbench.recipe import Recipe
from risbench.runs.inputs import Inputs, data_sets, with_absolute_places
from risbench.runs.job import RECIPE_FILE, RUN_FILE, Job, training_settings

_PATHS = ("data_root", "images", "init")


def find_folder(
    job: Job, variants: Sequence[str], settings: Recipe, runs: Path, inputs: Inputs | None = None
) -> Path | None:
    """Return the newest folder of a run of the same training, whichever splits it was evaluated on.

    Data are the same if the hashes in `inputs` are; where hashes are not known, if their places are.
    """
    key, places = training_key(job, variants), _places(job, settings)
    for file in sorted(runs.glob(f"[!.]*/{RUN_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            other = _read_job(file, file.stat().st_mtime_ns)
            if other.checkpoint or other.seed != job.seed:  # an evaluation, which trained nothing, or another training
                continue
            begun = Inputs.read(file.parent)
            if _stored_key(other, begun) != key:
                continue
            stored = recipe.validate(recipe.read(file.parent / RECIPE_FILE), str(file.parent))
            is_same_data = begun.is_same_data(inputs) if begun and inputs else _places(other, stored) == places
        except (InputError, FileNotFoundError):  # of another version, damaged, or its method or data set is missing
            continue
        if is_same_data and not recipe.differences(stored.model_dump(), settings):
            return file.parent
    return None


@cache
def _read_job(file: Path, _modified: int) -> Job:
    """Read a run.toml once, unless it is modified: a plan of many runs meets each of them for each of its lines."""
    return Job.read(file.parent)


def _stored_key(job: Job, inputs: Inputs | None) -> dict[str, Any]:
    """Return the training key of a run, whose card may have moved."""
    if inputs:
        return training_key(job, inputs.variants, inputs.dataset)
    return training_key(job, training_settings(job)[1])


def training_key(job: Job, variants: Sequence[str], dataset: str = "") -> dict[str, Any]:
    """Return what identifies a training beside its settings and its data; `dataset` is the data set's name if known.

    Splits and later protocols do not belong to it. The first protocol does: it validates the training.
    """
    options = job.model_dump(include={"seed", "partial", "limit"})
    names = {"method": job.method, "dataset": dataset or datasets.load(job.dataset).name}
    return {**options, **names, "variants": list(variants), "protocol": job.protocols[0]}


def _places(job: Job, settings: Recipe) -> list[str]:
    """Return the places of the data and initial weights of a job."""
    absolute = with_absolute_places(job, data_sets(job, settings))
    return [getattr(absolute, name) for name in _PATHS]


def is_trained(job: Job, runs: Path) -> bool:
    """Whether a run of the same training has finished all its epochs, or has kept the weights that it evaluates."""
    settings, variants = training_settings(job)
    folder = find_folder(job, variants, settings, runs)
    name = "last" if settings.trains else "best"
    try:
        file = folder / "checkpoints" / name / "checkpoint.json" if folder else None
        last = files.parse_json(files.read_bytes(file)) if file else {}
    except (OSError, ValueError):  # no checkpoint yet, or a damaged one
        return False
    epoch = last.get("epoch") if isinstance(last, dict) else None
    return isinstance(epoch, int) and epoch >= settings.train.epochs
