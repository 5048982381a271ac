"""Predictions x data set -> one row of integers for each expression -> metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench.data import rle
from risbench.data.index import Index, Split
from risbench.errors import InputError
from risbench.scoring import metrics, slices
from risbench.scoring import protocol as protocols
from risbench.scoring.predictions import Header, Predictions, in_order, refuse
from risbench.scoring.protocol import Protocol, ScoreHalf


@dataclass(frozen=True)
class Score:
    """The rows of a predictions file and what they come to."""

    rows: pd.DataFrame
    summary: dict[str, Any]  # what --json prints


def score(predictions: Predictions, index: Index, split: str, protocol: Protocol, boundaries: bool = False) -> Score:
    """Score predictions on a split; the summary holds percentages as floats. Boundaries take nine times as long."""
    table, resized = _rows(predictions, index, split, protocol, boundaries)
    sums = metrics.Sums.of(table, protocol.score)
    summary: dict[str, Any] = {"dataset": index.card.name, "split": split, "protocol": protocol.name, "n": sums.n}
    summary |= {**metrics.compute(sums), "intersection": sums.intersection, "union": sums.union}
    if index.partial:
        summary["partial"] = True
    if resized:
        summary["resized"] = True
    summary["slices"] = slices.measure(table, protocol)
    return Score(table, summary)


def suitable(index: Index, split: str) -> list[Protocol]:
    """All protocols; where every expression has a target, without those with a rule for expressions that have none."""
    aimed = bool(index.meant(index.split(split).ann_id)[0].all())
    known = map(protocols.load, protocols.names())
    return [one for one in known if one.score.no_target == "refused" or not aimed]


def under_all(predictions: Predictions, index: Index, split: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Summaries under every protocol that can score predictions, and why each of the others cannot."""
    summaries, refused = [], {}
    for chosen in suitable(index, split):
        try:
            summaries.append(score(predictions, index, split, chosen).summary)
        except InputError as error:
            refused[chosen.name] = str(error)
    if not summaries:  # the default comes first
        raise InputError(next(iter(refused.values())))
    return summaries, refused


def rows(predictions: Predictions, index: Index, split: str, protocol: Protocol) -> pd.DataFrame:
    """One row for each expression that is asked, in the order of the split: ids, `metrics.Counts`, its slices."""
    return _rows(predictions, index, split, protocol, False)[0]


def _rows(
    predictions: Predictions, index: Index, split: str, protocol: Protocol, boundaries: bool
) -> tuple[pd.DataFrame, bool]:
    """The rows, and whether any mask was resized for them."""
    whole = index.split(split)
    check_targets(index, [split], [protocol])
    truths = protocol.input.asked(whole)
    if predictions.header:
        _check_header(predictions.header, index.card.name, split, protocol)
    if protocol.input.sentences == "joined":
        alone = np.setdiff1d(np.intersect1d(predictions.sent_id, whole.sent_id), truths.sent_id)
        cure = "Answer each ref once, under its first sent_id."
        refuse("Answered alone, where the protocol joins the sentences of a ref", alone, cure)
    predictions = in_order(predictions, whole, truths)
    _check_peaks(predictions)
    said = predictions.says_nothing() if protocol.score.no_target == "scored" else None
    predictions, resized = _at_scored_size(predictions, truths, protocol.score)
    ids = {"sent_id": truths.sent_id, "ref_id": truths.ref_id, "image_id": truths.image_id}
    counts = np.array(_counts(predictions, index, truths, protocol), np.int64).reshape(-1, len(metrics.Counts._fields))
    columns = dict(zip(metrics.Counts._fields, counts.T, strict=True))
    if boundaries:
        edges = np.array(_edges(predictions, index, truths, protocol), np.int64).reshape(-1, len(metrics.Edges._fields))
        columns |= dict(zip(metrics.Edges._fields, edges.T, strict=True))
    if said is not None:  # before resizing, which may lose the last pixel of a mask
        meant, _ = index.meant(truths.ann_id)
        columns |= dict(zip(metrics.Nothing._fields, np.array([meant == 0, said], np.int64), strict=True))
    table = pd.DataFrame({**ids, **columns, **slices.labels(index, truths)})
    return table.astype({"peak_hit": np.int8}), resized


def check_targets(index: Index, splits: Iterable[str], asked: Iterable[Protocol]) -> None:
    """Refuse splits with expressions that mean nothing under protocols that have no rule for them."""
    without = [protocol.name for protocol in asked if protocol.score.no_target == "refused"]
    for split in splits if without else ():
        objects, _ = index.meant(index.split(split).ann_id)
        if nothing := int((objects == 0).sum()):
            able = [name for name in protocols.names() if protocols.load(name).score.no_target == "scored"]
            raise InputError(
                f"{nothing} of {len(objects)} expressions of {index.card.name} {split} mean nothing in their image, for"
                f" which the protocol {without[0]!r} has no rule: give --protocol {able[0]}."
            )


