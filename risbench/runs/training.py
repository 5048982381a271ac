"""The training of a run: build the model and its training samples, and run the trainer."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from risbench import methods, progress
from risbench.api import Method, Tokenizer
from risbench.data import pretrained
from risbench.data.index import Index
from risbench.data.loader import TrainingSamples
from risbench.data.split import Split
from risbench.engine import checkpoint, distributed, predict
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.engine.train import Trainer, Validate
from risbench.errors import InputError
from risbench.runs.opening import discarding_failure
from risbench.runs.run import Run
from risbench.scoring import metrics
from risbench.scoring.predictions import Header
from risbench.scoring.score import score_rows

Sources = Sequence[tuple[Index, Split]]  # data sets with their train splits
Rows = Sequence[tuple[int, int]]  # training expressions as (number of the source, row of its split)


def train(run: Run) -> Checkpoint:
    """Train, and return the best checkpoint.

    A run with --checkpoint trains nothing and returns that checkpoint. Without epochs the pretrained weights are it.
    """
    if run.job.checkpoint:
        return Checkpoint(Path(run.job.checkpoint), run.job.method)
    if run.resumed:
        check_checkpoints(run)
    with discarding_failure(run):
        (_fit if run.trains else _keep_pretrained)(run)
    return Checkpoint(run.folder / "checkpoints" / "best")


def _fit(run: Run) -> None:
    """Build the model and its training samples, and run the trainer."""
    rows = run.training_rows
    sources = [(index, index.split("train")) for index in run.training_indices]
    torch.manual_seed(run.job.seed)
    model, tokenizer = build_model(run, sources, rows)
    tokenizer = tokenizer.limited(run.settings.text.max_tokens)  # the tokenizer of --init may have another limit
    if run.fabric.is_global_zero:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        progress.print_line(f"{run.folder.name}: {len(rows)} training expressions, {parameters:,} parameters")
    if run.settings.predict.no_target_below:  # a method with its own answer is refused now, not after an epoch
        predictor = run.predictor(model, tokenizer, run.protocols[0])
        predict.measure_speed(predictor, run.index, run.index.split("val"), seconds=0)
    trainer = Trainer(
        model=model,
        tokenizer=tokenizer,
        recipe=run.settings,
        samples=training_samples(run, sources, rows, tokenizer),
        validate=_validation(run, tokenizer),
        folder=run.folder,
        facts=_facts(run, model),
        seed=run.job.seed,
        fabric=run.fabric,
    )
    trainer.fit(run.resumed)


def _keep_pretrained(run: Run) -> None:
    """Save the pretrained weights as they are; a run that is resumed may have them already."""
    folder = run.folder / "checkpoints" / "best"
    if run.fabric.is_global_zero and not folder.exists():
        torch.manual_seed(run.job.seed)
        model, tokenizer = build_model(run, [], [])
        parameters = sum(parameter.numel() for parameter in model.parameters())
        weights = pretrained.describe(model.pretrained)
        progress.print_line(f"{run.folder.name}: nothing is trained; {parameters:,} parameters, {weights}")
        checkpoint.save(folder, model, tokenizer, run.settings, _facts(run, model))
    distributed.barrier(run.fabric)


def check_checkpoints(run: Run) -> None:
    """Refuse to go on from a checkpoint that is damaged or another run's, before any epoch is trained."""
    folder = run.folder / "checkpoints"
    if not (folder / "last").exists():
        return
    last, best = (Checkpoint(folder / name, run.job.method) for name in ("last", "best"))
    settings = run.variants, run.job.seed, run.settings
    for opened in (last, best):
        is_of_run = (opened.facts.variants, opened.facts.seed, opened.recipe) == settings
        is_limited = run.job.limit in (0, opened.facts.limit)  # without --limit it may be that of --init
        if not (is_of_run and is_limited and opened.facts.is_of_one_run(last.facts)):
            raise InputError(
                f"{opened.folder} is another run's: its variants, seed, recipe or training data are not those of "
                f"{run.folder}. Restore it from a copy, or start a new run."
            )


