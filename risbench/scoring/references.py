"""Floors and ceilings without learning, so that a number means something.

Floors know nothing of the expression: the whole image, the largest object, a random object. A ceiling is the ground
truth itself, seen through the grid of a network's output. The object references choose among the annotated objects of
an image; where its annotations are incomplete they know fewer candidates, and score higher than they should. All answer
at the size at which the protocol scores: objects are resized as the truth is, and a ceiling knows the protocol's truth.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from risbench import __version__, errors
from risbench.data import rle
from risbench.data.index import Candidate, Index, Split
from risbench.scoring import protocol as protocols
from risbench.scoring.predictions import Header, Predictions, build, in_order
from risbench.scoring.protocol import Protocol, ScoreHalf

PERMUTED = "expressions permuted within each image"  # the control a record names

Peak = tuple[int, int]
Answer = tuple[bytes, Peak]
Choice = Callable[[list[Candidate], int], Candidate]
Floats = NDArray[np.float64]

_ORIGINAL = protocols.load("original")
_ORACLE = re.compile(r"oracle-([1-9][0-9]{0,3})")


def names() -> list[str]:
    """Names of the references; of the oracles, those of a 104 x 104 grid (416 / 4) and a 120 x 120 one (480 / 4)."""
    return ["whole-image", "largest-object", "random-object", "oracle-104", "oracle-120"]


def check(name: str) -> None:
    """Refuse what names no reference."""
    if name not in names() and not _ORACLE.fullmatch(name):
        raise errors.unknown("reference", name, names(), "oracle-N takes any N.")


def predict(name: str, index: Index, split: str, seed: int = 0, protocol: Protocol = _ORIGINAL) -> Predictions:
    """The answers of a reference to a split; `oracle-N` takes any N, only `random-object` depends on the seed."""
    answer = _reference(name, index, seed, protocol.score)
    asked = protocol.input.asked(index.split(split))
    ids = zip(asked.sent_id.tolist(), asked.ann_id.tolist(), asked.image_id.tolist(), strict=True)
    sizes = list(zip(asked.height.tolist(), asked.width.tolist(), strict=True))
    answers = [answer(*entry, size) for entry, size in zip(ids, sizes, strict=True)]
    header = Header(
        dataset=index.card.name,
        split=split,
        input={},
        scored_at=protocol.score.scored_at,
        method=f"reference/{name}",
        versions={"risbench": __version__},
    )
    scored = [protocol.score.size(size) for size in sizes]
    return build(header, asked.sent_id.tolist(), scored, [mask for mask, _ in answers], [peak for _, peak in answers])


def permuted(predictions: Predictions, split: Split, seed: int = 0) -> Predictions:
    """Deal the predictions of each image out to its other expressions: a method that listens falls to a floor.

    A random cyclic shift of a random order: no expression keeps its own unless it is alone in its image.
    """
    own = in_order(predictions, split)
    source = np.arange(len(split))
    for image_id in np.unique(split.image_id):
        places = np.flatnonzero(split.image_id == image_id)
        generator = np.random.default_rng((seed, int(image_id)))
        generator.shuffle(places)
        source[places] = np.roll(places, generator.integers(1, max(len(places), 2)))
    return replace(own.take(source), sent_id=own.sent_id)


def _reference(name: str, index: Index, seed: int, rule: ScoreHalf) -> Callable[[int, int, int, rle.Size], Answer]:
    """What answers (sent_id, ann_id, image_id, size of the image)."""

    def largest(objects: list[Candidate], sent_id: int) -> Candidate:
        return max(objects, key=lambda thing: thing.area)  # the first on ties

    def drawn(objects: list[Candidate], sent_id: int) -> Candidate:
        return objects[np.random.default_rng((seed, sent_id)).integers(len(objects))]  # whatever was drawn before

    check(name)
    oracle = _ORACLE.fullmatch(name)
    if oracle:
        return lambda sent_id, ann_id, image_id, size: _oracle(
            rule.truth(index, ann_id, size), rule.size(size), int(oracle[1])
        )
    if name == "whole-image":
        return lambda sent_id, ann_id, image_id, size: _whole(rule.size(size))
    choose = largest if name == "largest-object" else drawn
    return lambda sent_id, ann_id, image_id, size: _object(index.candidates(image_id), sent_id, size, choose, rule)


@lru_cache(maxsize=64)  # the expressions of an image follow one another
def _scored(counts: bytes, size: rle.Size, rule: ScoreHalf) -> bytes:
    return rle.resized(counts, size, rule.size(size), rule.mask_resize)


def _whole(size: rle.Size) -> Answer:
    return rle.from_counts([0, size[0] * size[1]], size), (size[0] // 2, size[1] // 2)


def _object(objects: list[Candidate], sent_id: int, size: rle.Size, choose: Choice, rule: ScoreHalf) -> Answer:
    """One of the objects; the whole image where none is annotated."""
    if not objects:
        return _whole(rule.size(size))
    counts = _scored(choose(objects, sent_id).counts, size, rule)
    return counts, _middle(counts, rule.size(size))


@lru_cache(maxsize=64)
def _middle(counts: bytes, size: rle.Size) -> Peak:
    """The pixel of a mask that lies nearest to its centre of mass, the first in row order on ties."""
    rows, columns = np.nonzero(rle.decode(counts, size))
    if not len(rows):
        return size[0] // 2, size[1] // 2
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int(rows[nearest]), int(columns[nearest])


@lru_cache(maxsize=64)  # the expressions of a ref follow one another
def _oracle(truth: bytes, size: rle.Size, grid: int) -> Answer:
    """What a network that knew the truth could answer on a grid x grid output stretched over the image."""
    coarse = _averaged(_averaged(rle.decode(truth, size).astype(np.float64), grid).T, grid)
    probability = _interpolated(_interpolated(coarse, size[1]).T, size[0])
    row, column = np.unravel_index(np.argmax(probability), size)
    return rle.encode(probability > 0.5), (int(row), int(column))


def _averaged(rows: Floats, number: int) -> Floats:
    """Average rows over `number` equal areas, a row at a border counted in part: (h, w) -> (number, w)."""
    edges = np.linspace(0, len(rows), number + 1)
    inside = np.minimum(edges.astype(np.intp), len(rows) - 1)
    sums = np.concatenate([np.zeros_like(rows[:1]), np.cumsum(rows, axis=0)])
    at_edges = sums[inside] + (edges - inside)[:, None] * rows[inside]
    return np.asarray(np.diff(at_edges, axis=0) * (number / len(rows)), np.float64)


def _interpolated(rows: Floats, number: int) -> Floats:
    """Interpolate rows linearly, align_corners=False: (n, w) -> (number, w)."""
    centres = np.clip((np.arange(number) + 0.5) * (len(rows) / number) - 0.5, 0, len(rows) - 1)
    low = centres.astype(np.intp)
    weight = (centres - low)[:, None]
    return np.asarray(rows[low] * (1 - weight) + rows[np.minimum(low + 1, len(rows) - 1)] * weight, np.float64)
