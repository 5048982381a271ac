"""The target of a ref: one annotation; in gRefCOCO also several, or no-target.

Each expression has one target id. The id of a single annotation is the annotation's. A set of several annotations of
an image, and no-target, have a negative id; the index holds them beside the annotations, with the union of their masks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic_core import PydanticCustomError, PydanticKnownError

NO_TARGET = -1  # the ann_id of a ref without a target, alone in its list, in the files of gRefCOCO
Target = tuple[int, tuple[int, ...]]  # an image, and annotations of it, rising; no annotations: no-target


def validate_ann_id(value: Any) -> list[int]:
    """Accept a whole number or a list of them, and return the list."""
    numbers: list[int] = value if isinstance(value, list) else [value]
    for number in numbers:
        if type(number) is not int:
            raise PydanticKnownError("int_type")
        if not NO_TARGET <= number < 2**63:
            raise PydanticCustomError("ann_id", "Input should be an id of an annotation, or -1 for no-target")
    return numbers


def annotation_ids(ann_id: list[int]) -> tuple[int, ...]:
    """Return the annotations of a ref, rising, each once; none for no-target."""
    ids = sorted(set(ann_id))
    return () if ids == [NO_TARGET] else tuple(ids)


def assign_ids(targets: Iterable[Target]) -> dict[Target, int]:
    """Assign an id to each target: the annotation's, or for a set and for no-target one below -1."""
    distinct = set(targets)
    sets = sorted(target for target in distinct if len(target[1]) != 1)
    single = {target: target[1][0] for target in distinct if len(target[1]) == 1}
    return single | {target: NO_TARGET - 1 - number for number, target in enumerate(sets)}
