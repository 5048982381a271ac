"""What `risbench run` does: train (or open a checkpoint), predict, score, record.

A run is a folder: run.toml (the job), recipe.toml (resolved), log.jsonl, checkpoints/, and for each split and protocol
predictions/, rows/ and records/.
"""

from __future__ import annotations

import itertools
import resource
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from torch.utils.flop_counter import FlopCounterMode

from risbench import methods, progress, recipe
from risbench.api import Batch, Method, Tokenizer
from risbench.data import leaks, loader, source
from risbench.data.index import Index
from risbench.data.loader import Samples
from risbench.engine import checkpoint, distributed, predict
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.engine.predict import Predictor
from risbench.engine.train import Trainer
from risbench.errors import InputError
from risbench.recipe import Recipe
from risbench.runs.job import Job, settings_of
from risbench.scoring import metrics, protocol, record, references
from risbench.scoring import score as scoring
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.protocol import Protocol
from risbench.scoring.record import Record


@dataclass
class Run:
    """One job in its folder."""

    job: Job
    folder: Path
    fabric: Fabric
    settings: Recipe
    variants: list[str]
    lock: FileLock | None = None  # holds the folder for this process, until it ends or forgets the run

    @cached_property
    def index(self) -> Index:
        """The evaluated data set."""
        return self._open(self.job.dataset)

    @cached_property
    def training(self) -> list[Index]:
        """The data sets that are trained on."""
        names = self.settings.train.datasets or [self.job.dataset]
        return [self.index if name == self.job.dataset else self._open(name) for name in names]

    @cached_property
    def initial(self) -> Checkpoint | None:
        """The checkpoint of --init."""
        return Checkpoint(Path(self.job.init)) if self.job.init else None

    def _open(self, name: str) -> Index:
        if self.fabric.global_rank == 0:  # generates and builds what is missing
            source.open_index(name, self.job.data_root, self.job.images, self.job.partial)
        distributed.barrier(self.fabric)
        return source.open_index(name, self.job.data_root, self.job.images, self.job.partial)

    def splits(self) -> list[str]:
        """The splits that are asked for, or all evaluation splits."""
        card = self.index.card
        asked = self.job.splits or [name for name in self.index.split_names() if card.splits[name].evaluation]
        for name in asked:
            self.index.split(name)
        return asked

    def check(self) -> None:
        """Refuse before any work what would fail after it."""
        train = self.settings.train
        if not self.job.checkpoint:
            loader.check_batch_size(train.batch_size, train.accumulate, self.fabric.world_size, train.per_image)
        method = methods.folder(self.job.method).name if self.job.method else ""
        if self.initial and self.initial.facts.method != method:
            raise InputError(f"--init {self.job.init} is a checkpoint of {self.initial.facts.method}, not of {method}.")
        if not self.job.protocols:
            raise InputError(f"Under which protocol? Give --protocol; known: {', '.join(protocol.names())}.")
        asked = [protocol.load(name) for name in self.job.protocols]
        scoring.check_targets(self.index, self.splits(), asked)
        needed = [] if self.job.checkpoint else [(index, "train") for index in self.training] + [(self.index, "val")]
        for index in dict.fromkeys([self.index, *(index for index, _ in needed)]):
            if not index.images_folder.is_dir():
                raise InputError(f"There is no folder {index.images_folder}: give that of the images with --images.")
        for index, name in needed:
            if name not in index.split_names():
                raise InputError(
                    f"This copy of {index.card.name} holds no split {name}, which training needs. Evaluate a trained "
                    f"checkpoint with --checkpoint; the splits are {', '.join(index.split_names())}."
                )
        if needed:  # val is scored while training
            scoring.check_targets(self.index, ["val"], asked[:1])

    def train(self, resume: bool) -> Checkpoint:
        """Train, and return the best checkpoint; that of --checkpoint is trained already."""
        job = self.job
        if job.checkpoint:
            return Checkpoint(Path(job.checkpoint))
        places = loader.training_places(self.training, self.index)
        sources = [(index, index.split("train")) for index in self.training]
        torch.manual_seed(job.seed)
        try:
            model, tokenizer = self._start(sources, places, resume)
        except InputError:  # a setting that only building the network can refuse: leave no run behind
            if not resume and self.fabric.global_rank == 0:
                shutil.rmtree(self.folder)
            raise
        tokenizer = tokenizer.limited(self.settings.text.max_tokens)  # that of --init may cut elsewhere
        train = self.settings.train
        samples = Samples(
            sources,
            places,
            self.settings.text.field,
            tokenizer,
            self.settings.image,
            train.per_image,
            train.min_scale,
            train.sentences,
            train.ground_truth,
        )
        untaught = all("from scratch" in part or "random" in part for part in model.weights.split("; "))
        seen = [index.card.name for index in self.training] + ([] if untaught else self.settings.train.pretraining)
        facts = Facts(
            method=methods.folder(job.method).name,
            variants=self.variants,
            training_data=list(dict.fromkeys([*seen, *(self.initial.facts.training_data if self.initial else [])])),
            weights=model.weights,
            seed=job.seed,
            epoch=0,
            training_seconds=0.0,
        )
        if self.fabric.global_rank == 0:
            size = sum(parameter.numel() for parameter in model.parameters())
            progress.say(f"{self.folder.name}: {len(places)} training expressions, {size:,} parameters")
        trainer = Trainer(
            model,
            tokenizer,
            self.settings,
            samples,
            self._validate(tokenizer),
            self.folder,
            facts,
            job.seed,
            self.fabric,
        )
        trainer.fit(resume)
        return Checkpoint(self.folder / "checkpoints" / "best")

    def _start(self, sources: list[Any], places: list[tuple[int, int]], resume: bool) -> tuple[Method, Tokenizer]:
        """A new model with pretrained weights, or that of --init or of a run to be resumed, with its words."""
        cls = methods.load(self.job.method)
        last = checkpoint.recover(self.folder / "checkpoints" / "last")
        if resume and last.exists():
            opened = Checkpoint(last)
            tokenizer = opened.tokenizer()
            model = cls.build(self.settings, tokenizer)
            model.weights = opened.facts.weights
            return model, tokenizer  # the trainer loads the weights with the rest of the state
        if self.initial:
            tokenizer = self.initial.tokenizer()
            model = cls.build(self.settings, tokenizer)
            checkpoint.load_weights(model, self.initial.weights)
            model.weights = f"checkpoint {self.initial.facts.sha256[:12]} ({self.initial.facts.weights})"
            return model, tokenizer
        texts = [(split.raw if self.settings.text.field == "raw" else split.sent) for _, split in sources]
        tokenizer = cls.tokenizer(self.settings, [texts[source][row] for source, row in places])
        model = cls.build(self.settings, tokenizer)
        model.load_pretrained(self.settings, tokenizer)
        return model, tokenizer

    def _validate(self, tokenizer: Tokenizer) -> Any:
        """Validation while training: predictions, rows, metrics, as in the final evaluation."""
        chosen = protocol.load(self.job.protocols[0])
        split = self.index.split("val")
        path = self.folder / "predictions" / "validation.parquet"

        def validate(model: Method) -> dict[str, float | None]:
            predictor = self._predictor(model, tokenizer, chosen)
            header = Header(
                dataset=self.index.card.name,
                split="val",
                input=dict(predictor.inputs),
                scored_at=chosen.score.scored_at,
                method=type(model).__module__,
            )
            if self.fabric.global_rank == 0:  # what an interrupted validation left is of other weights
                shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)
            found = predict.predict(predictor, self.index, split, header, path, "val")
            rows = scoring.rows(found, self.index, "val", chosen)
            return metrics.compute(metrics.Sums.of(rows, chosen.score))

        return validate

    def _predictor(self, model: Method, tokenizer: Tokenizer, chosen: Protocol) -> Predictor:
        return Predictor.of(model.to(self.fabric.device), tokenizer, self.settings, chosen, self.fabric)

    def evaluate(self, opened: Checkpoint) -> list[Record]:
        """Predict, score and record every split under every protocol; those of equal input share predictions."""
        model, tokenizer = opened.model()
        predictors = {name: self._predictor(model, tokenizer, protocol.load(name)) for name in self.job.protocols}
        records = []
        for split in self.splits():
            made: dict[Any, tuple[Path, Predictions, dict[str, Any]]] = {}
            for name, predictor in predictors.items():
                path = self.folder / "predictions" / f"{split}-{name}.parquet"
                same = predictor.inputs, protocol.load(name).score.scored_at  # what stored masks depend on
                if same not in made:
                    found = self.predict(opened, predictor, split, path)
                    made[same] = path, found, self._cost(opened, predictor, split)
                first, found, cost = made[same]
                if first != path and self.fabric.global_rank == 0:
                    shutil.copyfile(first, path)
                records.append(self._record(opened, split, name, found, cost))
        return records

    def predict(self, opened: Checkpoint, predictor: Predictor, split: str, path: Path) -> Predictions:
        """Predict a split to a file that says what made it."""
        header = Header(
            dataset=self.index.card.name,
            index=self.index.hash,
            split=split,
            input=dict(predictor.inputs),
            scored_at=predictor.rule.scored_at,
            method=opened.facts.method,
            variants=opened.facts.variants,
            checkpoint=opened.facts.sha256,
            recipe=self.settings.model_dump(),
            versions=record.environment()["versions"],
        )
        return predict.predict(predictor, self.index, self.index.split(split), header, path, path.stem)

    def _record(self, opened: Checkpoint, split: str, name: str, found: Predictions, cost: dict[str, Any]) -> Record:
        chosen = protocol.load(name)
        facts = {
            "seed": opened.facts.seed,
            "training_data": opened.facts.training_data,
            "leaked": leaks.leaked(opened.facts.training_data, self.index, split, self.job.data_root),
            "weights": opened.facts.weights,
            "device": distributed.device_name(self.fabric),
            "cost": cost,
        }
        folder = self.folder if self.fabric.global_rank == 0 else None
        shuffled = references.permuted(found, chosen.input.asked(self.index.split(split)))
        record.keep(folder, shuffled, self.index, split, chosen, control=references.PERMUTED, **facts)
        return record.keep(folder, found, self.index, split, chosen, **facts)

    def _cost(self, opened: Checkpoint, predictor: Predictor, split: str) -> dict[str, float | int | None]:
        """What the method costs: FLOPs of one expression and its image; memory of this process at its highest."""
        cuda = self.fabric.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else memory()  # before FLOPs are counted, with gradients on
        samples = predictor.samples(self.index, self.index.split(split))
        batch = self.fabric.to_device(samples[[0]].batch)
        return {
            "parameters": sum(p.numel() for p in predictor.model.parameters()),
            "flops": flops(predictor.model, batch),
            "training_seconds": opened.facts.training_seconds,
            "expressions_per_second": round(predict.speed(predictor, self.index, self.index.split(split)), 2),
            "peak_memory_bytes": peak,
        }


