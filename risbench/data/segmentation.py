"""Segmentations of annotation files (polygons or run lengths): their defects, and the masks that they describe."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from risbench.data import rle

MAX_COORDINATE = 100_000  # pixels
MAX_POLYGONS = 10_000  # of an annotation: the time of their union grows with the square
MAX_OUTLINE = 1 << 20  # pixels, of all polygons of an annotation: pycocotools takes 120 bytes for each
_NUMBERS = {int, float}


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
    return _polygons_defect(segmentation)


def _rle_defect(segmentation: dict[str, Any], size: rle.Size) -> str | None:
    counts, pixels = segmentation.get("counts"), size[0] * size[1]
    if segmentation.get("size") != list(size):
        shown = reprlib.repr(segmentation.get("size"))
        return f"has a mask of size {shown} on an image of size {list(size)} (height, width)"
    if isinstance(counts, str):
        defect = rle.find_defect(counts.encode(errors="surrogatepass"), size)
        return f"has a broken mask ({defect})" if defect else None
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        return "has a mask whose counts are neither a string nor a list of run lengths"
    if max(counts, default=0) > pixels:
        return f"has a mask with a run of more than the {pixels} pixels of its image"
    if sum(counts) != pixels:
        return f"has a mask whose runs add up to {sum(counts)} pixels instead of {size[0]} x {size[1]}"
    return None


def _polygons_defect(polygons: list[Any]) -> str | None:
    if len(polygons) > MAX_POLYGONS:
        return f"has {len(polygons):,} polygons, more than {MAX_POLYGONS:,}"
    longest = 0.0  # pixels that the outlines have at most
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return "has a polygon that is not a list of x, y, x, y, ..."
        if not _NUMBERS.issuperset(map(type, polygon)):
            return "has a polygon with something else than numbers in it"
        lowest, highest = min(polygon, default=0), max(polygon, default=0)
        if not (lowest > -MAX_COORDINATE and highest < MAX_COORDINATE and math.isfinite(sum(polygon))):
            return "has a polygon that runs far out of its image"
        longest += len(polygon) * (highest - lowest)
    if longest > MAX_OUTLINE and sum(map(_outline, polygons)) > MAX_OUTLINE:
        return f"has polygons with an outline of more than {MAX_OUTLINE:,} pixels"
    return None if closed_polygons(polygons) else "has no polygon of three points or more"


def _outline(polygon: list[float]) -> float:
    """Return the length of the sides of a polygon in pixels, as pycocotools draws them."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) if len(points) else 0.0


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
    return Masks(union, rle.covered_once(parts, size) if overlap else None, area)


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
    return counts.encode() if isinstance(counts, str) else rle.from_counts(counts, size)
