"""Checks before a run starts: what would fail after hours of work fails at once."""

from __future__ import annotations

from collections.abc import Iterable

from risbench.data import loader, micro_batches
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.runs.inputs import check_places
from risbench.runs.job import training_settings
from risbench.runs.run import Run
from risbench.scoring import protocol
from risbench.scoring.score import check_no_target_rule


def check(run: Run) -> None:
    """Raise InputError for a job that cannot be trained or evaluated."""
    trains = run.trains
    check_places(run.stored_job)
    if not (trains or run.job.checkpoint):
        _check_zero_shot(run)
    if trains:
        train = run.settings.train
        micro_batches.check(train.batch_size, train.micro_batch, train.per_image)
    if run.initial_checkpoint:  # opening it refuses one of another method
        run.initial_checkpoint.method()
    if not run.job.protocols:
        raise InputError(f"Under which protocol? Give --protocol; known: {', '.join(protocol.names())}.")
    protocols = run.protocols
    check_no_target_rule(run.index, run.splits(), protocols)
    if trains:
        _check_training_data(run)
        _check_training_splits(run)
        check_no_target_rule(run.index, ["val"], protocols[:1])  # training validates on val
    _check_images(run)
    if trains:
        _check_epoch(run)


def _check_zero_shot(run: Run) -> None:
    """Refuse to evaluate weights as they are where the recipe trains: pretrained encoders are no whole network."""
    trained = training_settings(run.job.model_copy(update={"overrides": []}))[0]
    if trained.trains:
        raise InputError(
            f"train.epochs=0 evaluates pretrained weights as they are, and those of {run.job.method} are parts of a "
            f"network that its recipe trains for {trained.train.epochs} epochs. Give train.epochs of 1 or more."
        )
    if run.job.init:
        raise InputError(
            "--init starts training, and train.epochs=0 trains nothing: give the folder as --checkpoint, or train."
        )


def _check_training_data(run: Run) -> None:
    """Refuse to train twice on the same data under two names, and on two data sets of one name."""
    names = run.settings.train.datasets or [run.job.dataset]
    for number, index in enumerate(run.training_indices):
        for other, name in zip(run.training_indices[:number], names, strict=False):
            if index.hash == other.hash or index.card.name == other.card.name:
                same = "the same annotations" if index.hash == other.hash else f"both named {index.card.name}"
                raise InputError(
                    f"train.datasets holds {name} and {names[number]}, which are {same}: leave one of them out."
                )


def _check_images(run: Run) -> None:
    """Require the image files of every split that the run reads."""
    for index, splits in _splits_by_index(run):
        folder = index.images_folder
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}: give the folder of the images with --images.")
        if missing := index.missing_images(splits):
            others = f" ({len(missing):,} images of {', '.join(splits)} are missing)" if len(missing) > 1 else ""
            raise InputError(
                f"There is no image {missing[0]}{others}. Copy it there, or give the folder of the images with "
                "--images."
            )


def _splits_by_index(run: Run) -> Iterable[tuple[Index, list[str]]]:
    splits: dict[str, tuple[Index, list[str]]] = {}
    for index, split in [*run.training_splits(), *((run.index, split) for split in run.splits())]:
        names = splits.setdefault(index.card.name, (index, []))[1]
        names += [split] if split not in names else []
    return splits.values()


def _check_epoch(run: Run) -> None:
    """Require a batch of training expressions."""
    train, rows = run.settings.train, run.training_rows
    splits = [index.split("train") for index in run.training_indices]
    refs = {(source, int(splits[source].ref_id[row])) for source, row in rows}
    loader.check_epoch(len(rows) if train.sentences == "each" else len(refs), train.batch_size)


def _check_training_splits(run: Run) -> None:
    """Require `train` of every training data set and `val` of the evaluated one."""
    for index, name in [*((index, "train") for index in run.training_indices), (run.index, "val")]:
        if name not in index.split_names():
            raise InputError(
                f"This copy of {index.card.name} holds no split {name}, which training needs. Evaluate a trained "
                f"checkpoint with risbench run --checkpoint; the splits are {', '.join(index.split_names())}."
            )
