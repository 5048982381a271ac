"""Micro-batches: what one process computes at once of a batch that all processes share.

The weighted mean losses of the micro-batches, summed in each process and averaged over the processes, are the mean loss
of the batch, whatever the number of processes and the size of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from risbench.errors import InputError

T = TypeVar("T")


class MicroBatch(NamedTuple):
    """Expressions that one process computes at once."""

    positions: list[int]  # in the samples
    weight: float  # of their mean loss; 0: another micro-batch holds them, they only keep the processes in step


def cut(batch: Sequence[int], most: int, per_image: int, rank: int, processes: int) -> list[MicroBatch]:
    """Return one process's micro-batches of at most `most` expressions, as many as in every other process.

    Groups of `per_image` expressions stay whole. Processes wait for each other in each of their micro-batches, so that
    one with fewer groups than micro-batches repeats a group.
    """
    groups = [batch[start : start + per_image] for start in range(0, len(batch), per_image)]
    count = math.ceil(math.ceil(len(groups) / processes) / (most // per_image))
    share = _part(groups, rank, processes)
    pieces = [_part(share, number, count) for number in range(count)]
    weight = processes / len(batch)  # of an expression
    filling = MicroBatch(list((share or groups)[0]), 0.0)
    return [_joined(piece, weight) if piece else filling for piece in pieces]


def _part(items: Sequence[T], number: int, count: int) -> Sequence[T]:
    """Return one of `count` parts, whose sizes differ by one at most."""
    return items[len(items) * number // count : len(items) * (number + 1) // count]


def _joined(groups: Sequence[Sequence[int]], weight: float) -> MicroBatch:
    positions = [position for group in groups for position in group]
    return MicroBatch(positions, len(positions) * weight)


def check(batch_size: int, micro_batch: int, per_image: int) -> None:
    """Refuse a batch that is not made of whole groups, and a micro-batch that is smaller than one."""
    if batch_size % per_image:
        raise InputError(
            f"train.batch_size={batch_size} cannot be made of groups of {per_image} expressions of an image "
            f"(train.per_image): take a multiple of {per_image}."
        )
    if micro_batch < per_image:
        raise InputError(
            f"train.micro_batch={micro_batch} is less than the {per_image} expressions of an image that are computed "
            f"together (train.per_image): raise train.micro_batch to {per_image}, or lower train.per_image."
        )