def build_model(run: Run, sources: Sources, rows: Rows) -> tuple[Method, Tokenizer]:
    """Build the model and its tokenizer: as the run left them, from --init, or new with pretrained weights."""
    if last := _last_checkpoint(run):
        return _resumed_model(run, last)
    if run.initial_checkpoint:
        return _initialised_model(run, run.initial_checkpoint)
    return _new_model(run, sources, rows)


def _last_checkpoint(run: Run) -> Checkpoint | None:
    """Return the checkpoint from which a resumed run goes on, if there is one."""
    last = run.folder / "checkpoints" / "last"
    return Checkpoint(last, run.job.method) if run.resumed and last.exists() else None


def _resumed_model(run: Run, last: Checkpoint) -> tuple[Method, Tokenizer]:
    """Build the network only: the trainer loads the weights with the rest of the training state."""
    tokenizer = last.tokenizer()
    model = methods.load(run.job.method).build(run.settings, tokenizer)
    model.pretrained = last.facts.pretrained
    return model, tokenizer


def _initialised_model(run: Run, initial: Checkpoint) -> tuple[Method, Tokenizer]:
    tokenizer = initial.tokenizer()
    model = methods.load(run.job.method).build(run.settings, tokenizer)
    initial.load_weights(model)
    model.pretrained = pretrained.declare([initial.facts.as_pretrained()], run.settings.train.pretraining)
    return model, tokenizer


def _new_model(run: Run, sources: Sources, rows: Rows) -> tuple[Method, Tokenizer]:
    method = methods.load(run.job.method)
    texts = [split.texts(run.settings.text.field) for _, split in sources]
    tokenizer = method.tokenizer(run.settings, [texts[source][row] for source, row in rows])
    model = method.build(run.settings, tokenizer)
    loaded = pretrained.check(model.load_pretrained(run.settings, tokenizer), run.job.method)
    model.pretrained = pretrained.declare(loaded, run.settings.train.pretraining)
    return model, tokenizer


def training_samples(run: Run, sources: Sources, rows: Rows, tokenizer: Tokenizer) -> TrainingSamples:
    train = run.settings.train
    return TrainingSamples(
        sources=sources,
        rows=rows,
        field=run.settings.text.field,
        tokenizer=tokenizer,
        image=run.settings.image,
        per_image=train.per_image,
        min_scale=train.min_scale,
        flip=train.flip,
        sentences=train.sentences,
        ground_truth=train.ground_truth,
    )


def _facts(run: Run, model: Method) -> Facts:
    """Describe the weights before the first epoch."""
    last = _last_checkpoint(run)
    trained_on = [index.card.name for index in run.training_indices] if run.trains else []
    names = [*trained_on, *pretrained.training_data(model.pretrained)]
    initial_limit = run.initial_checkpoint.facts.limit if run.initial_checkpoint else 0
    return Facts(
        method=run.job.method,
        origin=methods.origin(run.job.method),
        code=methods.code_hash(run.job.method),
        variants=run.variants,
        training_data=last.facts.training_data if last else list(dict.fromkeys(names)),
        limit=(run.job.limit or initial_limit) if run.trains else 0,
        pretrained=model.pretrained,
        seed=run.job.seed,
        epoch=0,
        training_seconds=0.0,
    )


def _validation(run: Run, tokenizer: Tokenizer) -> Validate:
    """Return the function that validates while training: predictions, rows and metrics as in the evaluation."""
    protocol = run.protocols[0]
    split = run.index.split("val")
    path = run.folder / "predictions" / "validation.parquet"

    def validate(model: Method) -> dict[str, float | None]:
        predictor = run.predictor(model, tokenizer, protocol)
        header = Header(
            dataset=run.index.card.name,
            split="val",
            limit=run.index.limit,
            input=dict(predictor.input_half),
            scored_at=protocol.score.scored_at,
            method=type(model).__module__,
        )
        origin = secrets.token_hex(8)  # parts of an interrupted validation come from other weights
        predictions = predict.predict_split(predictor, run.index, split, header, path, "val", origin, math.inf)
        rows = score_rows(predictions, run.index, "val", protocol)
        return metrics.compute(metrics.Sums.from_rows(rows, protocol.score))

    return validate
