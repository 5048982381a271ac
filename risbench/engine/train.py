"""The trainer: one loop, top-down.

Each epoch draws its batches and its random numbers from (seed, epoch). A run that is resumed at the end of any epoch
therefore repeats the uninterrupted run, on the CPU bit for bit.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.optim import Optimizer

from risbench import files, progress
from risbench.api import Method, Tokenizer
from risbench.data import loader, micro_batches
from risbench.data.loader import Item, TrainingSamples
from risbench.data.micro_batches import MicroBatch
from risbench.engine import checkpoint, distributed, ema, optim
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.engine.losses import Losses, cure
from risbench.errors import InputError
from risbench.recipe import Recipe, Train

_log = logging.getLogger(__name__)

Validate = Callable[[Method], dict[str, float | None]]


@dataclass
class Position:
    """The progress of a run."""

    epoch: int = 0  # number of finished epochs
    best: float = -1.0  # best oIoU on val, or gIoU if the protocol scores no-target expressions
    seconds: float = 0.0  # training time without validation

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Position:
        """Return a stored position. Raises ValueError for anything else."""
        values = {name: value for name, value in values.items() if name != "lines"}  # of runs before 0.3
        if values.keys() != vars(cls()).keys() or {type(value) for value in values.values()} - {int, float}:
            raise ValueError(f"its position is {values}")
        return cls(**values)


@dataclass
class Trainer:
    """Trains one model in one run folder."""

    # model and data
    model: Method
    tokenizer: Tokenizer
    recipe: Recipe
    samples: TrainingSamples
    validate: Validate
    # run
    folder: Path
    facts: Facts
    seed: int
    fabric: Fabric
    position: Position = field(default_factory=Position)
    average: ModelEmaV3 | None = field(default=None, init=False)

    def fit(self, resume: bool = False) -> None:
        """Train the remaining epochs; write checkpoints/best and checkpoints/last."""
        train = self.recipe.train
        network = distributed.synchronise_normalisation(self.model, self.fabric)
        network.train()
        groups = optim.parameter_groups(cast(Method, network), train)
        optimizer = optim.build_optimizer(groups, train)
        wrapped, fabric_optimizer = self.fabric.setup(network, optimizer)
        wrapped.mark_forward_method("loss")
        self.model = cast(Method, network)
        self.average = ema.start(self.model, train.ema)
        if resume:
            self._restore(optimizer)
        self._cut_log()
        _log.info("%d of %d epochs are done; the run is in %s.", self.position.epoch, train.epochs, self.folder)
        with self._bar() as bar:
            while self.position.epoch < train.epochs:
                self._train_epoch(wrapped, fabric_optimizer, bar)
                self._finish_epoch(optimizer)

    @property
    def kept_model(self) -> Method:
        """The model that is validated and kept: with the averaged weights, if there are any."""
        return cast(Method, self.average.module) if self.average else self.model

    def _bar(self) -> AbstractContextManager[progress.Bar]:
        """Return the bar of the whole run; every epoch has as many steps."""
        steps = len(loader.training_batches(self.samples, self.recipe.train.batch_size))
        done, total = self.position.epoch * steps, self.recipe.train.epochs * steps
        return progress.bar("", total, self.fabric.is_global_zero, done)

    def _train_epoch(self, wrapped: Any, optimizer: Optimizer, bar: progress.Bar) -> None:
        train, epoch, fabric = self.recipe.train, self.position.epoch, self.fabric
        torch.manual_seed(_process_seed(self.seed, epoch, fabric.global_rank))
        samples = replace(self.samples, epoch_seed=(self.seed, epoch))
        batches = loader.training_batches(samples, train.batch_size)
        place = fabric.global_rank, fabric.world_size
        steps = [micro_batches.cut(batch, train.micro_batch, train.per_image, *place) for batch in batches]
        items = loader.load(samples, [piece.positions for step in steps for piece in step], train.workers)
        losses = Losses(fabric, samples, train, epoch + 1, len(steps))
        start = time.perf_counter()
        bar.rename(f"epoch {epoch + 1}/{train.epochs}, step")
        self.model.train()
        with distributed.arithmetic(train.matmul, fixed_sizes=True):
            for number, pieces in enumerate(steps):
                factor = optim.rate_factor(train, epoch * len(steps) + number, len(steps))
                optim.set_rate(optimizer, factor)
                with losses.first_cause():
                    terms = self._step(wrapped, optimizer, pieces, items)
                losses.add(number + 1, pieces, terms)
                if self.average:
                    self.average.update(self.model, step=epoch * len(steps) + number + 1)
                bar()
        seconds = time.perf_counter() - start
        self.position.seconds += seconds
        self.position.epoch += 1
        self._log(
            epoch=self.position.epoch,
            step=self.position.epoch * len(steps),
            lr=optimizer.param_groups[0]["lr"],
            loss=losses.means(),
            seconds=round(seconds, 3),
        )

    def _step(
        self, wrapped: Any, optimizer: Optimizer, pieces: Sequence[MicroBatch], items: Iterator[Item]
    ) -> list[dict[str, Tensor]]:
        """Make one optimiser step from its micro-batches, the next items; return the loss terms of each."""
        train, all_terms = self.recipe.train, []
        optimizer.zero_grad()
        for number, piece in enumerate(pieces, start=1):
            is_last = number == len(pieces)  # gradients are exchanged between processes once a step
            postpone = self.fabric.world_size > 1 and not is_last
            batch = self.fabric.to_device(next(items).batch)
            with self.fabric.no_backward_sync(wrapped) if postpone else nullcontext():
                # Fabric casts by itself only under DDP
                with self.fabric.autocast(), _explain_single_value_error(train, self.fabric.world_size):
                    terms: dict[str, Tensor] = wrapped.loss(batch)
                self.fabric.backward(terms["total"] * piece.weight)
            all_terms.append({name: value.detach() for name, value in terms.items()})
        if train.clip_norm:
            self.fabric.clip_gradients(wrapped, optimizer, max_norm=train.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        return all_terms

    def _finish_epoch(self, optimizer: Optimizer) -> None:
        """Validate if the recipe asks for it, and write the checkpoints."""
        epoch, train = self.position.epoch, self.recipe.train
        for model in dict.fromkeys((self.model, self.kept_model)):
            distributed.synchronise_buffers(model, self.fabric)
        self._check_weights()
        validates = epoch % train.validate_every == 0 or epoch == train.epochs
        metrics = self.validate(self.kept_model) if validates else {}
        score = metrics.get("gIoU", metrics.get("oIoU"))
        improved = score is not None and score > self.position.best
        if improved:
            self.position.best = cast(float, score)
        if metrics:
            self._log(epoch=epoch, val=metrics)
        if self.fabric.is_global_zero:
            if improved or not (self.folder / "checkpoints" / "best").exists():
                self._save("best", None)
            scaler = self.fabric.strategy.precision.state_dict()  # of 16-mixed; empty otherwise
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler, "position": vars(self.position)}
            self._save("last", state | ema.state(self.average, self.model))
        distributed.barrier(self.fabric)

    def _check_weights(self) -> None:
        """Refuse weights that are not finite: no later loss would show what the last steps of an epoch did."""
        tensors = {name: tensor for name, tensor in self.model.state_dict().items() if tensor.is_floating_point()}
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
        if finite.all():
            return
        name = list(tensors)[int(finite.int().argmin())]
        epoch, folder = self.position.epoch, self.folder / "checkpoints"
        kept = f" {folder} keeps those of epoch {epoch - 1}." if epoch > 1 else ""
        problem = f"The weights are no longer finite after epoch {epoch} (the first is {name})."
        raise InputError(f"{problem} {cure(self.recipe.train)}{kept}")

    def _save(self, name: str, state: dict[str, Any] | None) -> None:
        facts = self.facts.model_copy(
            update={"epoch": self.position.epoch, "training_seconds": round(self.position.seconds, 3)}
        )
        checkpoint.save(self.folder / "checkpoints" / name, self.kept_model, self.tokenizer, self.recipe, facts, state)

    def _restore(self, optimizer: Optimizer) -> None:
        """Return to the end of the last finished epoch; a run killed in its first epoch starts again."""
        if not (self.folder / "checkpoints" / "last").exists():
            return
        last = Checkpoint(self.folder / "checkpoints" / "last", self.facts.method)
        state = last.state()
        last.load_weights(self.model)
        try:
            ema.restore(self.average, self.model, state)
            optim.load_state(optimizer, state["optimizer"])
            if state.get("scaler"):
                self.fabric.strategy.precision.load_state_dict(state["scaler"])
            self.position = Position.restored(state["position"])
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise last.wrong_state(error) from None
        if self.position.epoch != last.facts.epoch:
            raise last.wrong_state(f"it is of epoch {self.position.epoch}, the weights are of {last.facts.epoch}")

    def _cut_log(self) -> None:
        """Drop the lines that a killed run wrote after its last checkpoint."""
        path = self.folder / "log.jsonl"
        if self.fabric.is_global_zero and path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            epochs = [_logged_epoch(path, number, line) for number, line in enumerate(lines, start=1)]
            kept = [line for line, epoch in zip(lines, epochs, strict=True) if epoch <= self.position.epoch]
            files.write_bytes(path, b"".join(kept))

    def _log(self, **values: Any) -> None:
        if self.fabric.is_global_zero:
            path = self.folder / "log.jsonl"
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(values) + "\n")
            except OSError as error:
                raise files.unwritable(path, error) from None
            progress.print_line(_log_line(values, self.recipe.train.epochs))


def _logged_epoch(path: Path, number: int, line: bytes) -> int:
    """Return the epoch of a line of log.jsonl; what a kill cut off belongs to the epoch after the last checkpoint."""
    try:
        return int(files.parse_json(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        if not line.endswith(b"\n"):
            return sys.maxsize
        message = f"{path}, line {number} is damaged: remove that line. Training does not need it."
        raise InputError(message) from None


@contextmanager
def _explain_single_value_error(train: Train, processes: int) -> Iterator[None]:
    """Explain torch's refusal to normalise a batch of one value; only torch knows which layer meets one."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        several = f" in {processes} processes" if processes > 1 else ""
        raise InputError(
            "Batch normalisation cannot train on one expression (or one cell of one image) at a time, which a "
            f"micro-batch holds with train.batch_size={train.batch_size} and train.micro_batch={train.micro_batch}"
            f"{several}: {_more_values(train, processes)}raise image.size."
        ) from None


def _more_values(train: Train, processes: int) -> str:
    """Say how every micro-batch comes to hold more expressions, if it can."""
    if train.batch_size < 2 * processes:
        return f"raise train.batch_size (to {2 * processes} at least) and train.micro_batch (to 2 at least), or "
    if train.batch_size > train.micro_batch * processes:
        return f"raise train.micro_batch (to {-(-train.batch_size // processes)} at most), or "
    return ""


def _process_seed(seed: int, epoch: int, rank: int) -> int:
    return (seed * 1_000_003 + epoch) * 1_009 + rank


def _log_line(values: dict[str, Any], epochs: int) -> str:
    """Format a log entry for the terminal."""
    if "val" in values:
        metrics = ", ".join(f"{name} {value:.2f}" for name, value in values["val"].items() if value is not None)
        return f"  val: {metrics}"
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values["loss"].items())
    return f"epoch {values['epoch']}/{epochs}: {terms}, lr {values['lr']:.3g}, {values['seconds']:.0f} s"
