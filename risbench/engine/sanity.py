"""Refuse predictions that cannot be scored: of another shape, numbers that are no probabilities, peaks off the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from risbench.api import Prediction
from risbench.errors import InputError

ROUNDING = 1e-3  # by which a probability may leave [0, 1]


def check_prediction(
    prediction: Prediction, num_expressions: int, method: str, expressions: Sequence[str] = ()
) -> None:
    """Refuse a method's prediction of a batch; the message names the expression, if the texts are given."""
    check_shapes(prediction, num_expressions, method)
    probability, peak = prediction.probability, prediction.peak
    cells = None if peak is None else peak.cpu()
    check_values(ranges(probability).cpu(), cells, tuple(probability.shape[1:]), method, expressions)
    if prediction.no_target is not None:
        check_no_target(prediction.no_target.cpu(), method, expressions)


def check_shapes(prediction: Prediction, num_expressions: int, method: str) -> None:
    """Refuse tensors of another shape or type; this does not wait for the device."""
    probability, peak = prediction.probability, prediction.peak
    shape = tuple(probability.shape)
    if (
        probability.ndim != 3
        or len(probability) != num_expressions
        or 0 in shape
        or not probability.is_floating_point()
    ):
        raise InputError(
            f"{method} gives probabilities {shape} of {probability.dtype} for {num_expressions} expressions. Return "
            "floating-point numbers (B, h, w) from predict_from, one map for each expression."
        )
    if peak is not None and (
        peak.is_floating_point() or peak.is_complex() or tuple(peak.shape) != (num_expressions, 2)
    ):
        raise _no_cells(method, shape[1:])
    no_target = prediction.no_target
    if no_target is not None and (not no_target.is_floating_point() or tuple(no_target.shape) != (num_expressions,)):
        raise InputError(
            f"{method} gives no-target answers {tuple(no_target.shape)} of {no_target.dtype} for {num_expressions} "
            "expressions. Return floating-point numbers (B,) as no_target from predict_from, one for each expression."
        )


def ranges(probability: Tensor) -> Tensor:
    """Return the lowest and the highest number of each map, NaN where any is NaN: (B, h, w) to (B, 2)."""
    return torch.stack(tuple(probability.flatten(1).aminmax(dim=1)), dim=1)


def check_values(
    ranges: Tensor, peak: Tensor | None, grid: tuple[int, ...], method: str, expressions: Sequence[str] = ()
) -> None:
    """Refuse ranges (B, 2) of numbers that are no probabilities, and peaks (B, 2) off the grid; both lie on the CPU."""
    for row, (lowest, highest) in enumerate(ranges.tolist()):
        if not (lowest >= -ROUNDING and highest <= 1 + ROUNDING):
            raise _wrong_probability(method, _which(row, expressions), lowest, highest)
    cells = [] if peak is None else peak.tolist()
    if not all(0 <= row < grid[0] and 0 <= column < grid[1] for row, column in cells):
        raise _no_cells(method, grid)


def check_no_target(no_target: Tensor, method: str, expressions: Sequence[str] = ()) -> None:
    """Refuse no-target answers (B,) that are no probabilities; they lie on the CPU."""
    for row, number in enumerate(no_target.tolist()):
        if not -ROUNDING <= number <= 1 + ROUNDING:
            raise InputError(
                f"{method} gives {number:g} as the probability that {_which(row, expressions)} has no target. Return "
                "numbers from 0 to 1 as no_target from predict_from, such as those of a sigmoid."
            )


def _which(row: int, expressions: Sequence[str]) -> str:
    return repr(expressions[row]) if expressions else f"expression {row + 1} of a batch"


def _wrong_probability(method: str, which: str, lowest: float, highest: float) -> InputError:
    if math.isnan(lowest):
        return InputError(
            f"{method} predicts NaN for {which}: its weights or its computation have left the finite numbers. Give "
            "another checkpoint, compute with train.precision=32-true, or train with a lower train.lr."
        )
    return InputError(
        f"{method} predicts numbers from {lowest:g} to {highest:g} for {which}, which are no probabilities. Return "
        "numbers from 0 to 1 from predict_from, such as those of a sigmoid."
    )


def _no_cells(method: str, grid: tuple[int, ...]) -> InputError:
    return InputError(
        f"{method} gives peaks that are no cells of its grid of {grid[0]} x {grid[1]}. Return the row and column "
        "of a cell for each expression, (B, 2) int64."
    )
