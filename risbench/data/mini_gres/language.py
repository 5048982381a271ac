"""The words of `mini-gres` for several objects of a scene, and for none; the words for one are those of `mini`.

The function of a kind makes one random attempt. An attempt is discarded unless its program refers to two objects or
more, or clearly to none. What refers to none is near to what is there: one attribute, or the place, is another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from risbench.data.mini.language import (
    ATTEMPTS,
    Attempt,
    Expression,
    Phrase,
    Picture,
    choose_attributes,
    describe_set,
    try_once,
    vary_ends,
)
from risbench.data.mini.program import Members, Program, evaluate
from risbench.data.mini.scene import COLOURS, Dice, Thing
from risbench.data.mini_gres.program import members

SEVERAL = {"group": 40, "side": 25, "union": 20, "exception": 15}  # percent of the expressions for several objects
NONE = {"absent": 50, "elsewhere": 30, "unrelated": 20}  # percent of the expressions for none

NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses"}  # of the others by an s
HALVES = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
RELATIONS = {
    "left_of": ("left of", "to the left of"),
    "right_of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
PATTERNS = ("striped", "dotted")  # that words name


def express(dice: Dice, picture: Picture, kind: str, shapes: Sequence[str]) -> tuple[Expression, Members] | None:
    """Write an expression of this kind and return it with its objects, all of them, and what it names, of `shapes`.

    None if every attempt fails.
    """
    for _ in range(ATTEMPTS):
        attempt = _KINDS[kind](dice, picture, shapes)
        found = members(attempt.program, picture) if attempt else None
        if attempt and found is not None and _fits(found, kind) and _are_of(found, picture, shapes):
            return Expression(kind, attempt.program, vary_ends(dice, attempt.words)), found
    return None


def _fits(found: Members, kind: str) -> bool:
    return len(found) >= 2 if kind in SEVERAL else not found


def _are_of(found: Members, picture: Picture, shapes: Sequence[str]) -> bool:
    return all(picture.things[k].shape in shapes for k in found)


def _pick(dice: Dice, picture: Picture, shapes: Sequence[str]) -> Thing:
    return dice.pick([thing for thing in picture.things if thing.shape in shapes])


def _plural(noun: str) -> str:
    """Return the plural of a noun with its adjectives."""
    *before, last = noun.split()
    return " ".join([*before, PLURALS.get(last, f"{last}s")])


def _counted(dice: Dice, phrase: Phrase, number: int) -> str:
    """Name a set of this many objects: "all red circles", "both stars", "the two boxes", "every heart"."""
    several = _plural(phrase.noun)
    forms = [f"all {several}", f"all {several}", f"the {several}", f"every {phrase.noun}", f"all the {several}"]
    if number in NUMBERS:
        forms += [f"the {NUMBERS[number]} {several}", f"{NUMBERS[number]} {several}"]
    if number == 2:
        forms += [f"both {several}", f"both {several}"]
    return dice.pick(forms)


# several objects


def _group(dice: Dice, picture: Picture, shapes: Sequence[str]) -> Attempt:
    thing = _pick(dice, picture, shapes)
    phrase = describe_set(dice, thing, choose_attributes(dice, thing))
    return Attempt(phrase.program, _counted(dice, phrase, len(evaluate(phrase.program, picture.things))))


def _side(dice: Dice, picture: Picture, shapes: Sequence[str]) -> Attempt:
    """Name all objects of a set in one half of the image: "all boxes on the left", "everything at the top"."""
    side = dice.pick(list(HALVES))
    place = dice.pick(HALVES[side])
    if dice.chance(20):
        words = dice.pick(("everything", "all things", "all objects"))
        return Attempt(["half", side, ["all"]], f"{words} {place}")
    thing = _pick(dice, picture, shapes)
    phrase = describe_set(dice, thing, choose_attributes(dice, thing))
    program: Program = ["half", side, phrase.program]
    return Attempt(program, f"{_counted(dice, phrase, len(members(program, picture) or []))} {place}")


def _union(dice: Dice, picture: Picture, shapes: Sequence[str]) -> Attempt | None:
    """Name two objects, each by itself: "the red box and the left star"."""
    targets = dice.shuffled([k for k, thing in enumerate(picture.things) if thing.shape in shapes])[:2]
    kinds = (dice.pick(("attribute", "attribute", "place", "size")) for _ in targets)
    parts = [try_once(dice, picture._replace(target=k), kind) for k, kind in zip(targets, kinds, strict=True)]
    named = [part for part in parts if part and "," not in part.words]
    if len(named) < 2:
        return None
    template = dice.pick(("the {} and the {}", "the {} and the {}", "{} and {}", "both the {} and the {}"))
    return Attempt(["union", *(part.program for part in named)], template.format(*(part.words for part in named)))


def _exception(dice: Dice, picture: Picture, shapes: Sequence[str]) -> Attempt | None:
    """Name a set without one of its objects: "all circles except the red one", "the stars but not the top one"."""
    thing = _pick(dice, picture, shapes)
    phrase = describe_set(dice, thing, ("shape",))
    group = evaluate(phrase.program, picture.things)
    if len(group) < 3:
        return None
    if dice.chance(60):
        value = picture.things[dice.pick(group)].colour
        word, excluded = value, ["filter", "colour", value, phrase.program]
    else:
        word = dice.pick(list(HALVES))
        excluded = ["extreme", word, phrase.program]
    template = dice.pick(("all {0} except the {1} one", "the {0} but not the {1} one", "all {0}, not the {1} one"))
    return Attempt(["except", phrase.program, excluded], template.format(_plural(phrase.noun), word))


# none


def _absent(dice: Dice, picture: Picture, shapes: Sequence[str]) -> Attempt:
    """Name attributes of an object, one of them changed, that no object has: "the purple square"."""
    thing = _pick(dice, picture, shapes)
    keys = dice.pick((("shape",), ("colour", "shape"), ("colour", "shape"), ("colour", "shape"), ("pattern", "shape")))
    key = dice.pick(keys)
    thing = _changed(thing, key, dice.pick(_values(key, picture, shapes, nearby=dice.chance(70))))
    if "pattern" in keys and thing.pattern not in PATTERNS:
        thing = thing._replace(pattern=dice.pick(PATTERNS))
    phrase = describe_set(dice, thing, keys)
    return Attempt(phrase.program, _any(dice, phrase))


def _changed(thing: Thing, key: str, value: str) -> Thing:
    """Return an object with another shape, colour or pattern."""
    values = {"shape": thing.shape, "colour": thing.colour, "pattern": thing.pattern} | {key: value}
    return thing._replace(shape=values["shape"], colour=values["colour"], pattern=values["pattern"])


def _values(key: str, picture: Picture, shapes: Sequence[str], nearby: bool) -> list[str]:
    """Return the values that an attribute may have, or those of them that are in the image."""
    every = {"shape": list(shapes), "colour": list(COLOURS), "pattern": list(PATTERNS)}[key]
    seen = [value for value in every if any(getattr(thing, key) == value for thing in picture.things)]
    return seen if nearby and seen else every


def _any(dice: Dice, phrase: Phrase) -> str:
    """Name an object of a set, or the whole set, as if there were any."""
    several = _plural(phrase.noun)
    return dice.pick((f"the {phrase.noun}", f"the {phrase.noun}", phrase.noun, f"all {several}", f"the {several}"))


def _elsewhere(dice: Dice, picture: Picture, shapes: Sequence[str]) -> Attempt | None:
    """Name objects in the half of the image that has none of them: "all boxes on the left", which are on the right."""
    thing = _pick(dice, picture, shapes)
    phrase = describe_set(dice, thing, choose_attributes(dice, thing))
    if not _are_of(evaluate(phrase.program, picture.things), picture, shapes):
        return None
    side = dice.pick(list(HALVES))
    return Attempt(["half", side, phrase.program], f"{_any(dice, phrase)} {dice.pick(HALVES[side])}")


def _unrelated(dice: Dice, picture: Picture, shapes: Sequence[str]) -> Attempt | None:
    """Name objects on the wrong side of another: "the star left of the red box", where it lies right of it."""
    anchor = dice.below(len(picture.things))
    named = try_once(dice, picture._replace(target=anchor), "attribute")
    thing = _pick(dice, picture, shapes)
    phrase = describe_set(dice, thing, choose_attributes(dice, thing))
    others = [k for k in evaluate(phrase.program, picture.things) if k != anchor]
    if not named or not others or not _are_of(others, picture, shapes):
        return None
    relation = dice.pick(list(RELATIONS))
    program: Program = ["beside", relation, phrase.program, named.program]
    return Attempt(program, f"{_any(dice, phrase)} {dice.pick(RELATIONS[relation])} the {named.words}")


_KINDS: dict[str, Callable[[Dice, Picture, Sequence[str]], Attempt | None]] = {
    "group": _group,
    "side": _side,
    "union": _union,
    "exception": _exception,
    "absent": _absent,
    "elsewhere": _elsewhere,
    "unrelated": _unrelated,
}
