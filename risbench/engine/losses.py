"""The losses of an epoch: they stay on the device, and all processes read them together every few steps.

Reading one waits for the device, and the device then waits for the next step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from risbench.data.loader import TrainingSamples
from risbench.data.micro_batches import MicroBatch
from risbench.engine import distributed
from risbench.errors import InputError
from risbench.recipe import Train

READ_EVERY = 50  # steps

_MOST_NAMED = 64  # expressions in a message


class _Added(NamedTuple):
    """The loss terms of a micro-batch."""

    step: int  # of the epoch, counted from 1
    micro_batch: MicroBatch
    names: Sequence[str]
    values: Tensor  # (terms,) float64, on the device


class _Defect(NamedTuple):
    """A loss that is not finite."""

    step: int
    terms: str
    expressions: str


class Losses:
    """The mean of each loss term over all expressions of an epoch, and the first step with one that is not finite."""

    def __init__(self, fabric: Fabric, samples: TrainingSamples, train: Train, epoch: int, steps: int) -> None:
        self._fabric, self._samples, self._train = fabric, samples, train
        self._epoch, self._steps = epoch, steps  # the epoch counted from 1, the steps in it
        self._unread: list[_Added] = []
        self._sums: dict[str, float] = defaultdict(float)  # of what this process has read
        self._means: dict[str, float] = defaultdict(float)

    def add(self, step: int, pieces: Sequence[MicroBatch], terms: Sequence[Mapping[str, Tensor]]) -> None:
        """Keep the terms of a step, counted from 1, and read what is kept every few steps and after the last one.

        Raises InputError in all processes, for the first step in which one of them had a loss that is not finite.
        """
        for piece, values in zip(pieces, terms, strict=True):
            self._unread.append(_Added(step, piece, tuple(values), self._stack(values)))
        if step % READ_EVERY == 0 or step == self._steps:
            self._read()

    def _stack(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the terms as one tensor of float64."""
        return torch.stack([value.to(self._fabric.device, torch.float64).reshape(()) for value in terms.values()])

    def _read(self) -> None:
        answers = distributed.from_all(self._fabric, (self._take(), dict(self._sums)))
        if defects := [defect for defect, _ in answers if defect]:
            raise self._error(min(defects))
        self._means = defaultdict(float)
        for _, sums in answers:
            for name, value in sums.items():
                self._means[name] += value / len(answers) / self._steps

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the expressions of the epoch, of all processes."""
        return dict(self._means)

    @contextmanager
    def first_cause(self) -> Iterator[None]:
        """Replace an error that follows from an earlier loss of this process that is not finite."""
        try:
            yield
        except InputError:
            raise
        except Exception:
            if defect := self._take():
                raise self._error(defect) from None
            raise

    def _take(self) -> _Defect | None:
        """Add what this process keeps to its sums; return the first loss that is not finite."""
        added, self._unread = self._unread, []
        numbers = iter(torch.cat([item.values for item in added]).tolist() if added else ())
        first = None
        for step, micro_batch, names, _ in added:
            terms = {name: next(numbers) for name in names}
            if first is None and not all(map(math.isfinite, terms.values())):
                first = _Defect(step, _listed(terms), _named(self._samples, micro_batch.positions))
            for name, value in terms.items():
                self._sums[name] += value * micro_batch.weight
        return first

    def _error(self, defect: _Defect) -> InputError:
        where = f"in epoch {self._epoch}, step {defect.step} of {self._steps} ({defect.terms})"
        return InputError(
            f"The loss is no longer finite {where}, with the expressions {defect.expressions}. {cure(self._train)}"
        )


def cure(train: Train) -> str:
    """Say what helps when a loss or a weight is no longer finite."""
    mixed = train.precision != "32-true"
    return f"Lower train.lr{', or train in full precision (train.precision=32-true)' if mixed else ''}."


def _listed(terms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in terms.items())


def _named(samples: TrainingSamples, positions: Sequence[int]) -> str:
    """Name expressions by their sent_id in their data sets, each once."""
    names: dict[str, list[str]] = defaultdict(list)
    for source, row in dict.fromkeys(samples.rows[position] for position in positions[:_MOST_NAMED]):
        index, split = samples.sources[source]
        names[index.card.name].append(str(split.sent_id[row]))
    listed = " and ".join(f"sent_id {', '.join(numbers)} of {name}" for name, numbers in names.items())
    return f"{listed}{' and others' if len(positions) > _MOST_NAMED else ''}"
