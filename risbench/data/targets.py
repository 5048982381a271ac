"""What a ref refers to: one annotation; in gRefCOCO also several, or none.

An expression has one target id. A single annotation is its own target. A set of several annotations of an image, or of
none, gets a negative id, and stands among the annotations with the union of their masks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticKnownError

from risbench.data import rle

NOTHING = [-1]  # what the files write where nothing is meant
Key = tuple[int, tuple[int, ...]]  # image, and its annotations, rising


@dataclass(frozen=True)
class Masks:
    """The masks of a target: the union of its parts, and the pixels that exactly one part of an annotation covers."""

    union: bytes
    once: bytes | None  # None: no parts overlap, so it is the union
    area: int


def ids(value: Any) -> int | list[int]:
    """Take a whole number, or a list of them."""
    for one in value if isinstance(value, list) else [value]:
        if type(one) is not int:
            raise PydanticKnownError("int_type")
    found: int | list[int] = value
    return found


def members(ann_id: int | list[int]) -> tuple[int, ...]:
    """The annotations that are meant, rising."""
    if ann_id == NOTHING:
        return ()
    return tuple(sorted(ann_id)) if isinstance(ann_id, list) else (ann_id,)


def defect(ann_id: int | list[int], no_target: bool | None) -> str | None:
    """Say what is wrong with the annotations that a ref names, and with whether it says that it means none."""
    meant = members(ann_id)
    if ann_id == []:
        return "an empty list of annotations, where [-1] says that nothing is meant"
    if len(set(meant)) < len(meant):
        return f"the annotations {ann_id}, one of them twice"
    if no_target and meant:
        return f"the annotations {ann_id}, though its no_target is true"
    if no_target is False and not meant:
        return "no annotation (ann_id [-1]), though its no_target is false"
    return None


def numbered(keys: Iterable[Key], taken: Collection[int]) -> dict[Key, int]:
    """The id of each target: of one annotation, its own; of a set, one below zero and below all that are taken."""
    distinct = set(keys)
    sets = sorted(key for key in distinct if len(key[1]) != 1)
    first = min([0, *taken]) - 2  # -1 is what the files write for nothing
    own = {key: key[1][0] for key in distinct if len(key[1]) == 1}
    return own | {key: first - place for place, key in enumerate(sets)}


def union(parts: Sequence[Masks], size: rle.Size) -> Masks:
    """Merge the masks of a set; without parts it is empty."""
    if not parts:
        return Masks(rle.from_counts([size[0] * size[1]], size), None, 0)
    whole = rle.merge([part.union for part in parts], size)
    once = None
    if any(part.once for part in parts):
        once = rle.merge([part.once or part.union for part in parts], size)
    return Masks(whole, once, rle.area(whole, size))
