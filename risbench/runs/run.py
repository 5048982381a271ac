"""A run: a job in its folder, with its processes and its data sets.

The folder holds run.toml (the job and the hashes of what it began with), recipe.toml (resolved), log.jsonl,
checkpoints/, and for each split and protocol predictions/, rows/ and records/.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from lightning_fabric import Fabric

from risbench import files, methods, recipe
from risbench.api import Method, Tokenizer
from risbench.data import loader, source
from risbench.data.index import Index
from risbench.engine import distributed
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.predict import Predictor
from risbench.recipe import Recipe
from risbench.runs.inputs import (
    Inputs,
    data_sets,
    hash_images,
    hash_options,
    hash_pretrained,
    with_absolute_places,
)
from risbench.runs.job import RECIPE_FILE, Job
from risbench.scoring import protocol
from risbench.scoring.protocol import Protocol


@dataclass
class Run:
    """One job in its folder."""

    job: Job
    folder: Path
    fabric: Fabric
    settings: Recipe
    variants: list[str]
    resumed: bool = False  # the folder existed already
    lock: FileLock | None = None  # holds the folder until this process ends or drops the run

    @cached_property
    def stored_job(self) -> Job:
        """The job as run.toml keeps it, with places that hold in every working directory."""
        return with_absolute_places(self.job, data_sets(self.job, self.settings))

    @cached_property
    def index(self) -> Index:
        """The evaluated data set."""
        return self._open_index(self.job.dataset)

    @cached_property
    def training_indices(self) -> list[Index]:
        """The training data sets."""
        names = self.settings.train.datasets or [self.job.dataset]
        return [self.index if name == self.job.dataset else self._open_index(name) for name in names]

    @property
    def trains(self) -> bool:
        """Whether the run trains; otherwise it evaluates a checkpoint, or pretrained weights as they are."""
        return self.settings.trains and not self.job.checkpoint

    @cached_property
    def initial_checkpoint(self) -> Checkpoint | None:
        """The checkpoint of --init."""
        return Checkpoint(Path(self.job.init), self.job.method) if self.job.init else None

    @cached_property
    def training_rows(self) -> list[tuple[int, int]]:
        """The training expressions, as (number of the training data set, row of its train split)."""
        return loader.training_rows(self.training_indices, self.index)

    def training_splits(self) -> list[tuple[Index, str]]:
        """Return the splits that training reads: every `train`, and `val` of the evaluated data set."""
        if not self.trains:
            return []
        return [*((index, "train") for index in self.training_indices), (self.index, "val")]

    def inputs(self) -> Inputs:
        """Return what the run would begin with today; a resumed run has its recipe.toml already."""
        job, weights = self.job, {}
        settings = files.read_bytes(self.folder / RECIPE_FILE) if self.resumed else recipe.dumps(self.settings).encode()
        if job.checkpoint:
            weights["checkpoint"] = Checkpoint(Path(job.checkpoint), job.method).facts.content
        if self.initial_checkpoint:
            weights["init"] = self.initial_checkpoint.facts.content
        splits = {(index.card.name, name): index for index, name in self.training_splits()}
        splits |= {(self.index.card.name, name): self.index for name in self.splits()}
        return Inputs(
            dataset=self.index.card.name,
            variants=self.variants,
            options=hash_options(job),
            recipe=hashlib.sha256(settings).hexdigest(),
            code=methods.code_hash(job.method) if job.method else "",
            weights=weights,
            indices={index.card.name: index.hash for index in (self.index, *(i for i, _ in self.training_splits()))},
            pretrained={} if job.checkpoint else hash_pretrained(self.settings),
            images={f"{data} {name}": hash_images(index, name) for (data, name), index in splits.items()},
        )

    @cached_property
    def protocols(self) -> list[Protocol]:
        """The protocols of the job."""
        return [protocol.load(name) for name in self.job.protocols]

    def splits(self) -> list[str]:
        """Return the splits to evaluate: those of the job, or else all evaluation splits."""
        names = self.job.splits or self.index.evaluation_splits()
        for name in names:
            self.index.split(name)  # raises InputError for an unknown name
        return names

    def predictor(self, model: Method, tokenizer: Tokenizer, protocol: Protocol) -> Predictor:
        """Return a predictor of the model under a protocol, on the device of the run."""
        return Predictor.build(model.to(self.fabric.device), tokenizer, self.settings, protocol, self.fabric)

    def _open_index(self, name: str) -> Index:
        job = self.job
        root = job.data_root if source.used_root([name], job.data_root) else ""  # another data set may need it
        if self.fabric.is_global_zero:  # generates the data and builds the index if they are missing
            source.open_index(name, root, job.images, job.partial)
        distributed.barrier(self.fabric)
        return source.open_index(name, root, job.images, job.partial, job.limit)
