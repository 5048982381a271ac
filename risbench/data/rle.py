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

MAX_PIXELS = 89_478_485  # of an image or a mask, as in Pillow
MAX_CHARACTERS = 1 << 24  # of a compressed RLE; noise over 4096 x 4096 pixels has fewer

_RESAMPLING = {"nearest": Image.Resampling.NEAREST}


def encode(mask: NDArray[Any]) -> bytes:
    """Encode a (height, width) mask; every non-zero pixel is foreground."""
    foreground = mask if mask.dtype == np.bool_ else mask != 0
    return bytes(coco.encode(np.asfortranarray(foreground).view(np.uint8))["counts"])


def decode(counts: bytes, size: Size) -> Mask:
    """Decode to a (height, width) array of bool."""
    mask: Mask = coco.decode(_rle(counts, size)).view(np.bool_)
    return mask


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
    """Compress a list of run lengths (column by column, background first); empty runs are written out of it."""
    ends, times = np.unique(np.cumsum(np.asarray(counts, np.int64)), return_counts=True)
    return _from_edges(ends[times % 2 == 1], size)  # two runs that end at one pixel have an empty one between them


def covered_once(masks: Sequence[bytes], size: Size) -> bytes:
    """Return the pixels that exactly one of several masks covers."""
    ends = [_run_ends(counts) for counts in masks]
    edges = np.concatenate([*(each[::2] for each in ends), *(each[1::2] for each in ends)])
    enters = np.arange(len(edges)) < sum(len(each[::2]) for each in ends)  # a background run ends where a mask begins
    positions, place = np.unique(edges, return_inverse=True)
    change = np.bincount(place[enters], minlength=len(positions)) - np.bincount(
        place[~enters], minlength=len(positions)
    )
    once = np.cumsum(change) == 1
    return _from_edges(positions[once != np.append(False, once[:-1])], size)


def _from_edges(edges: NDArray[np.int64], size: Size) -> bytes:
    """Compress a mask whose foreground begins or ends at each of these pixels, which rise."""
    pixels = size[0] * size[1]
    return _compressed(np.diff(edges[edges < pixels], prepend=0, append=pixels).tolist(), size)


def _compressed(runs: list[int], size: Size) -> bytes:
    return bytes(coco.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"])


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
    pixel = _compressed([before, 1, size[0] * size[1] - before - 1], size)
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
    from scipy import ndimage  # takes a quarter of a second, and hardly any command needs it

    width = max(1, round(ratio * math.hypot(*size)))
    mask = decode(counts, size)
    object_ = mask[_bounding_box(counts, size)]
    eroded = ndimage.minimum_filter(object_.view(np.uint8), 2 * width + 1, mode="constant", cval=0)
    object_ &= eroded == 0
    return encode(mask)


def count_pieces(counts: bytes, size: Size) -> int:
    """Count the connected pieces of the foreground; pixels that touch at a corner are connected."""
    from scipy import ndimage  # as above

    object_ = decode(counts, size)[_bounding_box(counts, size)]
    return int(ndimage.label(object_, structure=np.ones((3, 3)))[1])


def _bounding_box(counts: bytes, size: Size) -> tuple[slice, slice]:
    """Return the rows and the columns that hold the foreground."""
    left, top, columns, rows = map(int, coco.toBbox(_rle(counts, size)))
    return slice(top, top + rows), slice(left, left + columns)


def find_defect(counts: bytes, size: Size) -> str | None:
    """Describe what is wrong with an RLE of unknown origin, or return None; pycocotools may crash on a wrong one."""
    if size[0] * size[1] > MAX_PIXELS:
        return f"has {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,}"
    if len(counts) > MAX_CHARACTERS:
        return f"has an RLE of {len(counts):,} characters, more than {MAX_CHARACTERS:,}"
    code = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not code.size or code.min() < 0 or code.max() > 63:
        return "is not a compressed RLE string"
    ends = np.flatnonzero(code < 32)  # bit 5: the number continues; 5 bits a character, lowest first
    if not ends.size or ends[-1] != code.size - 1:
        return "ends within a number"
    if np.diff(ends, prepend=-1).max() > 7:
        return "holds a number beyond any image"
    return _runs_defect(_runs(code, ends), size)


def _run_ends(counts: bytes) -> NDArray[np.int64]:
    """Return the pixel behind each run of an RLE without a defect, column by column."""
    code = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    return np.cumsum(_runs(code, np.flatnonzero(code < 32)))


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
