"""The target of a ref: one annotation; in gRefCOCO also several, or no-target.

Each expression has one target id. The id of a single annotation is the annotation's. A set of several annotations of
an image, and no-target, have a negative id; the index holds them beside the annotations, with the union of their masks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pydantic_core import PydanticKnownError

NO_TARGET = [-1]  # ann_id of a ref without a target, in the files of gRefCOCO
Target = tuple[int, tuple[int, ...]]  # an image, and annotations of it, rising; no annotations: no-target


def validate_ann_id(value: Any) -> int | list[int]:
    """Accept a whole number, or a list of them."""
    for number in value if isinstance(value, list) else [value]:
        if type(number) is not int:
            raise PydanticKnownError("int_type")
    ann_id: int | list[int] = value
    return ann_id


def annotation_ids(ann_id: int | list[int]) -> tuple[int, ...]:
    """Return the annotations of a ref, rising; none for no-target."""
    if ann_id == NO_TARGET:
        return ()
    return tuple(sorted(ann_id)) if isinstance(ann_id, list) else (ann_id,)


def find_defect(ann_id: int | list[int], no_target: bool | None) -> str | None:
    """Describe what is wrong with the `ann_id` and `no_target` of a ref, or return None."""
    ids = annotation_ids(ann_id)
    if ann_id == []:
        return "an empty list of annotations, where [-1] stands for no-target"
    if len(set(ids)) < len(ids):
        return f"the annotations {ann_id}, one of them twice"
    if no_target and ids:
        return f"the annotations {ann_id}, though its no_target is true"
    if no_target is False and not ids:
        return "no annotation (ann_id [-1]), though its no_target is false"
    return None


def assign_ids(targets: Iterable[Target], taken: Collection[int]) -> dict[Target, int]:
    """Assign an id to each target: the annotation's, or for a set one below zero and below all that are taken."""
    distinct = set(targets)
    sets = sorted(target for target in distinct if len(target[1]) != 1)
    first = min([0, *taken]) - 2  # -1 stands for no-target in the files
    single = {target: target[1][0] for target in distinct if len(target[1]) == 1}
    return single | {target: first - number for number, target in enumerate(sets)}