def _counts(predictions: Predictions, index: Index, split: Split, protocol: Protocol) -> list[metrics.Counts]:
    rule = protocol.score

    @lru_cache(maxsize=16)  # the expressions of a ref follow one another
    def truth(ann_id: int, original: rle.Size) -> bytes:
        return rule.truth(index, ann_id, original)

    peaks = zip(predictions.peak_row.tolist(), predictions.peak_col.tolist(), strict=True)
    originals = zip(split.height.tolist(), split.width.tolist(), strict=True)
    sizes = zip(predictions.height.tolist(), predictions.width.tolist(), strict=True)
    given = zip(predictions.counts, split.ann_id.tolist(), originals, sizes, peaks, strict=True)
    return [
        metrics.count(counts, truth(ann_id, original), size, None if peak[0] < 0 else peak)
        for counts, ann_id, original, size, peak in given
    ]


def _edges(predictions: Predictions, index: Index, split: Split, protocol: Protocol) -> list[metrics.Edges]:
    @lru_cache(maxsize=16)
    def truth(ann_id: int, original: rle.Size) -> bytes:
        size = protocol.score.size(original)
        return rle.boundary(protocol.score.truth(index, ann_id, original), size, metrics.RATIO)

    originals = zip(split.height.tolist(), split.width.tolist(), strict=True)
    sizes = zip(predictions.height.tolist(), predictions.width.tolist(), strict=True)
    given = zip(predictions.counts, split.ann_id.tolist(), originals, sizes, strict=True)
    return [
        metrics.edges(rle.boundary(counts, size, metrics.RATIO), truth(ann_id, original), size)
        for counts, ann_id, original, size in given
    ]


def _check_header(header: Header, dataset: str, split: str, protocol: Protocol) -> None:
    """Refuse a file made for something else than what it is scored as."""
    given = header.model_dump(mode="json", include={"input"})["input"]
    if given:
        given = {"cut_at": "scored", **given}  # which older files do not say
    wanted = protocol.input.model_dump(mode="json")  # a colour is a list in a file, and a tuple in a protocol
    asked = {"dataset": dataset, "split": split} | {
        field: value for field, value in wanted.items() if value != "recipe" and field in given
    }
    made = {"dataset": header.dataset, "split": header.split, **given}
    if made.get("sentences") == "each" and protocol.input.sentences == "random":  # also answers what is drawn
        made["sentences"] = "random"
    for field, value in asked.items():
        if made[field] != value:
            raise InputError(
                f"The predictions were made with {field} {made[field]!r}, but are to be scored with {value!r}"
                f" (protocol {protocol.name!r}): give the {field} they were made with, or predict again."
            )


def _at_scored_size(predictions: Predictions, split: Split, rule: ScoreHalf) -> tuple[Predictions, bool]:
    """Resize what has the size of its image where the protocol scores at another; any other size is refused."""
    own = np.stack([split.height, split.width], axis=1)  # (N, 2)
    given = np.stack([predictions.height, predictions.width], axis=1)
    wanted = own if rule.scored_at == "original" else np.broadcast_to(np.array(rule.scored_at, np.int32), own.shape)
    fits = (given == wanted).all(axis=1)
    _refuse_sizes(np.flatnonzero(~fits & (given != own).any(axis=1)), given, split, rule)
    if fits.all():
        return predictions, False
    counts = list(predictions.counts)
    for place in np.flatnonzero(~fits):
        size, to = (tuple(pair[place].tolist()) for pair in (given, wanted))
        counts[place] = rle.resized(counts[place], size, to, rule.mask_resize)
    peak = np.stack([predictions.peak_row, predictions.peak_col], axis=1)
    under = (2 * peak.astype(np.int64) + 1) * wanted // (2 * given)  # the pixel under the centre of the old one
    row, column = np.where(peak < 0, peak, under).astype(np.int32).T
    height, width = wanted.T
    return replace(predictions, height=height, width=width, counts=counts, peak_row=row, peak_col=column), True


def _refuse_sizes(wrong: NDArray[np.intp], given: NDArray[np.int32], split: Split, rule: ScoreHalf) -> None:
    if not len(wrong):
        return
    first = ", ".join(
        f"sent_id {split.sent_id[i]} has {given[i][0]} x {given[i][1]}, its image {split.height[i]} x {split.width[i]}"
        for i in wrong[:3]
    )
    if rule.scored_at == "original":
        what, cure = "differ in size from their images, at which this protocol scores", "the image's size"
    else:
        size = f"{rule.scored_at[0]} x {rule.scored_at[1]}"
        what = f"have neither the size of their images nor {size}, at which this protocol scores"
        cure = f"{size}, or of the image's size"
    raise InputError(f"{len(wrong)} masks {what}: {first}. Write masks of {cure} (height x width).")


def _check_peaks(predictions: Predictions) -> None:
    without = predictions.peak_row < 0
    if not without.all():
        refuse("Without a peak, while others have one", predictions.sent_id[without], "Give a peak for each, or none.")
