"""Predictions x data set -> one row of integers for each expression -> metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from risbench import metrics
from risbench.data.index import Index, Split
from risbench.errors import InputError
from risbench.predictions import Header, Predictions, in_order, refuse
from risbench.protocol import Protocol


@dataclass(frozen=True)
class Score:
    """The rows of a predictions file and what they come to."""

    rows: pd.DataFrame
    summary: dict[str, Any]  # what --json prints


def score(predictions: Predictions, index: Index, split: str, protocol: Protocol) -> Score:
    """Score predictions on a split; the summary holds percentages as floats."""
    table = rows(predictions, index, split, protocol)
    sums = metrics.Sums.of(table, protocol.score)
    summary: dict[str, Any] = {"dataset": index.card.name, "split": split, "protocol": protocol.name, "n": sums.n}
    summary |= {**metrics.compute(sums), "intersection": sums.intersection, "union": sums.union}
    if index.partial:
        summary["partial"] = True
    if table["kind"].any():
        summary["kinds"] = {str(kind): _kind(part, protocol) for kind, part in table.groupby("kind")}
    return Score(table, summary)


def rows(predictions: Predictions, index: Index, split: str, protocol: Protocol) -> pd.DataFrame:
    """One row for each expression in the order of the split: ids, the fields of `metrics.Counts`, kind."""
    truths = index.split(split)
    if predictions.header:
        _check_header(predictions.header, index.card.name, split, protocol)
    predictions = in_order(predictions, truths)
    _check_sizes(predictions, truths)
    _check_peaks(predictions)
    ids = {"sent_id": truths.sent_id, "ref_id": truths.ref_id, "image_id": truths.image_id}
    counts = np.array(_counts(predictions, index, truths, protocol), np.int64).reshape(-1, len(metrics.Counts._fields))
    table = pd.DataFrame({**ids, **dict(zip(metrics.Counts._fields, counts.T, strict=True)), "kind": truths.kind})
    return table.astype({"peak_hit": np.int8})


def _counts(predictions: Predictions, index: Index, split: Split, protocol: Protocol) -> list[metrics.Counts]:
    @lru_cache(maxsize=16)  # the expressions of a ref follow one another
    def truth(ann_id: int) -> bytes:
        return index.truth(ann_id, protocol.score.ground_truth)

    peaks = zip(predictions.peak_row.tolist(), predictions.peak_col.tolist(), strict=True)
    sizes = zip(split.height.tolist(), split.width.tolist(), strict=True)
    return [
        metrics.count(counts, truth(ann_id), size, None if peak[0] < 0 else peak)
        for counts, ann_id, size, peak in zip(predictions.counts, split.ann_id.tolist(), sizes, peaks, strict=True)
    ]


def _check_header(header: Header, dataset: str, split: str, protocol: Protocol) -> None:
    """Refuse a file made for something else than what it is scored as."""
    asked = {"dataset": dataset, "split": split} | {
        field: value for field, value in protocol.input if value != "recipe" and field in header.input
    }
    made = {"dataset": header.dataset, "split": header.split, **header.input}
    for field, value in asked.items():
        if made[field] != value:
            raise InputError(
                f"The predictions were made with {field} {made[field]!r}, but are to be scored with {value!r}"
                f" (protocol {protocol.name!r}): give the {field} they were made with, or predict again."
            )


def _check_sizes(predictions: Predictions, split: Split) -> None:
    wrong = np.flatnonzero((predictions.height != split.height) | (predictions.width != split.width))
    if len(wrong):
        first = ", ".join(
            f"sent_id {split.sent_id[i]} has {predictions.height[i]} x {predictions.width[i]},"
            f" its image {split.height[i]} x {split.width[i]}"
            for i in wrong[:3]
        )
        raise InputError(
            f"{len(wrong)} masks differ in size from their images, at which this protocol scores: {first}. Bring the"
            " masks to the image's size (height x width) before writing them."
        )


def _check_peaks(predictions: Predictions) -> None:
    without = predictions.peak_row < 0
    if not without.all():
        refuse("Without a peak, while others have one", predictions.sent_id[without], "Give a peak for each, or none.")


def _kind(part: pd.DataFrame, protocol: Protocol) -> dict[str, Any]:
    values = metrics.compute(metrics.Sums.of(part, protocol.score))
    return {"n": len(part), "oIoU": values["oIoU"], "mIoU": values["mIoU"]}
