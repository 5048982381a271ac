"""The programs of `mini`: what an expression means, and which object that is.

A program is a nested list that JSON can hold. Sets: ["all"], ["filter", key, value, set], ["not", key, value, set],
["except", set, one]. One object: ["extreme", side, set], ["middle", set], ["ordinal", n, side, set], ["largest", set],
["smallest", set], [relation, set, anchor]. Every comparison has a margin: too close to call, and nothing is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from risbench.data.mini.scene import Thing

Program = list[Any]
Members = list[int]

GAP = 12  # half pixels between the centre that is meant and the next
RATIO = (3, 2)  # of areas that differ in words

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
    """The number of the one object that a program means."""
    members = evaluate(program, objects)
    if len(members) != 1:
        raise ValueError(f"{program} means {len(members)} objects, not one")
    return members[0]


def evaluate(program: Program, things: Sequence[Thing]) -> Members:
    """Members of the set, rising; one that is too close to call is empty."""
    name, *arguments = program
    if name in RELATIONS:
        return _relation(name, arguments, things)
    return _OPERATIONS[name](arguments, things)


def _all(arguments: Program, things: Sequence[Thing]) -> Members:
    return list(range(len(things)))


def _filter(arguments: Program, things: Sequence[Thing]) -> Members:
    key, value, rest = arguments
    members = evaluate(rest, things)
    kept = [k for k in members if getattr(things[k], key) == value]
    return kept if key != "size" or _apart(kept, members, things) else []


def _apart(kept: Members, members: Members, things: Sequence[Thing]) -> bool:
    """Whether a word for a size parts a set clearly: nothing of middle size, and no areas that are close."""
    others = [things[k].area for k in members if k not in kept]
    areas = [things[k].area for k in kept]
    if not areas or not others or any(things[k].size == "medium" for k in members):
        return False
    return _exceeds(min(areas), max(others)) or _exceeds(min(others), max(areas))


def _exceeds(area: int, other: int) -> bool:
    return area * RATIO[1] >= other * RATIO[0]


def _not(arguments: Program, things: Sequence[Thing]) -> Members:
    key, value, rest = arguments
    return [k for k in evaluate(rest, things) if getattr(things[k], key) != value]


def _except(arguments: Program, things: Sequence[Thing]) -> Members:
    rest, one = (evaluate(argument, things) for argument in arguments)
    return [k for k in rest if k not in one] if len(one) == 1 else []


def _extreme(arguments: Program, things: Sequence[Thing]) -> Members:
    side, rest = arguments
    ranked = _ranked(side, evaluate(rest, things), things)
    return ranked[:1] if _clear(side, ranked[:2], things) else []


def _middle(arguments: Program, things: Sequence[Thing]) -> Members:
    """The middle of an odd number that lie in a row or in a column."""
    members = evaluate(arguments[0], things)
    spreads = {side: _spread(side, members, things) for side in ("left", "top")}
    side, across = ("left", "top") if spreads["left"] > spreads["top"] else ("top", "left")
    if len(members) < 3 or len(members) % 2 == 0 or spreads[side] < 2 * spreads[across]:
        return []
    return _ordinal([len(members) // 2 + 1, side, arguments[0]], things)


def _spread(side: str, members: Members, things: Sequence[Thing]) -> int:
    places = [_along(side, things[k]) for k in members]
    return max(places, default=0) - min(places, default=0)


def _ordinal(arguments: Program, things: Sequence[Thing]) -> Members:
    number, side, rest = arguments
    ranked = _ranked(side, evaluate(rest, things), things)
    return ranked[number - 1 : number] if _clear(side, ranked[: number + 1], things) else []


def _ranked(side: str, members: Members, things: Sequence[Thing]) -> Members:
    return sorted(members, key=lambda k: -_along(side, things[k]))


def _along(side: str, thing: Thing) -> int:
    """How far an object lies towards a side, in half pixels."""
    right, down = SIDES[side]
    return right * thing.centre[0] + down * thing.centre[1]


def _clear(side: str, ranked: Members, things: Sequence[Thing]) -> bool:
    places = [_along(side, things[k]) for k in ranked]
    return all(first - second >= GAP for first, second in zip(places, places[1:], strict=False))


def _largest(arguments: Program, things: Sequence[Thing]) -> Members:
    members = evaluate(arguments[0], things)
    return [k for k in members if all(_larger(things[k], things[other]) for other in members if other != k)]


def _smallest(arguments: Program, things: Sequence[Thing]) -> Members:
    members = evaluate(arguments[0], things)
    return [k for k in members if all(_larger(things[other], things[k]) for other in members if other != k)]


def _larger(thing: Thing, other: Thing) -> bool:
    """Whether an object is the larger one, both as a whole and in what is visible of it."""
    order = ("small", "medium", "large")
    return order.index(thing.size) > order.index(other.size) and _exceeds(thing.area, other.area)


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
    """The one that is nearer than any other by half as much again."""
    squares = sorted((x * x + y * y, k) for k, (x, y) in offsets.items())
    if len(squares) < 2 or 4 * squares[1][0] < 9 * squares[0][0]:
        return []
    return [squares[0][1]]


def _towards(name: str, offsets: dict[int, tuple[int, int]]) -> Members:
    """The only one on that side of the anchor, and rather there than beyond another side."""
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
