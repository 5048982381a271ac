"""Floors and ceilings: predictions without learning, for comparison with a method.

Floors do not read the expression: the whole image, the largest object, a random object. Two more are floors of the
no-target answer: one that always answers no-target, with an empty mask, and one that never does, with the whole image.
A ceiling (oracle) is the ground truth itself, seen through the grid of a network's output. The object references choose
among the annotated objects of an image; if its annotations are incomplete, they have fewer candidates and score higher
than they should. All predict at the size at which the protocol scores: objects are resized as ground truths are, and an
oracle uses the protocol's ground truth.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from risbench import __version__, errors
from risbench.data import rle
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.scoring import protocol as protocols
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.protocol import Protocol, ScoreHalf

PERMUTED_CONTROL = "expressions permuted within each image"  # the control a record names

Peak = tuple[int, int]  # row, column
MaskAndPeak = tuple[bytes, Peak]
Floats = NDArray[np.float64]

_ORIGINAL = protocols.load("original")
_NO_TARGET_ANSWERS = {"always-no-target": True, "never-no-target": False}
_ORACLE = re.compile(r"oracle-([1-9][0-9]{0,3})")


def names(no_target_rule: bool = True) -> list[str]:
    """Return the names of the references, with oracles for grids of 104 x 104 (416 / 4) and 120 x 120 (480 / 4).

    Without the rule for expressions without a target, those that are floors of this answer alone are left out.
    """
    floors = ["whole-image", "largest-object", "random-object", *(_NO_TARGET_ANSWERS if no_target_rule else ())]
    return [*floors, "oracle-104", "oracle-120"]


def check_name(name: str) -> None:
    """Raise InputError for an unknown reference."""
    if name not in names() and not _ORACLE.fullmatch(name):
        raise errors.unknown("reference", name, names(), "oracle-N takes any N.")


def predict(name: str, index: Index, split: str, seed: int = 0, protocol: Protocol = _ORIGINAL) -> Predictions:
    """Return the predictions of a reference; `oracle-N` takes any N, and only `random-object` depends on the seed."""
    check_name(name)
    score_half = protocol.score
    selected = protocol.input.select_expressions(index.split(split))
    image_sizes = list(zip(selected.height.tolist(), selected.width.tolist(), strict=True))
    ids = (selected.sent_id.tolist(), selected.ann_id.tolist(), selected.image_id.tolist())
    expressions = map(_Expression, *ids, image_sizes)
    predicted = [_predict_expression(name, expression, index, score_half, seed) for expression in expressions]
    header = Header(
        dataset=index.card.name,
        split=split,
        limit=index.limit,
        input={},
        scored_at=score_half.scored_at,
        method=f"reference/{name}",
        versions={"risbench": __version__},
    )
    sizes = [score_half.size(image_size) for image_size in image_sizes]
    masks, peaks = [mask for mask, _ in predicted], [peak for _, peak in predicted]
    answer = _NO_TARGET_ANSWERS.get(name)
    answers = None if answer is None else [answer] * len(selected)
    return Predictions.build(header, selected.sent_id.tolist(), sizes, masks, peaks, answers)


def permute_within_images(predictions: Predictions, split: Split, seed: int = 0) -> Predictions:
    """Exchange the predictions of each image among its expressions; a method that reads expressions falls to a floor.

    A random cyclic shift of a random order: no expression keeps its prediction unless it is alone in its image.
    """
    predictions = predictions.in_order_of(split)
    source = np.arange(len(split))
    for image_id in np.unique(split.image_id):
        rows = np.flatnonzero(split.image_id == image_id)
        generator = np.random.default_rng((seed, int(image_id)))
        generator.shuffle(rows)
        source[rows] = np.roll(rows, generator.integers(1, max(len(rows), 2)))
    return replace(predictions.take(source), sent_id=predictions.sent_id)


# one expression


class _Expression(NamedTuple):
    sent_id: int
    ann_id: int
    image_id: int
    image_size: rle.Size


def _predict_expression(
    name: str, expression: _Expression, index: Index, score_half: ScoreHalf, seed: int
) -> MaskAndPeak:
    sent_id, ann_id, image_id, image_size = expression
    size = score_half.size(image_size)
    oracle = _ORACLE.fullmatch(name)
    if oracle:
        return _oracle(score_half.ground_truth_mask(index, ann_id, image_size), size, int(oracle[1]))
    if name == "always-no-target":
        return rle.from_counts([size[0] * size[1]], size), (size[0] // 2, size[1] // 2)
    objects = [] if name in ("whole-image", "never-no-target") else index.candidates(image_id)
    if not objects:
        return _whole_image(size)
    if name == "largest-object":
        chosen = max(objects, key=lambda candidate: candidate.area)  # the first on ties
    else:  # another generator for each expression, so that a choice does not depend on the choices before it
        chosen = objects[np.random.default_rng((seed, sent_id)).integers(len(objects))]
    mask = _resized(chosen.counts, image_size, score_half)
    return mask, _middle(mask, size)


def _whole_image(size: rle.Size) -> MaskAndPeak:
    return rle.from_counts([0, size[0] * size[1]], size), (size[0] // 2, size[1] // 2)


@lru_cache(maxsize=64)  # the expressions of an image follow one another
def _resized(counts: bytes, image_size: rle.Size, score_half: ScoreHalf) -> bytes:
    return rle.resize(counts, image_size, score_half.size(image_size), score_half.mask_resize)


@lru_cache(maxsize=64)
def _middle(counts: bytes, size: rle.Size) -> Peak:
    """Return the pixel of a mask nearest to its centre of mass, the first in row order on ties."""
    rows, columns = np.nonzero(rle.decode(counts, size))
    if not len(rows):
        return size[0] // 2, size[1] // 2
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int(rows[nearest]), int(columns[nearest])


@lru_cache(maxsize=64)  # the expressions of a ref follow one another
def _oracle(truth: bytes, size: rle.Size, grid: int) -> MaskAndPeak:
    """Return the best prediction of a network with a grid x grid output that is stretched over the image."""
    coarse = _average_rows(_average_rows(rle.decode(truth, size).astype(np.float64), grid).T, grid)
    probability = _interpolate_rows(_interpolate_rows(coarse, size[1]).T, size[0])
    row, column = np.unravel_index(np.argmax(probability), size)
    return rle.encode(probability > 0.5), (int(row), int(column))


def _average_rows(rows: Floats, number: int) -> Floats:
    """Average rows over `number` equal areas, with rows at their borders in part: (h, w) -> (number, w)."""
    edges = np.linspace(0, len(rows), number + 1)
    inside = np.minimum(edges.astype(np.intp), len(rows) - 1)
    sums = np.concatenate([np.zeros_like(rows[:1]), np.cumsum(rows, axis=0)])
    sums_at_edges = sums[inside] + (edges - inside)[:, None] * rows[inside]
    return np.asarray(np.diff(sums_at_edges, axis=0) * (number / len(rows)), np.float64)


def _interpolate_rows(rows: Floats, number: int) -> Floats:
    """Interpolate rows linearly, align_corners=False: (n, w) -> (number, w)."""
    centres = np.clip((np.arange(number) + 0.5) * (len(rows) / number) - 0.5, 0, len(rows) - 1)
    low = centres.astype(np.intp)
    weight = (centres - low)[:, None]
    return np.asarray(rows[low] * (1 - weight) + rows[np.minimum(low + 1, len(rows) - 1)] * weight, np.float64)
