"""A run: a job in its folder, with its processes and its data sets.

The folder holds run.toml (the job), recipe.toml (resolved), log.jsonl, checkpoints/, and for each split and protocol
predictions/, rows/ and records/.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from lightning_fabric import Fabric

from risbench.api import Method, Tokenizer
from risbench.data import source
from risbench.data.index import Index
from risbench.engine import distributed
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.predict import Predictor
from risbench.recipe import Recipe
from risbench.runs.job import Job
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
    def index(self) -> Index:
        """The evaluated data set."""
        return self._open_index(self.job.dataset)

    @cached_property
    def training_indices(self) -> list[Index]:
        """The training data sets."""
        names = self.settings.train.datasets or [self.job.dataset]
        return [self.index if name == self.job.dataset else self._open_index(name) for name in names]

    @cached_property
    def initial_checkpoint(self) -> Checkpoint | None:
        """The checkpoint of --init."""
        return Checkpoint(Path(self.job.init)) if self.job.init else None

    @cached_property
    def protocols(self) -> list[Protocol]:
        """The protocols of the job."""
        return [protocol.load(name) for name in self.job.protocols]

    def splits(self) -> list[str]:
        """Return the splits to evaluate: those of the job, or else all evaluation splits."""
        card = self.index.card
        names = self.job.splits or [name for name in self.index.split_names() if card.splits[name].evaluation]
        for name in names:
            self.index.split(name)  # raises InputError for an unknown name
        return names

    def predictor(self, model: Method, tokenizer: Tokenizer, protocol: Protocol) -> Predictor:
        """Return a predictor of the model under a protocol, on the device of the run."""
        return Predictor.build(model.to(self.fabric.device), tokenizer, self.settings, protocol, self.fabric)

    def _open_index(self, name: str) -> Index:
        if self.fabric.is_global_zero:  # generates the data and builds the index if they are missing
            source.open_index(name, self.job.data_root, self.job.images, self.job.partial)
        distributed.barrier(self.fabric)
        return source.open_index(name, self.job.data_root, self.job.images, self.job.partial)
