"""Checks before a run starts: what would fail after hours of work fails at once."""

from __future__ import annotations

from risbench import methods
from risbench.data import loader
from risbench.errors import InputError
from risbench.runs.run import Run
from risbench.scoring import protocol
from risbench.scoring.score import check_no_target_rule


def check(run: Run) -> None:
    """Raise InputError for a job that cannot be trained or evaluated."""
    trains = not run.job.checkpoint
    if trains:
        train = run.settings.train
        loader.check_batch_size(train.batch_size, train.accumulate, run.fabric.world_size, train.per_image)
    _check_initial_checkpoint(run)
    if not run.job.protocols:
        raise InputError(f"Under which protocol? Give --protocol; known: {', '.join(protocol.names())}.")
    protocols = run.protocols
    check_no_target_rule(run.index, run.splits(), protocols)
    _check_images(run, trains)
    if trains:
        _check_training_splits(run)
        check_no_target_rule(run.index, ["val"], protocols[:1])  # training validates on val


def _check_initial_checkpoint(run: Run) -> None:
    method = methods.folder(run.job.method).name if run.job.method else ""
    initial = run.initial_checkpoint
    if initial and initial.facts.method != method:
        raise InputError(f"--init {run.job.init} is a checkpoint of {initial.facts.method}, not of {method}.")


def _check_images(run: Run, trains: bool) -> None:
    for index in [run.index, *(run.training_indices if trains else [])]:
        if not index.images_folder.is_dir():
            raise InputError(f"There is no folder {index.images_folder}: give the folder of the images with --images.")


def _check_training_splits(run: Run) -> None:
    """Require `train` of every training data set and `val` of the evaluated one."""
    for index, name in [*((index, "train") for index in run.training_indices), (run.index, "val")]:
        if name not in index.split_names():
            raise InputError(
                f"This copy of {index.card.name} holds no split {name}, which training needs. Evaluate a trained "
                f"checkpoint with --checkpoint; the splits are {', '.join(index.split_names())}."
            )
