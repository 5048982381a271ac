"""Segmentations of annotation files (polygons or run lengths): their defects, and the masks that they describe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from risbench.data import rle

_MAX_COORDINATE = 1e5  # pixels; pycocotools would fill the memory with the outline of a polygon beyond it


@dataclass(frozen=True)
class Masks:
    """The masks of an annotation or of a target under both rules for ground truth, as RLEs."""

    union: bytes
    once: bytes | None  # pixels that exactly one part of an annotation covers; None: no parts overlap, equal to union
    area: int  # pixels of the union


def find_defect(segmentation: Any, size: rle.Size) -> str | None:
    """Describe what is wrong with a segmentation, or return None; pycocotools may crash on one with a defect."""
    if isinstance(segmentation, dict):
        return _rle_defect(segmentation, size)
    if not isinstance(segmentation, list):
        return "has no segmentation"
    if defect := next(filter(None, map(_polygon_defect, segmentation)), None):
        return defect
    return None if closed_polygons(segmentation) else "has no polygon of three points or more"


def _rle_defect(segmentation: dict[str, Any], size: rle.Size) -> str | None:
    counts = segmentation.get("counts")
    if segmentation.get("size") != list(size):
        return f"has a mask of size {segmentation.get('size')} on an image of size {list(size)} (height, width)"
    if isinstance(counts, str):
        defect = rle.find_defect(counts.encode(), size)
        return f"has a broken mask ({defect})" if defect else None
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        return "has a mask whose counts are neither a string nor a list of run lengths"
    if sum(counts) != size[0] * size[1]:
        return f"has a mask whose runs add up to {sum(counts)} pixels instead of {size[0]} x {size[1]}"
    return None


def _polygon_defect(polygon: Any) -> str | None:
    if not isinstance(polygon, list) or len(polygon) % 2:
        return "has a polygon that is not a list of x, y, x, y, ..."
    try:
        lowest, highest = min(polygon, default=0), max(polygon, default=0)
        if math.isfinite(sum(polygon)) and lowest > -_MAX_COORDINATE and highest < _MAX_COORDINATE:
            return None
    except TypeError:
        return "has a polygon with something else than numbers in it"
    return "has a polygon that runs far out of its image"


def closed_polygons(polygons: list[list[float]]) -> list[list[float]]:
    """Leave out points and lines, which enclose no area; pycocotools reads four numbers as a box."""
    return [polygon for polygon in polygons if len(polygon) >= 6]


def outlines(segmentation: Any) -> list[list[float]] | None:
    """Return the polygons of a segmentation, or None for run lengths."""
    return closed_polygons(segmentation) if isinstance(segmentation, list) else None


def rasterise(segmentation: Any, size: rle.Size) -> Masks:
    """Draw a segmentation without defects on an image of `size` (height, width)."""
    if isinstance(segmentation, dict):
        mask = _compressed(segmentation["counts"], size)
        return Masks(mask, None, rle.area(mask, size))
    parts = rle.from_polygons(closed_polygons(segmentation), size)
    if len(parts) == 1:
        return Masks(parts[0], None, rle.area(parts[0], size))
    union = rle.merge(parts, size)
    area = rle.area(union, size)
    overlap = area < sum(rle.area(part, size) for part in parts)
    return Masks(union, _covered_once(parts, size) if overlap else None, area)


def merge(masks: Sequence[Masks], size: rle.Size) -> Masks:
    """Merge the masks of several annotations; the merge of none is empty."""
    if not masks:
        return Masks(rle.from_counts([size[0] * size[1]], size), None, 0)
    union = rle.merge([mask.union for mask in masks], size)
    once = None
    if any(mask.once for mask in masks):
        once = rle.merge([mask.once or mask.union for mask in masks], size)
    return Masks(union, once, rle.area(union, size))


def _compressed(counts: str | list[int], size: rle.Size) -> bytes:
    """Compress run lengths as pycocotools does: its merge stops at empty runs, which a list may hold."""
    if isinstance(counts, str):
        return counts.encode()
    return rle.encode(rle.decode(rle.from_counts(counts, size), size))


def _covered_once(parts: Sequence[bytes], size: rle.Size) -> bytes:
    """Pixels that exactly one part covers: what `mask == 1` in the released code of LAVT keeps."""
    times = sum(rle.decode(part, size).view(np.uint8) for part in parts)
    return rle.encode(np.asarray(times == 1))
