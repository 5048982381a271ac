"""Kind words: words of an expression about place, colour, size, relation, order or negation.

The lists hold standard words, no grammar and no misspellings. They are the same for every data set and method.
A phrase counts as a whole: "in front of the car" is a relation, though "in front" alone is a place.
"""

from __future__ import annotations

import re

WORDS = {
    # Place in the picture, or distance from the viewer. "right" hardly means "correct" here; "back" may be a part of a
    # body, "top" a piece of clothing.
    "place": (
        "left, leftmost, right, rightmost, top, topmost, bottom, bottommost, upper, uppermost, higher, highest, lower,"
        " lowest, middle, center, centre, corner, edge, front, frontmost, foreground, back, background, rear, far,"
        " farther, farthest, further, furthest, close, closer, closest, nearer, nearest"
    ),
    # "orange" may be the fruit. "light" is left out: it is a lamp, or precedes a colour that counts itself.
    "colour": (
        "red, orange, yellow, green, blue, purple, violet, pink, brown, black, white, gray, grey, tan, beige, khaki,"
        " maroon, teal, turquoise, navy, gold, golden, silver, blond, blonde, dark, darker, darkest"
    ),
    # Size of the object or of a part of it, such as long hair or short sleeves.
    "size": (
        "big, bigger, biggest, large, larger, largest, huge, giant, small, smaller, smallest, little, tiny, tall,"
        " taller, tallest, short, shorter, shortest, long, longer, longest, wide, wider, widest, narrow, thick, thin,"
        " thinner, thinnest, fat, fatter, fattest, skinny"
    ),
    # Place relative to another object. Left out: verbs ("holding"), and "on", "in", "at", "with", "over", which have
    # other meanings.
    "relation": (
        "left of, right of, in front of, on top of, next to, close to, closer to, closest to, nearest to,"
        " farthest from, furthest from, across from, behind, between, beside, near, by, above, below, under,"
        " underneath, beneath, inside, outside, against, around, among, opposite"
    ),
    # Rank along a row. Cardinal numbers do not count: "two men", "number 12".
    "ordinal": (
        "first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, last,"
        " 1st, 2nd, 3rd, 4th, 5th, 6th, 7th, 8th, 9th, 10th"
    ),
    # Words without apostrophes, which `words` drops as the data sets do. "no" may be short for "number".
    "negation": (
        "not, no, none, nobody, nothing, never, neither, nor, without, except, cannot, isnt, arent, wasnt, doesnt,"
        " dont, didnt, hasnt, havent, cant"
    ),
}

# The picture and the viewer are not objects: "left of the picture" and "closest to us" are places.
_VIEW = re.compile(
    r" (?:of|in|to) (?:the )?(?:picture|pic|photo|image|screen|frame|cam|camera|photographer|viewer|you|us|me)\b"
)

_KIND = {phrase: kind for kind, phrases in WORDS.items() for phrase in phrases.split(", ")}
_PHRASE = re.compile(rf"\b(?:{'|'.join(sorted(_KIND, key=len, reverse=True))})\b")  # the longest phrase wins


def words(text: str) -> list[str]:
    """Return the words of an expression in lower case: runs of letters and digits, without apostrophes."""
    return re.findall(r"\w+", re.sub("['’]", "", text.lower()))


def kinds(text: str) -> list[str]:
    """Return the kinds of words that an expression has, in the order of WORDS."""
    present = {_KIND[phrase] for phrase in _PHRASE.findall(_VIEW.sub("", " ".join(words(text))))}
    return [kind for kind in WORDS if kind in present]