def reset_peak_memory(fabric: Fabric) -> None:
    """Count the highest memory from here on, so that it is that of one run where a process makes several."""
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # Linux; elsewhere it is the process's
        file.write("5")


def prepare(job: Job, runs: Path, resume: Path | None = None) -> Run:
    """Check a job, and start its processes; its folder, below `runs`, is not made yet."""
    settings, variants = settings_of(job, resume)
    run = Run(job, resume or runs, distributed.start(settings.train.precision), settings, variants)
    run.check()
    return run


def start(job: Job, runs: Path, resume: Path | None = None) -> Run:
    """Check a job, and open the folder of its run: a new one below `runs`, or the one to be resumed."""
    run = prepare(job, runs, resume)
    reset_peak_memory(run.fabric)
    if resume is None:
        fabric, settings, variants = run.fabric, run.settings, run.variants
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        trained = Path(job.method or job.checkpoint).resolve().name
        name = "-".join([trained, *variants, Path(job.dataset).stem, f"seed{job.seed}", stamp])
        run.folder = distributed.from_main(fabric, _new_folder(runs, name) if fabric.global_rank == 0 else runs)
        if fabric.global_rank == 0:
            job.write(run.folder)
            (run.folder / "recipe.toml").write_text(recipe.dumps(settings), encoding="utf-8")
        distributed.barrier(fabric)
    _hold(run)
    return run


