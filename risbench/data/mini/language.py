"""The words of `mini`: expressions of every kind in RefCOCO, for an object of a scene.

The function of a kind makes one random attempt. An attempt is discarded unless its program refers to the target, and to
it alone, by a clear margin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from risbench.data.mini.program import SIDES, Program, evaluate
from risbench.data.mini.scene import Dice, Thing

SHARES = {
    "attribute": 22,
    "place": 26,
    "size": 10,
    "ordinal": 12,
    "relation": 16,
    "negation": 6,
    "combination": 8,
}  # percent of the expressions
ATTEMPTS = 24

NOUNS = {
    "circle": ("circle", "circle", "ball"),
    "heart": ("heart",),
    "moon": ("moon", "moon", "crescent"),
    "pill": ("pill", "pill", "capsule"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "cross", "plus"),
    "star": ("star",),
}
GENERIC_NOUNS = ("thing", "object")
PATTERN_NOUNS = {"striped": "stripes", "dotted": "dots"}
PLACES = {
    "left": (("left", "left", "leftmost", "far left"), ("on the left", "on the left side", "on left", ", left")),
    "right": (
        ("right", "right", "rightmost", "far right"),
        ("on the right", "on the right side", "on right", ", right"),
    ),
    "top": (("top", "top", "upper", "highest"), ("at the top", "on top", ", top")),
    "bottom": (("bottom", "bottom", "lower", "lowest"), ("at the bottom", "on the bottom", ", bottom")),
    "top left": (("top left", "upper left"), ("in the top left corner", "at the top left", ", top left")),
    "top right": (("top right", "upper right"), ("in the top right corner", "at the top right", ", top right")),
    "bottom left": (
        ("bottom left", "lower left"),
        ("in the bottom left corner", "at the bottom left", ", bottom left"),
    ),
    "bottom right": (
        ("bottom right", "lower right"),
        ("in the bottom right corner", "at the bottom right", ", bottom right"),
    ),
}
BARE_PLACES = {"left": "leftmost", "right": "rightmost", "top": "highest", "bottom": "lowest"}
RELATIONS = {
    "left_of": ("left of", "to the left of", "on the left of"),
    "right_of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "under"),
    "nearest": ("closest to", "nearest to"),
}
SUPERLATIVES = {"largest": ("biggest", "largest"), "smallest": ("smallest",)}
POSITIVES = {"largest": ("big", "large"), "smallest": ("small", "little", "tiny")}
COMPARATIVES = {"largest": ("bigger", "larger"), "smallest": ("smaller",)}
ORDINALS = {1: "first", 2: "second", 3: "third"}

# attributes that name a set; likely ones are repeated
ATTRIBUTE_SETS = (
    *[("shape",)] * 10,
    *[("colour", "shape")] * 8,
    *[("pattern", "shape")] * 3,
    ("colour",),
    ("pattern",),
    ("colour", "pattern", "shape"),
)


class Picture(NamedTuple):
    """The objects of an image of this size, and the number of the target among them."""

    things: list[Thing]
    height: int
    width: int
    target: int


class Expression(NamedTuple):
    """Words for one object, and their meaning as a program."""

    kind: str
    program: Program
    raw: str

    @property
    def sent(self) -> str:
        """The words, cleaned as in RefCOCO: lower case, without punctuation."""
        return "".join(c for c in self.raw.lower() if c.isalnum() or c == " ")


class Attempt(NamedTuple):
    program: Program
    words: str


class Phrase(NamedTuple):
    """A set by its attributes."""

    program: Program
    noun: str  # with its adjectives
    keys: tuple[str, ...]


def express(dice: Dice, picture: Picture, kind: str) -> Expression | None:
    """Write an expression of this kind that refers to the target alone; None if every attempt fails."""
    for _ in range(ATTEMPTS):
        attempt = try_once(dice, picture, kind)
        if attempt:
            return Expression(kind, attempt.program, _vary_typing(dice, attempt.words))
    return None


def try_once(dice: Dice, picture: Picture, kind: str) -> Attempt | None:
    """Make one attempt; None unless it refers to the target alone."""
    attempt = _KINDS[kind](dice, picture)
    return attempt if attempt and evaluate(attempt.program, picture.things) == [picture.target] else None


def _vary_typing(dice: Dice, words: str) -> str:
    """Vary article, capital and full stop, as people type."""
    words = words.replace(" ,", ",")
    return vary_ends(dice, f"the {words}" if dice.chance(40) else words)


def vary_ends(dice: Dice, words: str) -> str:
    """Vary capital and full stop, as people type."""
    words = words.capitalize() if dice.chance(12) else words
    return words + dice.pick(".!") if dice.chance(6) else words


def choose_attributes(dice: Dice, thing: Thing) -> tuple[str, ...]:
    """Choose attributes to name an object by; the pattern `plain` is rarely named."""
    keys = dice.pick(ATTRIBUTE_SETS)
    if thing.pattern == "plain" and dice.chance(85):
        keys = tuple(key for key in keys if key != "pattern")
    return keys or ("shape",)


def describe_set(dice: Dice, thing: Thing, keys: tuple[str, ...], nouns: tuple[str, ...] = GENERIC_NOUNS) -> Phrase:
    """Describe the set of all objects that share these attributes with `thing`."""
    program: Program = ["all"]
    for key in keys:
        program = ["filter", key, getattr(thing, key), program]
    noun = dice.pick(NOUNS[thing.shape] if "shape" in keys else nouns)
    before = [getattr(thing, key) for key in ("pattern", "colour") if key in keys]
    return Phrase(program, " ".join([*before, noun]), keys)


def _describe_group(dice: Dice, picture: Picture, least: int, all_percent: int = 1) -> Phrase | None:
    """Describe a set of `least` objects or more with the target; in `all_percent` of 100 cases, all objects."""
    thing = picture.things[picture.target]
    keys = () if dice.chance(all_percent) else choose_attributes(dice, thing)
    phrase = describe_set(dice, thing, keys, (*GENERIC_NOUNS, "one") if keys else GENERIC_NOUNS)
    return phrase if len(evaluate(phrase.program, picture.things)) >= least else None


def _attribute(dice: Dice, picture: Picture) -> Attempt:
    thing = picture.things[picture.target]
    keys = choose_attributes(dice, thing)
    if len(keys) == 1 or dice.chance(75):
        phrase = describe_set(dice, thing, keys, (*GENERIC_NOUNS, "one"))
        return Attempt(phrase.program, phrase.noun)
    late = keys[0]  # named after the noun
    value = getattr(thing, late)
    tail = f"with {PATTERN_NOUNS[value]}" if value in PATTERN_NOUNS else f"that is {value}"
    phrase = describe_set(dice, thing, keys[1:])
    return Attempt(["filter", late, value, phrase.program], f"{phrase.noun} {tail}")


def _place(dice: Dice, picture: Picture) -> Attempt | None:
    group = _describe_group(dice, picture, 2)
    if not group:
        return None
    if dice.chance(30):
        template = dice.pick(("middle {}", "center {}", "{} in the middle", "{} in the center"))
        return Attempt(["middle", group.program], template.format(group.noun))
    return _at_side(dice, picture, group)


def _at_side(dice: Dice, picture: Picture, group: Phrase) -> Attempt | None:
    """Name the object of a group that lies farthest towards a side, if it also lies on that side of the image."""
    side = dice.pick(_sides(picture, picture.target))
    if " " in side and any(side in _sides(picture, k) for k in _other_members(picture, group.program)):
        return None
    program = ["extreme", side, group.program]
    if not group.keys:
        return Attempt(program, f"{BARE_PLACES[side]} {group.noun}") if side in BARE_PLACES else None
    fronts, tails = PLACES[side]
    front = f"{dice.pick(fronts)} {group.noun}"
    return Attempt(program, front if dice.chance(60) else f"{group.noun} {dice.pick(tails)}")


def _sides(picture: Picture, number: int) -> list[str]:
    """Return the halves and quarters of the image with the centre of an object."""
    x, y = picture.things[number].centre
    return [
        side
        for side, (right, down) in SIDES.items()
        if right * (x - picture.width) >= 0 and down * (y - picture.height) >= 0
    ]


def _other_members(picture: Picture, program: Program) -> list[int]:
    return [k for k in evaluate(program, picture.things) if k != picture.target]


def _size(dice: Dice, picture: Picture) -> Attempt | None:
    group = _describe_group(dice, picture, 2)
    if not group:
        return None
    name = dice.pick(list(SUPERLATIVES))
    words = SUPERLATIVES[name]
    if group.keys:
        words += POSITIVES[name] * 2
        words += COMPARATIVES[name] * (len(_other_members(picture, group.program)) == 1)
    return Attempt([name, group.program], f"{dice.pick(words)} {group.noun}")


def _ordinal(dice: Dice, picture: Picture) -> Attempt | None:
    group = _describe_group(dice, picture, 3, all_percent=2)
    if not group:
        return None
    numbers = (1, 2, 3) if dice.chance(15) else (2, 3)
    every: list[Program] = [["ordinal", number, side, group.program] for number in numbers for side in BARE_PLACES]
    matching = [program for program in every if evaluate(program, picture.things) == [picture.target]]
    if not matching:
        return None
    program = dice.pick(matching)
    template = dice.pick(("{0} {1} from the {2}", "{0} {1} from {2}", "{1} {0} from the {2}", "{1}, {0} from {2}"))
    return Attempt(program, template.format(ORDINALS[program[1]], group.noun, program[2]))


def _relation(dice: Dice, picture: Picture) -> Attempt | None:
    anchor = dice.pick(_other_members(picture, ["all"]))
    phrase = describe_set(dice, picture.things[anchor], choose_attributes(dice, picture.things[anchor]))
    if evaluate(phrase.program, picture.things) != [anchor]:
        return None
    return _related(dice, picture, Attempt(phrase.program, phrase.noun))


def _related(dice: Dice, picture: Picture, anchor: Attempt) -> Attempt | None:
    """Name the target by its direction from an anchor, which must be needed to tell it from others."""
    group = _describe_group(dice, picture, 2)
    anchors = evaluate(anchor.program, picture.things)
    if not group or len(set(evaluate(group.program, picture.things)) - set(anchors)) < 2:
        return None
    programs: list[Program] = [
        [name, group.program, anchor.program] for name in RELATIONS if name != "nearest" or dice.chance(30)
    ]
    matching = [program for program in programs if evaluate(program, picture.things) == [picture.target]]
    if not matching:
        return None
    program = dice.pick(matching)
    words = RELATIONS[program[0]]
    if program[0] == "nearest" and _adjacent(picture.things[picture.target], picture.things[anchors[0]]):
        words = ("next to", "beside")
    return Attempt(program, f"{group.noun} {dice.pick(words)} the {anchor.words}")


def _adjacent(one: Thing, other: Thing) -> bool:
    """Whether about 5 pixels or less lie between two objects."""
    x, y = (one.centre[k] - other.centre[k] for k in (0, 1))
    return x * x + y * y <= (max(one.box[2:]) + max(other.box[2:]) + 10) ** 2


def _negation(dice: Dice, picture: Picture) -> Attempt | None:
    if dice.chance(30):
        return _not_at_side(dice, picture)
    return _lacking_attribute(dice, picture)


def _lacking_attribute(dice: Dice, picture: Picture) -> Attempt | None:
    """Name the object of a group that lacks an attribute of another."""
    key = dice.pick(("colour", "colour", "colour", "shape", "pattern"))
    thing = picture.things[picture.target]
    keys = tuple(name for name in choose_attributes(dice, thing) if name != key)
    group = describe_set(dice, thing, keys)
    others = _other_members(picture, group.program)
    if not keys or not others:
        return None
    value = getattr(picture.things[dice.pick(others)], key)
    tails = {
        "colour": ("that is not {}", "not {}", ", not the {} one"),
        "shape": ("that is not a {}", ", not the {}"),
        "pattern": ("without {}", "with no {}") if value in PATTERN_NOUNS else ("that is not {}",),
    }
    tail = dice.pick(tails[key]).format(PATTERN_NOUNS.get(value, value))
    return Attempt(["not", key, value, group.program], f"{group.noun} {tail}")


def _not_at_side(dice: Dice, picture: Picture) -> Attempt | None:
    group = _describe_group(dice, picture, 2, all_percent=0)
    if not group:
        return None
    side = dice.pick(list(BARE_PLACES))
    template = dice.pick(("{0}, not the {1} one", "{0}, not the one on the {1}", "{0} that is not on the {1}"))
    return Attempt(["except", group.program, ["extreme", side, group.program]], template.format(group.noun, side))


def _combination(dice: Dice, picture: Picture) -> Attempt | None:
    return dice.pick((_sized_at_side, _related_to_located, _lacking_at_side))(dice, picture)


def _sized_at_side(dice: Dice, picture: Picture) -> Attempt | None:
    """Name one of several objects of a size: "the small circle on the left"."""
    group = _describe_group(dice, picture, 3, all_percent=0)
    size = picture.things[picture.target].size
    if not group or size == "medium":
        return None
    word = dice.pick(POSITIVES["largest" if size == "large" else "smallest"])
    sized = Phrase(["filter", "size", size, group.program], f"{word} {group.noun}", group.keys)
    return _at_side(dice, picture, sized) if len(evaluate(sized.program, picture.things)) > 1 else None


def _related_to_located(dice: Dice, picture: Picture) -> Attempt | None:
    """Name a relation to an anchor that is named by its place or size: "the star right of the big circle"."""
    anchor = picture._replace(target=dice.pick(_other_members(picture, ["all"])))
    located = dice.pick((_place, _size))(dice, anchor)
    if not located or evaluate(located.program, picture.things) != [anchor.target] or "," in located.words:
        return None
    return _related(dice, picture, located)


def _lacking_at_side(dice: Dice, picture: Picture) -> Attempt | None:
    """Name one of several objects that lack an attribute: "the left circle that is not red"."""
    rest = _lacking_attribute(dice, picture)
    if not rest or len(evaluate(rest.program, picture.things)) < 2 or "," in rest.words:
        return None
    side = dice.pick([side for side in _sides(picture, picture.target) if side in BARE_PLACES])
    return Attempt(["extreme", side, rest.program], f"{dice.pick(PLACES[side][0])} {rest.words}")


_KINDS: dict[str, Callable[[Dice, Picture], Attempt | None]] = {
    "attribute": _attribute,
    "place": _place,
    "size": _size,
    "ordinal": _ordinal,
    "relation": _relation,
    "negation": _negation,
    "combination": _combination,
}
