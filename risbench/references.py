"""Floors and ceilings without learning, so that a number means something.

Floors know nothing of the expression: the whole image, the largest object, a random object. A ceiling is the ground
truth itself, seen through the grid of a network's output. The object references choose among the annotated objects of
an image; where its annotations are incomplete they know fewer candidates, and score higher than they should.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from risbench import __version__, errors, rle
from risbench.data.index import Index, Split
from risbench.predictions import Header, Predictions, build, in_order

PERMUTED = "expressions permuted within each image"  # the control a record names

Peak = tuple[int, int]
Answer = tuple[bytes, Peak]
Floats = NDArray[np.float64]


def names() -> list[str]:
    """Names of the references; of the oracles, those of a 104 x 104 grid (416 / 4) and a 120 x 120 one (480 / 4)."""
    return ["whole-image", "largest-object", "random-object", "oracle-104", "oracle-120"]


def predict(name: str, index: Index, split: str, seed: int = 0) -> Predictions:
    """The answers of a reference to a split; `oracle-N` takes any N, only `random-object` depends on the seed."""
    answer = _reference(name, index, seed)
    asked = index.split(split)
    ids = zip(asked.sent_id.tolist(), asked.ann_id.tolist(), asked.image_id.tolist(), strict=True)
    sizes = list(zip(asked.height.tolist(), asked.width.tolist(), strict=True))
    answers = [answer(*entry, size) for entry, size in zip(ids, sizes, strict=True)]
    header = Header(
        dataset=index.card.name,
        split=split,
        input={},
        method=f"reference/{name}",
        versions={"risbench": __version__},
    )
    return build(header, asked.sent_id.tolist(), sizes, [mask for mask, _ in answers], [peak for _, peak in answers])


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


def _reference(name: str, index: Index, seed: int) -> Callable[[int, int, int, rle.Size], Answer]:
    """What answers (sent_id, ann_id, image_id, size)."""
    oracle = re.fullmatch(r"oracle-([1-9][0-9]{0,3})", name)
    if oracle:
        return lambda sent_id, ann_id, image_id, size: _oracle(index.truth(ann_id, "union"), size, int(oracle[1]))
    if name == "whole-image":
        return lambda sent_id, ann_id, image_id, size: _whole(size)
    if name == "largest-object":
        return lambda sent_id, ann_id, image_id, size: _largest(index, image_id, size)
    if name == "random-object":
        return lambda sent_id, ann_id, image_id, size: _random(index, image_id, size, (seed, sent_id))
    raise errors.unknown("reference", name, names(), "oracle-N takes any N.")


def _whole(size: rle.Size) -> Answer:
    return rle.from_counts([0, size[0] * size[1]], size), (size[0] // 2, size[1] // 2)


def _largest(index: Index, image_id: int, size: rle.Size) -> Answer:
    """The object with the largest mask, the first on ties; the whole image where none is annotated."""
    objects = index.candidates(image_id)
    if not objects:
        return _whole(size)
    largest = max(objects, key=lambda thing: thing.area)
    return largest.counts, _middle(largest.counts, size)


def _random(index: Index, image_id: int, size: rle.Size, seed: tuple[int, int]) -> Answer:
    """Any object with equal chance, whatever was drawn before; the whole image where none is annotated."""
    objects = index.candidates(image_id)
    if not objects:
        return _whole(size)
    drawn = objects[np.random.default_rng(seed).integers(len(objects))]
    return drawn.counts, _middle(drawn.counts, size)


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
