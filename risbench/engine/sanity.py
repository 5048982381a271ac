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
    probability = prediction.probability
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
    lowest, highest = probability.flatten(1).aminmax(dim=1)  # NaN where any is NaN
    wrong = ~((lowest >= -ROUNDING) & (highest <= 1 + ROUNDING))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        which = repr(expressions[row]) if expressions else f"expression {row + 1} of a batch"
        raise _wrong_probability(method, which, float(lowest[row]), float(highest[row]))
    if prediction.peak is not None and not _lies_on_grid(prediction.peak, probability):
        raise InputError(
            f"{method} gives peaks that are no cells of its grid of {shape[1]} x {shape[2]}. Return the row and column "
            "of a cell for each expression, (B, 2) int64."
        )


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


def _lies_on_grid(peak: Tensor, probability: Tensor) -> bool:
    grid = torch.tensor(probability.shape[1:], device=peak.device)
    whole = not (peak.is_floating_point() or peak.is_complex())
    return whole and peak.shape == (len(probability), 2) and bool(((peak >= 0) & (peak < grid)).all())
