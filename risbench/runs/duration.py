"""How long a run may take, from the records of similar runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

from risbench import datasets, methods, recipe
from risbench.runs.job import Job
from risbench.scoring.record import Record
from risbench.tables.measured import overridden_settings

_HOUR = 3600


@dataclass(frozen=True)
class Estimate:
    """Seconds of training and evaluation, and the records they are taken from."""

    seconds: float
    basis: str


def estimate_duration(job: Job, records: Iterable[Record], trained: bool) -> Estimate | None:
    """Estimate a run from the newest similar ones: of the same network, or else of its method at its image size.

    Only the evaluation counts if the run is trained already. Returns None if no similar run is recorded, and for a run
    that is limited to some images.
    """
    similar, is_same = ([], False) if job.limit else _similar_runs(job, records)
    if not similar:
        return None
    newest = max(similar, key=lambda run: datetime.fromisoformat(run.created))
    alike = [run for run in similar if (run.device, run.dataset) == (newest.device, newest.dataset)]
    training = 0.0 if trained else fmean({run.checkpoint: run.cost["training_seconds"] or 0 for run in alike}.values())
    speed = fmean(run.cost["expressions_per_second"] or 0 for run in alike)
    new_size, recorded_size = (_num_expressions(name, "train") for name in (job.dataset, newest.dataset))
    num_evaluated = sum(_num_expressions(job.dataset, split) for split in job.splits)
    elsewhere = f" on {newest.dataset}" if newest.dataset != job.dataset else ""
    basis = f"{'as recorded' if is_same else 'as its other variants took'}{elsewhere}: {newest.device}"
    return Estimate(
        training * (new_size / recorded_size if new_size and recorded_size else 1) + num_evaluated / speed, basis
    )


def format_duration(seconds: float) -> str:
    """Format seconds as hours or minutes."""
    return f"{seconds / _HOUR:.1f} h" if seconds >= _HOUR else f"{max(1, round(seconds / 60))} min"


def _similar_runs(job: Job, records: Iterable[Record]) -> tuple[list[Record], bool]:
    """Return similar runs, and whether they have the same network."""
    file, default = methods.recipe_file(job.method), datasets.load(job.dataset).default_variant
    size_variants = {default} & set(recipe.variant_names(file))
    settings, variants = recipe.load(file, job.variants, [], default)
    runs = [run for run in records if run.method == job.method and size_variants <= set(run.variants)]
    timed = [run for run in runs if _is_timed(run)]
    same = [run for run in timed if run.variants == variants]
    if same:
        return same, True
    sizes = (None, settings.image.size)
    return [run for run in timed if run.dataset == job.dataset and _image_size(run) in sizes], False


def _image_size(run: Record) -> int | None:
    """Return the side of the network input in pixels."""
    size: int | None = run.recipe.get("image", {}).get("size")
    return size


def _is_timed(run: Record) -> bool:
    timed = (run.cost.get("training_seconds") or not run.is_trained) and run.cost.get("expressions_per_second")
    is_whole = not (run.control or run.limit or run.training_limit)
    return bool(timed) and is_whole and not overridden_settings(run)


def _num_expressions(dataset: str, split: str) -> int:
    """Return the count of the card, or 0 if it is not known."""
    splits = datasets.load(dataset).splits if dataset in datasets.names() else {}
    count = splits[split].expressions if split in splits else None
    return count.n if count else 0
