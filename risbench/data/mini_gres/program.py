"""The programs of `mini-gres`: those of `mini`, and three that several objects or none can meet.

["half", side, set]: the objects of a set in one half of the image. ["beside", relation, set, anchor]: the objects of a
set on one side of another object. ["union", object, object]: both objects. Where an object lies too near to the border
between inside and outside, the members are unknown.
"""

from __future__ import annotations

from collections.abc import Callable

from risbench.data.mini.language import Picture
from risbench.data.mini.program import GAP, RELATIONS, SIDES, Members, Program, evaluate


def members(program: Program, picture: Picture) -> Members | None:
    """Return the objects that a program refers to, rising; None if that is not clear."""
    name, *arguments = program
    if name in _OPERATIONS:
        return _OPERATIONS[name](arguments, picture)
    return evaluate(program, picture.things)


def _half(arguments: Program, picture: Picture) -> Members | None:
    side, inner = arguments
    right, down = SIDES[side]
    centres = {k: picture.things[k].centre for k in evaluate(inner, picture.things)}
    return _clearly_inside(
        {k: right * (x - picture.width) + down * (y - picture.height) for k, (x, y) in centres.items()}
    )


def _beside(arguments: Program, picture: Picture) -> Members | None:
    """Return the objects clearly to one side of the anchor; all others must lie clearly to the other side."""
    name, inner, anchor_program = arguments
    anchor = evaluate(anchor_program, picture.things)
    if len(anchor) != 1:
        return None
    (right, down), (x, y) = RELATIONS[name], picture.things[anchor[0]].centre
    centres = {k: picture.things[k].centre for k in evaluate(inner, picture.things) if k != anchor[0]}
    along = {k: right * (column - x) + down * (row - y) for k, (column, row) in centres.items()}
    inside = _clearly_inside(along)
    across = {k: abs(down * (column - x)) + abs(right * (row - y)) for k, (column, row) in centres.items()}
    return None if inside is None or any(2 * along[k] < 3 * across[k] for k in inside) else inside


def _clearly_inside(distances: dict[int, int]) -> Members | None:
    """Return the objects with a positive distance, in half pixels; None if one is near the border."""
    if any(abs(distance) < GAP for distance in distances.values()):
        return None
    return [k for k, distance in distances.items() if distance > 0]


def _union(arguments: Program, picture: Picture) -> Members | None:
    parts = [evaluate(argument, picture.things) for argument in arguments]
    joined = sorted({k for part in parts for k in part})
    return joined if all(len(part) == 1 for part in parts) and len(joined) == len(parts) else None


_OPERATIONS: dict[str, Callable[[Program, Picture], Members | None]] = {
    "half": _half,
    "beside": _beside,
    "union": _union,
}
