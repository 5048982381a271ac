"""Masks as COCO run-length encodings: the only file that imports pycocotools.

An RLE is the compressed string of pycocotools as bytes; its size (height, width) is passed along with it. A mask is a
(height, width) array of bool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

Size = tuple[int, int]  # height, width
Mask = NDArray[np.bool_]

_RESAMPLING = {"nearest": Image.Resampling.NEAREST}


def encode(mask: NDArray[Any]) -> bytes:
    """Encode a (height, width) mask; every non-zero pixel is foreground."""
    return bytes(coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))["counts"])


def decode(counts: bytes, size: Size) -> Mask:
    """Decode to a (height, width) array of bool."""
    return np.asarray(coco.decode(_rle(counts, size)), dtype=np.bool_)


def area(counts: bytes, size: Size) -> int:
    """Count the foreground pixels."""
    return int(coco.area(_rle(counts, size)))


def merge(masks: Sequence[bytes], size: Size, intersect: bool = False) -> bytes:
    """Return the union of masks of one size, or their intersection."""
    return bytes(coco.merge([_rle(counts, size) for counts in masks], intersect)["counts"])


def from_polygons(polygons: Sequence[Sequence[float]], size: Size) -> list[bytes]:
    """Rasterise polygons [x1, y1, x2, y2, ...] in pixels as the COCO API does; return one RLE for each."""
    return [bytes(rle["counts"]) for rle in coco.frPyObjects([list(p) for p in polygons], *size)]


def scale_polygons(polygons: Sequence[Sequence[float]], size: Size, to: Size) -> list[list[float]]:
    """Scale polygons on an image of `size` to the size `to`."""
    factors = (to[1] / size[1], to[0] / size[0])  # of x and y, which alternate
    return [[value * factors[i % 2] for i, value in enumerate(polygon)] for polygon in polygons]


def from_counts(counts: Sequence[int], size: Size) -> bytes:
    """Compress a list of run lengths (column by column, background first)."""
    return bytes(coco.frPyObjects({"size": list(size), "counts": list(counts)}, *size)["counts"])


def resize(counts: bytes, size: Size, to: Size, rule: Literal["nearest"]) -> bytes:
    """Resize a mask from `size` to `to` with PIL, whose nearest neighbour takes other pixels than torch's."""
    if size == to:
        return counts
    columns_first = coco.decode(_rle(counts, size)).T  # (width, height) in C order, as PIL reads it: no copy
    image = Image.fromarray(columns_first).resize(to, _RESAMPLING[rule])
    return bytes(coco.encode(np.asarray(image).T)["counts"])


def covers(counts: bytes, size: Size, row: int, column: int) -> bool:
    """Whether the pixel (row, column) is foreground, without decoding the mask."""
    before = column * size[0] + row
    pixel = from_counts([before, 1, size[0] * size[1] - before - 1], size)
    return area(merge([counts, pixel], size, intersect=True), size) == 1


def touches_border(counts: bytes, size: Size) -> bool:
    """Whether a foreground pixel lies in the first or last row or column."""
    left, top, width, height = coco.toBbox(_rle(counts, size))
    inside = left > 0 and top > 0 and left + width < size[1] and top + height < size[0]
    return bool(width > 0 and not inside)


def boundary(counts: bytes, size: Size, ratio: float) -> bytes:
    """Return the foreground within d pixels of the outline; pixels outside the image are background.

    d is `ratio` of the image's diagonal, rounded, at least 1. A foreground pixel belongs to the boundary unless the
    square of 2 d + 1 pixels around it is all foreground (Cheng et al., Boundary IoU, CVPR 2021: d erosions by 3 x 3
    pixels).
    """
    width = max(1, round(ratio * math.hypot(*size)))
    left, top, columns, rows = map(int, coco.toBbox(_rle(counts, size)))
    if not rows:
        return counts
    box = slice(top, top + rows), slice(left, left + columns)
    mask, side = decode(counts, size), 2 * width + 1
    margins = ((width + 1, width),) * 2
    padded = np.pad(mask[box].view(np.uint8), margins)
    sums = padded.cumsum(0, np.int32).cumsum(1, np.int32)  # over all pixels above and to the left
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side] == side * side
    mask[box] &= ~inside
    return encode(mask)


def count_pieces(counts: bytes, size: Size) -> int:
    """Count the connected pieces of the foreground; pixels that touch at a corner are connected."""
    first, last = _column_runs(counts, size)
    step = size[0] + 1  # to the next column, where a run touches the runs from `begin` to before `end`
    begin, end = np.searchsorted(last, first + step), np.searchsorted(first, last + step, side="right")
    parent = list(range(len(first)))  # for each run: itself, or another run of its piece

    def root(run: int) -> int:
        while parent[run] != run:
            run = parent[run]
        return run

    for run, touched in enumerate(map(range, begin.tolist(), end.tolist())):
        for other in touched:
            parent[root(other)] = root(run)
    return sum(run == other for run, other in enumerate(parent))


def _column_runs(counts: bytes, size: Size) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the start and the end of each foreground run of a column, as if columns were one pixel longer."""
    code = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    bounds = np.cumsum(_runs(code, np.flatnonzero(code < 32)))
    first, last = bounds[:-1:2], bounds[1::2]
    first, last = first[first < last], last[first < last]  # the last run may be empty
    columns = np.arange(1, size[1]) * size[0]
    cuts = columns[np.searchsorted(first, columns) > np.searchsorted(last, columns, side="right")]  # within a run
    first, last = np.sort(np.append(first, cuts)), np.sort(np.append(last, cuts))
    return first + first // size[0], last + (last - 1) // size[0]


def find_defect(counts: bytes, size: Size) -> str | None:
    """Describe what is wrong with an RLE of unknown origin, or return None; pycocotools may crash on a wrong one."""
    if size[0] * size[1] >= 1 << 32:
        return f"has {size[0]} x {size[1]} pixels, more than an RLE can count"
    code = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not code.size or code.min() < 0 or code.max() > 63:
        return "is not a compressed RLE string"
    ends = np.flatnonzero(code < 32)  # bit 5: the number continues; 5 bits a character, lowest first
    if not ends.size or ends[-1] != code.size - 1:
        return "ends within a number"
    if np.diff(ends, prepend=-1).max() > 7:
        return "holds a number beyond any image"
    return _runs_defect(_runs(code, ends), size)


def _runs(code: NDArray[np.int64], ends: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return the lengths of the runs, background first; `ends` are the positions of the last character of a number."""
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    digit = np.arange(code.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((code & 31) << 5 * digit, starts) - ((code[ends] & 16) >> 4 << 5 * lengths)
    runs[1::2] = np.cumsum(runs[1::2])  # from the fourth on, a number is the difference from the run two before
    runs[2::2] = np.cumsum(runs[2::2])
    return np.asarray(runs, np.int64)


def _runs_defect(runs: NDArray[np.int64], size: Size) -> str | None:
    if runs.min() < 0:
        return f"has a negative run (number {int(np.argmax(runs < 0)) + 1})"
    if runs.sum() != size[0] * size[1]:
        return f"has runs of {runs.sum()} pixels in all, not {size[0]} x {size[1]} = {size[0] * size[1]}"
    if not runs[1:-1].all():  # pycocotools stops merging if two masks have an empty run at one position
        return f"has an empty run (number {int(np.argmax(runs[1:-1] == 0)) + 2})"
    return None


def _rle(counts: bytes, size: Size) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}
