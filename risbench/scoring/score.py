"""Predictions and a data set become one row of integers for each expression, and rows become metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench.data import rle
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.errors import InputError
from risbench.scoring import metrics, slices, statistics
from risbench.scoring import protocol as protocols
from risbench.scoring.metrics import BOUNDARY_RATIO, BoundaryCounts, MaskCounts, NoTargetFlags
from risbench.scoring.predictions import Header, Predictions, refuse_expressions
from risbench.scoring.protocol import Protocol, ScoreHalf


@dataclass(frozen=True)
class Score:
    """The rows of predictions and their metrics."""

    rows: pd.DataFrame
    summary: dict[str, Any]  # what --json prints


def score_predictions(
    predictions: Predictions, index: Index, split: str, protocol: Protocol, boundaries: bool = False
) -> Score:
    """Score predictions on a split; the summary holds percentages as floats. Boundaries take nine times as long."""
    header, index = predictions.header, _limit_index(index, predictions)
    rows, resized = _rows(predictions, index, split, protocol, boundaries)
    sums = metrics.Sums.from_rows(rows, protocol.score)
    summary: dict[str, Any] = {"dataset": index.card.name, "split": split, "protocol": protocol.name, "n": sums.n}
    summary |= {**metrics.compute(sums), "intersection": sums.intersection, "union": sums.union}
    if index.partial or (header and header.training_limit):
        summary["partial"] = True
    if index.limit:
        summary["limit"] = index.limit
    if resized:
        summary["resized"] = True
    summary["slices"] = slices.measure(rows, protocol)
    return Score(rows, summary)


def summary_with_intervals(score: Score, protocol: Protocol) -> dict[str, Any]:
    """Return the summary of a score with the interval of each metric that has a value; None: too few images for one."""
    known = statistics.intervals(score.rows, protocol)
    valued = [name for name in metrics.names(protocol.score) if score.summary[name] is not None]
    return {**score.summary, "intervals": {name: known.get(name) for name in valued}}


def score_rows(predictions: Predictions, index: Index, split: str, protocol: Protocol) -> pd.DataFrame:
    """Return one row for each expression that the protocol selects, in the order of the split: ids, counts, slices."""
    return _rows(predictions, _limit_index(index, predictions), split, protocol, False)[0]


def score_under_all_protocols(
    predictions: Predictions, index: Index, split: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the summaries of all protocols that can score the predictions, and by name why each other one cannot."""
    summaries, refused = [], {}
    for protocol in usable_protocols(index, split):
        try:
            scored = score_predictions(predictions, index, split, protocol)
            summaries.append(summary_with_intervals(scored, protocol))
        except InputError as error:
            refused[protocol.name] = str(error)
    if not summaries:  # the default protocol comes first
        raise InputError(next(iter(refused.values())))
    return summaries, refused


def usable_protocols(index: Index, split: str) -> list[Protocol]:
    """Return all protocols; if every expression of the split has a target, only those without the no-target rule."""
    all_targets = bool(index.num_objects(index.split(split).ann_id).all())
    known = map(protocols.load, protocols.names())
    return [protocol for protocol in known if protocol.score.no_target == "refused" or not all_targets]


def check_no_target_rule(index: Index, splits: Iterable[str], chosen: Iterable[Protocol]) -> None:
    """Raise InputError if a split has expressions without a target and a protocol has no rule for them."""
    without_rule = [protocol.name for protocol in chosen if protocol.score.no_target == "refused"]
    for split in splits if without_rule else ():
        objects = index.num_objects(index.split(split).ann_id)
        if no_target := int((objects == 0).sum()):
            with_rule = [name for name in protocols.names() if protocols.load(name).score.no_target != "refused"]
            raise InputError(
                f"{no_target} of {len(objects)} expressions of {index.card.name} {split} have no target, and the"
                f" protocol {without_rule[0]!r} has no rule for them: give --protocol {with_rule[0]} "
                f"(in Python protocol={with_rule[0]!r})."
            )


# rows


def _limit_index(index: Index, predictions: Predictions) -> Index:
    """Limit a data set to the images that the predictions were made for."""
    return predictions.header.limit_index(index) if predictions.header else index


