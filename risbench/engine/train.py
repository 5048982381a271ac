"""The trainer: one loop, top-down.

Each epoch draws its batches and its random numbers from (seed, epoch), so that a run resumed from the end of any epoch
repeats the uninterrupted one, on the CPU bit for bit.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from risbench import progress
from risbench.api import Batch, Method, Tokenizer
from risbench.data import loader
from risbench.data.loader import Samples
from risbench.engine import checkpoint, distributed, optim
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.errors import InputError
from risbench.recipe import Recipe

Validate = Callable[[Method], dict[str, float | None]]


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    best: float = -1.0  # oIoU on val, or gIoU under the no-target rule
    seconds: float = 0.0  # of training, validation left out
    lines: int = 0  # of log.jsonl


@dataclass
class Trainer:
    """Trains one model in one run folder."""

    # what is trained, on what
    model: Method
    tokenizer: Tokenizer
    recipe: Recipe
    samples: Samples
    validate: Validate
    # where, by whom
    run: Path
    facts: Facts
    seed: int
    fabric: Fabric
    # how far
    position: Position = field(default_factory=Position)

    def fit(self, resume: bool = False) -> None:
        """Train all epochs that are left; leaves checkpoints/best and checkpoints/last."""
        train = self.recipe.train
        network = distributed.synchronised(self.model, self.fabric)
        network.train()
        optimizer = optim.optimizer(cast(Method, network).parameter_groups(), train)
        wrapped, fabric_optimizer = self.fabric.setup(network, optimizer)
        wrapped.mark_forward_method("loss")
        self.model = cast(Method, network)
        if resume:
            self._restore(optimizer)
        self._cut_log()
        while self.position.epoch < train.epochs:
            self._epoch(wrapped, fabric_optimizer)
            self._finish_epoch(optimizer)

    def _epoch(self, wrapped: Any, optimizer: Optimizer) -> None:
        train, epoch, fabric = self.recipe.train, self.position.epoch, self.fabric
        torch.manual_seed(_mixed(self.seed, epoch, fabric.global_rank))
        samples = replace(self.samples, draw=(self.seed, epoch))
        batches = loader.epoch_batches(samples, train.batch_size)
        mine = loader.shares(batches, train.accumulate, fabric.global_rank, fabric.world_size, train.per_image)
        items = loader.load(samples, mine, train.workers)
        sums: dict[str, float] = defaultdict(float)
        begin = time.perf_counter()
        label = f"epoch {epoch + 1}/{train.epochs}"
        self.model.train()
        with progress.bar(label, len(batches), shown=fabric.global_rank == 0) as step:
            for number in range(len(batches)):
                optim.set_rate(optimizer, optim.factor(train, epoch * len(batches) + number, len(batches)))
                terms = self._step(wrapped, optimizer, (next(items).batch for _ in range(train.accumulate)))
                for name, value in terms.items():
                    sums[name] += value
                step()
        seconds = time.perf_counter() - begin
        self.position.seconds += seconds
        self.position.epoch += 1
        self._log(
            epoch=self.position.epoch,
            step=self.position.epoch * len(batches),
            lr=optimizer.param_groups[0]["lr"],
            loss={name: value / len(batches) for name, value in sums.items()},
            seconds=round(seconds, 3),
        )

    def _step(self, wrapped: Any, optimizer: Optimizer, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step over all its micro-batches; return the mean of each loss term."""
        pieces = self.recipe.train.accumulate
        sums: dict[str, float] = defaultdict(float)
        optimizer.zero_grad()
        for piece, batch in enumerate(batches, start=1):
            waiting = piece < pieces and self.fabric.world_size > 1
            with self.fabric.no_backward_sync(wrapped) if waiting else nullcontext():
                with self.fabric.autocast(), _normalisable():  # a wrapper without DDP does not cast by itself
                    terms: dict[str, Tensor] = wrapped.loss(self.fabric.to_device(batch))
                self.fabric.backward(terms["total"] / pieces)
            for name, value in terms.items():
                sums[name] += value.item() / pieces
        if not all(value == value and abs(value) != float("inf") for value in sums.values()):
            raise InputError(
                f"The loss is no longer finite in epoch {self.position.epoch + 1} ({dict(sums)}). Lower train.lr, or "
                "train in full precision (train.precision=32-true)."
            )
        if self.recipe.train.clip_norm:
            self.fabric.clip_gradients(
                wrapped, optimizer, max_norm=self.recipe.train.clip_norm, error_if_nonfinite=False
            )
        optimizer.step()
        return sums

    def _finish_epoch(self, optimizer: Optimizer) -> None:
        epoch, train = self.position.epoch, self.recipe.train
        distributed.same_buffers(self.model, self.fabric)
        due = epoch % train.validate_every == 0 or epoch == train.epochs
        reached = self.validate(self.model) if due else {}
        score = reached.get("gIoU", reached.get("oIoU"))
        better = score is not None and score > self.position.best
        if better:
            self.position.best = cast(float, score)
        if reached:
            self._log(epoch=epoch, val=reached)
        if self.fabric.global_rank == 0:
            self._save("best", None) if better or not (self.run / "checkpoints" / "best").exists() else None
            scaler = self.fabric.strategy.precision.state_dict()  # of 16-mixed; empty otherwise
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler, "position": vars(self.position)}
            self._save("last", state)
        distributed.barrier(self.fabric)

    def _save(self, name: str, state: dict[str, Any] | None) -> None:
        facts = self.facts.model_copy(
            update={"epoch": self.position.epoch, "training_seconds": round(self.position.seconds, 3)}
        )
        checkpoint.save(self.run / "checkpoints" / name, self.model, self.tokenizer, self.recipe, facts, state)

    def _restore(self, optimizer: Optimizer) -> None:
        """Go back to the end of the last finished epoch; a run killed in its first one begins anew."""
        if not checkpoint.recover(self.run / "checkpoints" / "last").exists():
            return
        last = Checkpoint(self.run / "checkpoints" / "last")
        state = last.state()
        checkpoint.load_weights(self.model, last.weights)
        optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])

    def _cut_log(self) -> None:
        """Drop the lines that a killed run wrote behind its last checkpoint."""
        path = self.run / "log.jsonl"
        if self.fabric.global_rank == 0 and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(lines[: self.position.lines]), encoding="utf-8")

    def _log(self, **values: Any) -> None:
        self.position.lines += 1
        if self.fabric.global_rank == 0:
            with (self.run / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            progress.say(_line(values, self.recipe.train.epochs))


@contextmanager
def _normalisable() -> Iterator[None]:
    """Say what to do where torch refuses to normalise a batch of one value; only torch knows which layer meets one."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "Batch normalisation cannot train on one expression (or one cell of one image) at a time, which is what a "
            "micro-batch holds here: raise train.batch_size or image.size, or lower train.accumulate."
        ) from None


def _mixed(seed: int, epoch: int, rank: int) -> int:
    """One seed from three numbers."""
    return (seed * 1_000_003 + epoch) * 1_009 + rank


def _line(values: dict[str, Any], epochs: int) -> str:
    """A log entry for people."""
    if "val" in values:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in values["val"].items() if value is not None)
        return f"  val: {shown}"
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values["loss"].items())
    return f"epoch {values['epoch']}/{epochs}: {terms}, lr {values['lr']:.3g}, {values['seconds']:.0f} s"
