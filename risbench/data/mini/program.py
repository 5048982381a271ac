"""The programs of `mini`: the meaning of an expression as a query on the objects of a scene.

A program is a nested list that JSON can hold. Sets: ["all"], ["filter", key, value, set], ["not", key, value, set],
["except", set, object]. One object: ["extreme", side, set], ["middle", set], ["ordinal", n, side, set],
["largest", set], ["smallest", set], [relation, set, anchor]. Every comparison needs a margin; without it the result is
empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from risbench.data.mini.scene import Thing

Program = list[Any]
Members = list[int]

GAP = 12  # half pixels between the centre of the referent and the next
RATIO = (3, 2)  # of areas that a word for a size tells apart

SIDES = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
RELATIONS = {"left_of": (-1, 0), "right_of": (1, 0), "above": (0, -1), "below": (0, 1), "nearest": (0, 0)}


def referent(program: Program, objects: Sequence[Thing]) -> int:
    """Return the number of the object that a program refers to."""
    members = evaluate(program, objects)
    if len(members) != 1:
        raise ValueError(f"{program} refers to {len(members)} objects, not one")
    return members[0]


def evaluate(program: Program, things: Sequence[Thing]) -> Members:
    """Return the members of the set, rising; empty if a comparison lacks its margin."""
    name, *arguments = program
    if name in RELATIONS:
        return _relation(name, arguments, things)
    return _OPERATIONS[name](arguments, things)


def _all(arguments: Program, things: Sequence[Thing]) -> Members:
    return list(range(len(things)))


def _filter(arguments: Program, things: Sequence[Thing]) -> Members:
    key, value, inner = arguments
    members = evaluate(inner, things)
    kept = [k for k in members if getattr(things[k], key) == value]
    return kept if key != "size" or _sizes_differ_clearly(kept, members, things) else []


def _sizes_differ_clearly(kept: Members, members: Members, things: Sequence[Thing]) -> bool:
    """Whether a word for a size divides a set clearly: no object of medium size, and no areas that are close."""
    others = [things[k].area for k in members if k not in kept]
    areas = [things[k].area for k in kept]
    if not areas or not others or any(things[k].size == "medium" for k in members):
        return False
    return _exceeds_clearly(min(areas), max(others)) or _exceeds_clearly(min(others), max(areas))


def _exceeds_clearly(area: int, other: int) -> bool:
    return area * RATIO[1] >= other * RATIO[0]


def _not(arguments: Program, things: Sequence[Thing]) -> Members:
    key, value, inner = arguments
    return [k for k in evaluate(inner, things) if getattr(things[k], key) != value]


def _except(arguments: Program, things: Sequence[Thing]) -> Members:
    members, excluded = (evaluate(argument, things) for argument in arguments)
    return [k for k in members if k not in excluded] if len(excluded) == 1 else []


def _extreme(arguments: Program, things: Sequence[Thing]) -> Members:
    side, inner = arguments
    ranked = _ranked(side, evaluate(inner, things), things)
    return ranked[:1] if _ranked_clearly(side, ranked[:2], things) else []


def _middle(arguments: Program, things: Sequence[Thing]) -> Members:
    """Return the middle object of an odd number of objects that lie in a row or in a column."""
    members = evaluate(arguments[0], things)
    spreads = {side: _spread(side, members, things) for side in ("left", "top")}
    side, across = ("left", "top") if spreads["left"] > spreads["top"] else ("top", "left")
    if len(members) < 3 or len(members) % 2 == 0 or spreads[side] < 2 * spreads[across]:
        return []
    return _ordinal([len(members) // 2 + 1, side, arguments[0]], things)


def _spread(side: str, members: Members, things: Sequence[Thing]) -> int:
    places = [_position_towards(side, things[k]) for k in members]
    return max(places, default=0) - min(places, default=0)


def _ordinal(arguments: Program, things: Sequence[Thing]) -> Members:
    number, side, inner = arguments
    ranked = _ranked(side, evaluate(inner, things), things)
    return ranked[number - 1 : number] if _ranked_clearly(side, ranked[: number + 1], things) else []


def _ranked(side: str, members: Members, things: Sequence[Thing]) -> Members:
    return sorted(members, key=lambda k: -_position_towards(side, things[k]))


def _position_towards(side: str, thing: Thing) -> int:
    """Return how far an object lies towards a side, in half pixels."""
    right, down = SIDES[side]
    return right * thing.centre[0] + down * thing.centre[1]


def _ranked_clearly(side: str, ranked: Members, things: Sequence[Thing]) -> bool:
    places = [_position_towards(side, things[k]) for k in ranked]
    return all(first - second >= GAP for first, second in zip(places, places[1:], strict=False))


def _largest(arguments: Program, things: Sequence[Thing]) -> Members:
    members = evaluate(arguments[0], things)
    return [k for k in members if all(_is_larger(things[k], things[other]) for other in members if other != k)]


def _smallest(arguments: Program, things: Sequence[Thing]) -> Members:
    members = evaluate(arguments[0], things)
    return [k for k in members if all(_is_larger(things[other], things[k]) for other in members if other != k)]


def _is_larger(thing: Thing, other: Thing) -> bool:
    """Whether an object is larger than another, both as a whole and in its visible part."""
    order = ("small", "medium", "large")
    return order.index(thing.size) > order.index(other.size) and _exceeds_clearly(thing.area, other.area)


def _relation(name: str, arguments: Program, things: Sequence[Thing]) -> Members:
    members, anchor = (evaluate(argument, things) for argument in arguments)
    if len(anchor) != 1:
        return []
    others = [k for k in members if k != anchor[0]]
    offsets = {k: _offset(things[k], things[anchor[0]]) for k in others}
    return _nearest(offsets) if name == "nearest" else _towards(name, offsets)


def _offset(thing: Thing, anchor: Thing) -> tuple[int, int]:
    return thing.centre[0] - anchor.centre[0], thing.centre[1] - anchor.centre[1]


def _nearest(offsets: dict[int, tuple[int, int]]) -> Members:
    """Return the nearest object, if the next is at least half as far again."""
    squares = sorted((x * x + y * y, k) for k, (x, y) in offsets.items())
    if len(squares) < 2 or 4 * squares[1][0] < 9 * squares[0][0]:
        return []
    return [squares[0][1]]


def _towards(name: str, offsets: dict[int, tuple[int, int]]) -> Members:
    """Return the only object on that side of the anchor, if it lies clearly more to that side than to another."""
    right, down = RELATIONS[name]
    along = {k: right * x + down * y for k, (x, y) in offsets.items()}
    across = {k: abs(down * x) + abs(right * y) for k, (x, y) in offsets.items()}
    side = [k for k in offsets if 3 * along[k] > GAP]
    return [k for k in side if along[k] >= GAP and 2 * along[k] >= 3 * across[k]] if len(side) == 1 else []


_OPERATIONS: dict[str, Callable[[Program, Sequence[Thing]], Members]] = {
    "all": _all,
    "filter": _filter,
    "not": _not,
    "except": _except,
    "extreme": _extreme,
    "middle": _middle,
    "ordinal": _ordinal,
    "largest": _largest,
    "smallest": _smallest,
}