def _rows(
    predictions: Predictions, index: Index, split: str, protocol: Protocol, boundaries: bool
) -> tuple[pd.DataFrame, bool]:
    """Return the rows, and whether any mask was resized for them."""
    expressions = index.split(split)
    check_no_target_rule(index, [split], [protocol])
    if predictions.header:
        _check_header(predictions.header, index.card.name, split, protocol)
    selected = protocol.input.select_expressions(expressions)
    whole = index.limited(0).split(split) if index.limit else expressions
    predictions = _in_order(predictions, whole, selected, protocol)
    no_target = _no_target_columns(predictions, index, selected, protocol)  # a small mask may vanish when it is resized
    predictions, resized = _at_scored_size(predictions, selected, protocol.score)
    columns = {name: getattr(selected, name) for name in ("sent_id", "ref_id", "image_id")}
    columns |= _columns(MaskCounts._fields, _count_pixels(predictions, index, selected, protocol.score))
    if boundaries:
        counts = _count_boundary_pixels(predictions, index, selected, protocol.score)
        columns |= _columns(BoundaryCounts._fields, counts)
    if protocol.score.ground_truth == "crowd":
        columns[metrics.CROWD] = np.array(
            [protocol.score.is_crowd(index, ann_id) for ann_id in selected.ann_id.tolist()], np.int64
        )
    rows = pd.DataFrame({**columns, **no_target, **slices.labels(index, selected)})
    return rows.astype({"peak_hit": np.int8}), resized


def _in_order(predictions: Predictions, split: Split, selected: Split, protocol: Protocol) -> Predictions:
    """Return the predictions for the selected expressions of the whole split, with a peak for each or none."""
    if protocol.input.sentences == "joined":
        joined = protocol.input.select_expressions(split).sent_id
        separate = np.setdiff1d(np.intersect1d(predictions.sent_id, split.sent_id), joined)
        cure = "Predict each ref once, under its first sent_id."
        refuse_expressions("Predicted separately, but the protocol joins the sentences of a ref", separate, cure)
    predictions = predictions.in_order_of(split, selected)
    no_peak = predictions.peak_row < 0
    if not no_peak.all():
        cure = "Give a peak for each, or none."
        refuse_expressions("Without a peak, while others have one", predictions.sent_id[no_peak], cure)
    return predictions


def _columns(names: Sequence[str], rows: Sequence[tuple[int, ...]]) -> dict[str, NDArray[np.int64]]:
    return dict(zip(names, np.array(rows, np.int64).reshape(-1, len(names)).T, strict=True))


def _no_target_columns(
    predictions: Predictions, index: Index, split: Split, protocol: Protocol
) -> dict[str, NDArray[np.int64]]:
    if protocol.score.no_target == "refused":
        return {}
    flags = np.array([index.num_objects(split.ann_id) == 0, predictions.predicts_no_target()], np.int64)
    return dict(zip(NoTargetFlags._fields, flags, strict=True))


def _count_pixels(predictions: Predictions, index: Index, split: Split, score_half: ScoreHalf) -> list[MaskCounts]:
    @lru_cache(maxsize=16)  # the expressions of a ref follow one another
    def ground_truth(ann_id: int, image_size: rle.Size) -> bytes:
        return score_half.ground_truth_mask(index, ann_id, image_size)

    peaks = zip(predictions.peak_row.tolist(), predictions.peak_col.tolist(), strict=True)
    return [
        metrics.count_pixels(mask, ground_truth(*target), size, None if peak[0] < 0 else peak)
        for (mask, size, target), peak in zip(_masks_and_targets(predictions, split), peaks, strict=True)
    ]


def _count_boundary_pixels(
    predictions: Predictions, index: Index, split: Split, score_half: ScoreHalf
) -> list[BoundaryCounts]:
    @lru_cache(maxsize=16)
    def boundary(ann_id: int, image_size: rle.Size) -> bytes:
        mask = score_half.ground_truth_mask(index, ann_id, image_size)
        return rle.boundary(mask, score_half.size(image_size), BOUNDARY_RATIO)

    return [
        metrics.count_boundary_pixels(rle.boundary(mask, size, BOUNDARY_RATIO), boundary(*target), size)
        for mask, size, target in _masks_and_targets(predictions, split)
    ]