class BusyError(InputError):
    """Another process works in the folder of a run."""


def _hold(run: Run) -> None:
    """Lock the folder of a run, so that no two processes write into it."""
    lock = FileLock(run.folder / ".lock", is_singleton=True)
    free = True
    if run.fabric.global_rank == 0:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            free = False
        except NotImplementedError:  # a file system without locks, such as Lustre mounted without flock: go on unlocked
            pass
    if not distributed.from_main(run.fabric, free):
        raise BusyError(f"Another process is at work in {run.folder}: wait for its end, or stop it.")
    run.lock = lock


def _new_folder(runs: Path, name: str) -> Path:
    """Make a folder of this name, or of name-2, name-3, ... where other runs of the same second have it."""
    runs.mkdir(parents=True, exist_ok=True)
    folder = runs / name
    for number in itertools.count(2):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = runs / f"{name}-{number}"
    return folder


def predict_to(job: Job, output: Path) -> None:
    """Predict one split of a job with its checkpoint, and write nothing but the predictions file."""
    if not job.checkpoint:
        raise InputError("Which checkpoint? Give --checkpoint FOLDER, such as runs/ID/checkpoints/best.")
    run = prepare(job, output.parent)
    if len(job.splits) != 1 or len(job.protocols) != 1:
        raise InputError("A predictions file holds one split under one protocol: give one --split and one --protocol.")
    opened = Checkpoint(Path(job.checkpoint))
    predictor = run._predictor(*opened.model(), protocol.load(job.protocols[0]))
    run.predict(opened, predictor, job.splits[0], output)


def flops(model: Method, batch: Batch) -> int:
    """Floating-point operations of a prediction."""
    with FlopCounterMode(display=False) as counter:  # which trips over views of weights where gradients are off
        model.predict(batch)
    return int(counter.get_total_flops())


def memory() -> int:
    """Highest resident memory of this process in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
