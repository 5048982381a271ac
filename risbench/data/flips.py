"""Left and right exchanged in an English expression whose image is mirrored.

Hands, views and ways of facing are mirrored with the image, so every left and right that is a direction is exchanged.
The lists are careful: where a word may mean something else, or names a side that has no exchange, the expression stays
as it is, and its image with it. They come from all expressions of RefCOCO val, testA and testB, of which 2 % stay. The
exchange is its own inverse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_OTHER_SIDE = {"left": "right", "right": "left"}
_SIDE = re.compile("(left|right)")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

# What may stand before and after a side in one word: topleft, rightmost, lefthanded.
_BEFORE = {"", *_set("at back bottom center centre far front lower mid middle most on the top upper")}
_AFTER = {"", *_set("back bottom corner er est front hand handed ish lower middle most side top upper ward wards y")}

_WORDS_WITHOUT_SIDE = _set(
    "alright bright brighter brightest brightly brightness cleft copyright downright forthright frightened leftover "
    "leftovers outright playwright upright wright"
)
_NO_MISSPELLINGS = _set(  # they differ from left or right in one letter
    "bight bright cleft deft eight fight fright heft left lent lest let lift light loft might night right sight tight "
    "weft wight wright"
)
_SIDES_WITHOUT_OTHER = _set(  # short forms, compass, clock
    "anticlockwise bl br clockwise counterclockwise east l lf lh lhs ll lr lt northeast northwest oclock o'clock "
    "portside r rgt rh rhs rite rt southeast southpaw southwest starboard tl tr ul ur west"
)
_TIME = re.compile(r"\bo\W?\s*clock\b|\d\s*[ap]\.?m\b")

_TALK = _set(  # of the game in which expressions were collected: "right" may agree, "left" may mend another expression
    "agree correct duh guess guessing haha hahaha idk jk know lol love meant oh ok okay oops please pls prob probably "
    "said sorry thank thanks think thought tought tried whoops wow wrong yeah yep yes"
)
_NO_PLACE_BEFORE = _set(  # "the last one left", "you were right", "just right"
    "all am anything are be been being bit few food get gets getting got had has have he i is it it's just little much "
    "nothing o one ones only piece pieces she slice slices some something space that that's thats they they're was we "
    "were what what's whats who you you're youre"
)
_AMBIGUOUS_AFTER = _set(  # "right behind", "left on the plate"
    "a about above across after against along alongside alone an around at away before behind below beneath beside "
    "besides between by close down here in inside near nearest next now off on onto open opposite out outside over "
    "past that the then there this through to under underneath untouched up when where"
)
_PLACE_BEFORE = _set(  # "on the right behind"
    "at extreme facing far farthest from furthest going her his its leaning looking lower most my on our pointing the "
    "their to toward towards turned upper very way your"
)

# People count from the left without saying so: such an ordinal means another object in the mirrored image.
_ORDINAL = re.compile(
    r"\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|\d+(?:st|nd|rd|th))\b"
    r"(?!\s+(?:floor|layer|level|row|rows|shelf|step|story|tier)\b)"
)
_COUNTED_FROM = re.compile(r"\bfrom\s+(?:the\s+)?(?:very\s+)?(?:top|bottom|front|back)\b")


def exchange(expression: str) -> str | None:
    """Exchange left and right, or return None if that may not be true of the mirrored image."""
    typed = _WORD.findall(expression)
    words = [word.lower().replace("’", "'") for word in typed]
    if not _can_be_exchanged(words, expression.lower()) or any(map(_has_odd_capitals, typed)):
        return None
    return _WORD.sub(lambda match: _exchange_word(match[0]), expression)


def exchange_all(expressions: Sequence[str]) -> list[str] | None:
    """Exchange left and right in the expressions of an image, or return None if one of them cannot be exchanged."""
    exchanged = [exchange(expression) for expression in expressions]
    return [expression for expression in exchanged if expression is not None] if None not in exchanged else None


def _can_be_exchanged(words: Sequence[str], text: str) -> bool:
    if any(map(_has_no_exchange, words)) or _TIME.search(text):
        return False
    if not any(_SIDE.search(word) for word in words if word not in _WORDS_WITHOUT_SIDE):
        return not _ORDINAL.search(text) or bool(_COUNTED_FROM.search(text))
    if "?" in text or not _TALK.isdisjoint(words):
        return False
    return all(_is_place(words, number) for number, word in enumerate(words) if word in _OTHER_SIDE)


def _has_no_exchange(word: str) -> bool:
    """Whether a word names a side, or may do so, but not its other side."""
    if word in _WORDS_WITHOUT_SIDE:
        return False
    before, *side = _SIDE.split(word, maxsplit=1)
    if not side:
        return word in _SIDES_WITHOUT_OTHER or word in _MISSPELLINGS
    return before not in _BEFORE or side[1] not in _AFTER


def _has_odd_capitals(word: str) -> bool:
    """Whether a side has capitals that the other could not have: LEft."""
    return bool(_SIDE.search(word.lower())) and word not in (word.lower(), word.upper(), word.capitalize())


def _is_place(words: Sequence[str], number: int) -> bool:
    """Whether left or right at this place among the words is a direction."""
    before = words[number - 1] if number else ""
    after, second, *_ = [*words[number + 1 :], "", ""]
    if after == "of":
        return second != "way"
    if before in _NO_PLACE_BEFORE or after == "way" or (after == "side" and second in {"up", "down", "out"}):
        return False
    return after not in _AMBIGUOUS_AFTER or before in _PLACE_BEFORE or (after == "to" and second in _OTHER_SIDE)


def _exchange_word(word: str) -> str:
    """Exchange the side in a word, if it has one, and keep its capitals."""
    lower = word.lower()
    if lower in _WORDS_WITHOUT_SIDE or not _SIDE.search(lower):
        return word
    other = _SIDE.sub(lambda match: _OTHER_SIDE[match[0]], lower)
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _misspell(word: str) -> set[str]:
    """Return all words with one letter more, less or other, or with two neighbours exchanged."""
    cuts = [(word[:n], word[n:]) for n in range(len(word) + 1)]
    fewer = {before + after[1:] for before, after in cuts if after}
    swapped = {before + after[1] + after[0] + after[2:] for before, after in cuts if len(after) > 1}
    more = {before + letter + after for before, after in cuts for letter in ascii_lowercase}
    other = {before + letter + after[1:] for before, after in cuts if after for letter in ascii_lowercase}
    return fewer | swapped | more | other


_MISSPELLINGS = (_misspell("left") | _misspell("right")) - _NO_MISSPELLINGS