def _masks_and_targets(
    predictions: Predictions, split: Split
) -> Iterator[tuple[bytes, rle.Size, tuple[int, rle.Size]]]:
    """Return the RLE of each prediction, its size, and the ann_id and image size of its expression."""
    sizes = zip(predictions.height.tolist(), predictions.width.tolist(), strict=True)
    image_sizes = zip(split.height.tolist(), split.width.tolist(), strict=True)
    targets = zip(split.ann_id.tolist(), image_sizes, strict=True)
    return zip(predictions.counts, sizes, targets, strict=True)


def _check_header(header: Header, dataset: str, split: str, protocol: Protocol) -> None:
    """Raise InputError for predictions of another data set or split, or under another input half."""
    stored = header.model_dump(mode="json", include={"input"})["input"]
    if stored:
        stored = {"cut_at": "scored", **stored}  # older files do not have it
    made = {"dataset": header.dataset, "split": header.split, **stored}
    if made.get("sentences") == "each" and protocol.input.sentences == "random":  # the drawn ones are among them
        made["sentences"] = "random"
    wanted = protocol.input.model_dump(mode="json")  # a colour is a list in a file, and a tuple in a protocol
    fixed = {field: value for field, value in wanted.items() if value != "recipe" and field in stored}
    for field, value in {"dataset": dataset, "split": split, **fixed}.items():
        if made[field] != value:
            raise InputError(
                f"The predictions were made with {field} {made[field]!r}, but are to be scored with {value!r}"
                f" (protocol {protocol.name!r}): give the {field} they were made with, or predict again."
            )


# sizes


def _at_scored_size(predictions: Predictions, split: Split, score_half: ScoreHalf) -> tuple[Predictions, bool]:
    """Resize masks of the image's size to the scored size, and tell whether any was resized.

    Raises InputError for any other size.
    """
    image = np.stack([split.height, split.width], axis=1)  # (N, 2)
    size = np.stack([predictions.height, predictions.width], axis=1)
    scored_at = score_half.scored_at
    scored = image if scored_at == "original" else np.broadcast_to(np.array(scored_at, np.int32), image.shape)
    fits = (size == scored).all(axis=1)
    _refuse_sizes(np.flatnonzero(~fits & (size != image).any(axis=1)), size, split, score_half)
    if fits.all():
        return predictions, False
    counts = list(predictions.counts)
    for row in np.flatnonzero(~fits):
        before, after = (tuple(sizes[row].tolist()) for sizes in (size, scored))
        counts[row] = rle.resize(counts[row], before, after, score_half.mask_resize)
    peak = np.stack([predictions.peak_row, predictions.peak_col], axis=1)
    moved = (2 * peak.astype(np.int64) + 1) * scored // (2 * size)  # the pixel under the centre of the old one
    peak_row, peak_col = np.where(peak < 0, peak, moved).astype(np.int32).T
    height, width = scored.T
    return replace(predictions, height=height, width=width, counts=counts, peak_row=peak_row, peak_col=peak_col), True


def _refuse_sizes(rows: NDArray[np.intp], size: NDArray[np.int32], split: Split, score_half: ScoreHalf) -> None:
    """Raise an InputError that names the first of these rows, if there are any."""
    if not len(rows):
        return
    first = ", ".join(
        f"sent_id {split.sent_id[i]} has {size[i][0]} x {size[i][1]}, its image {split.height[i]} x {split.width[i]}"
        for i in rows[:3]
    )
    if score_half.scored_at == "original":
        problem, cure = "differ in size from their images, at which this protocol scores", "the image's size"
    else:
        scored = f"{score_half.scored_at[0]} x {score_half.scored_at[1]}"
        problem = f"have neither the size of their images nor {scored}, at which this protocol scores"
        cure = f"{scored}, or of the image's size"
    raise InputError(f"{len(rows)} masks {problem}: {first}. Write masks of {cure} (height x width).")
