"""The evaluation of a run: predict, score and record every split under every protocol."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from risbench import files, methods
from risbench.data import leaks
from risbench.engine import distributed, predict
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.predict import Predictor
from risbench.errors import InputError
from risbench.runs import locks
from risbench.runs.cost import measure_cost
from risbench.runs.job import Job
from risbench.runs.opening import discarding_failure, prepare_run
from risbench.runs.run import Run
from risbench.scoring import record, references
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.protocol import Protocol
from risbench.scoring.record import Record


def evaluate(run: Run, checkpoint: Checkpoint) -> list[Record]:
    """Evaluate a checkpoint on every split under every protocol of the run."""
    model, tokenizer = checkpoint.model()
    predictors = [run.predictor(model, tokenizer, protocol) for protocol in run.protocols]
    with discarding_failure(run):
        return [result for split in run.splits() for result in _evaluate_split(run, checkpoint, predictors, split)]


def predict_to_file(job: Job, output: Path) -> None:
    """Predict one split with the checkpoint of a job; write only the predictions file `output`."""
    if not job.checkpoint:
        raise InputError("Which checkpoint? Give --checkpoint FOLDER, such as runs/ID/checkpoints/best.")
    run = prepare_run(job, output.parent)
    if len(job.splits) != 1 or len(job.protocols) != 1:
        raise InputError("A predictions file holds one split under one protocol: give one --split and one --protocol.")
    checkpoint = Checkpoint(Path(job.checkpoint), job.method)
    predictor = run.predictor(*checkpoint.model(), run.protocols[0])
    _predict(run, checkpoint, predictor, job.splits[0], output)


def _evaluate_split(run: Run, checkpoint: Checkpoint, predictors: Sequence[Predictor], split: str) -> list[Record]:
    """Evaluate one split; protocols with the same input half and scored size share predictions."""
    records = []
    shared: dict[Any, tuple[Path, Predictions, dict[str, Any]]] = {}
    for protocol, predictor in zip(run.protocols, predictors, strict=True):
        path = run.folder / "predictions" / f"{split}-{protocol.name}.parquet"
        key = predictor.input_half, protocol.score.scored_at
        if key not in shared:
            predictions = _predict(run, checkpoint, predictor, split, path)
            seconds = checkpoint.facts.training_seconds
            shared[key] = path, predictions, measure_cost(predictor, run.index, run.index.split(split), seconds)
        source, predictions, cost = shared[key]
        if source != path and run.fabric.is_global_zero:
            with files.replacing(path) as new:
                shutil.copyfile(source, new)
        records.append(_record(run, checkpoint, split, protocol, predictions, cost))
    return records


def _predict(run: Run, checkpoint: Checkpoint, predictor: Predictor, split: str, path: Path) -> Predictions:
    """Predict a split to a file whose header names checkpoint, code, recipe and data."""
    header = Header(
        dataset=run.index.card.name,
        index=run.index.hash,
        split=split,
        limit=run.index.limit,
        training_limit=checkpoint.facts.limit,
        input=dict(predictor.input_half),
        scored_at=predictor.score_half.scored_at,
        method=checkpoint.facts.method,
        variants=checkpoint.facts.variants,
        checkpoint=checkpoint.facts.sha256,
        code=methods.code_hash(checkpoint.facts.method),
        recipe=run.settings.model_dump(),
        versions=record.environment()["versions"],
    )
    origin = json.dumps(checkpoint.facts.files, sort_keys=True)  # the vocabulary is no part of the weights
    with _locked(run, path):
        return predict.predict_split(predictor, run.index, run.index.split(split), header, path, path.stem, origin)


@contextmanager
def _locked(run: Run, output: Path) -> Iterator[None]:
    """Lock a predictions file while it is made; only the main process does. Raises BusyError in every process."""
    with ExitStack() as stack:
        free = True
        if run.fabric.is_global_zero:
            free = stack.enter_context(locks.locked(output.with_name(f".{output.name}.lock")))
        if not distributed.from_main(run.fabric, free):
            raise locks.BusyError(f"Another process is at work on {output}: wait for its end, or stop it.")
        yield


def _record(
    run: Run, checkpoint: Checkpoint, split: str, protocol: Protocol, predictions: Predictions, cost: dict[str, Any]
) -> Record:
    """Score and record predictions, and as a control the same predictions permuted among the expressions."""
    facts = {
        "seed": checkpoint.facts.seed,
        "training_data": checkpoint.facts.training_data,
        "leaked": leaks.leaked_percent(checkpoint.facts.training_data, run.index, split, run.job.data_root),
        "pretrained": checkpoint.facts.pretrained,
        "training_code": checkpoint.facts.code,
        "device": distributed.device_name(run.fabric),
        "cost": cost,
    }
    folder = run.folder if run.fabric.is_global_zero else None
    permuted = references.permute_within_images(predictions, protocol.input.select_expressions(run.index.split(split)))
    record.score_and_write(folder, permuted, run.index, split, protocol, control=references.PERMUTED_CONTROL, **facts)
    return record.score_and_write(folder, predictions, run.index, split, protocol, **facts)
