"""Choose predict.no_target_below, the largest probability under which a prediction becomes no-target.

It is chosen on val alone, by gIoU, from stored predictions: masks stay as they are, and only the answers change. The
rule is that of GRES under every protocol: where a wrong no-target answer keeps its mask, as under `gsva`, it would cost
nothing in gIoU, and the best answer would be no-target everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import metrics
from risbench.scoring.metrics import NO_TARGET_METRICS, Sums
from risbench.scoring.predictions import Predictions
from risbench.scoring.protocol import Protocol, ScoreHalf
from risbench.scoring.score import score_rows

SPLIT = "val"  # a threshold that is chosen on a test split makes its numbers worthless
KEY = "no_target_below"


class Choice(NamedTuple):
    """A threshold, 0 if none is better than empty masks alone, and the metrics on val without and with it."""

    below: float
    without: dict[str, float | None]
    with_threshold: dict[str, float | None]


def choose_threshold(predictions: Predictions, index: Index, protocol: Protocol) -> Choice:
    """Choose the threshold with the highest gIoU on val, the lowest of several."""
    largest_by_id = _largest_by_id(predictions)
    if protocol.score.no_target == "refused":
        raise InputError(f"The protocol {protocol.name!r} has no rule for no-target answers: give --protocol grefcoco.")
    half = protocol.score.model_copy(update={"no_target": "scored"})
    rows = score_rows(replace(predictions, no_target=None), index, SPLIT, protocol)
    largest = largest_by_id.loc[rows["sent_id"]].to_numpy(np.float64)
    without = _measure(rows, half)
    below = _best_threshold(rows, largest, half)
    with_threshold = _measure(_answered(rows, largest < below), half) if below else without
    if (with_threshold["gIoU"] or 0) <= (without["gIoU"] or 0):
        return Choice(0.0, without, without)
    return Choice(below, without, with_threshold)


def _largest_by_id(predictions: Predictions) -> pd.Series[Any]:
    """Return the largest probabilities by sent_id; refuse predictions without them, of another split, or answered."""
    header, largest = predictions.header, predictions.largest_probability
    if header and header.split != SPLIT:
        raise InputError(f"The predictions are of {header.split}: {KEY} is chosen on {SPLIT} alone, so give its file.")
    below = header.recipe.get("predict", {}).get(KEY) if header else None
    if predictions.no_target is not None and not below:
        raise InputError(
            f"The method answers itself whether there is a target, so predict.{KEY} would have no effect: nothing is "
            "to be chosen."
        )
    if largest is None or np.isnan(largest).any():
        raise InputError(
            "The file does not hold the largest probability of each expression, by which the threshold is chosen: "
            "predict again with this risbench, or write the column largest_probability."
        )
    return pd.Series(largest, index=predictions.sent_id)


def _best_threshold(rows: pd.DataFrame, largest: NDArray[np.float64], half: ScoreHalf) -> float:
    """Return the threshold with the highest gIoU; 0 if the probabilities are all equal."""
    order = np.argsort(largest, kind="stable")
    as_mask, as_none = (metrics.iou(_answered(rows, np.full(len(rows), said)), half)[order] for said in (False, True))
    gains = np.cumsum(as_none - as_mask)  # of no-target for the rows up to each one
    ends = np.flatnonzero(largest[order][:-1] < largest[order][1:])  # rows behind which a threshold fits
    if not len(ends):
        return 0.0
    best = ends[np.argmax(gains[ends])]
    return _shortest_between(*largest[order][[best, best + 1]].tolist())


def _answered(rows: pd.DataFrame, said_no_target: NDArray[np.bool_]) -> pd.DataFrame:
    return rows.assign(said_no_target=said_no_target.astype(np.int64))


def _measure(rows: pd.DataFrame, half: ScoreHalf) -> dict[str, float | None]:
    values = metrics.compute(Sums.from_rows(rows, half))
    return {name: values[name] for name in NO_TARGET_METRICS}


def _shortest_between(low: float, high: float) -> float:
    """Return the number with the fewest decimals that is above `low` and at most `high`."""
    middle = (low + high) / 2
    rounded = (round(middle, digits) for digits in range(1, 17))
    return next((number for number in rounded if low < number <= high and number < 1), high)
