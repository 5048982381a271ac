from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from risbench.data import flips

PAIRS = {
    "man on the left": "man on the right",
    "left": "right",
    "Left guy.": "Right guy.",
    "RIGHT   ONE!": "LEFT   ONE!",
    "the leftmost donut, not the rightmost": "the rightmost donut, not the leftmost",
    "left-most cup": "right-most cup",
    "left hand side": "right hand side",
    "second from left to right": "second from right to left",
    "second guy left to right": "second guy right to left",
    "topleft person": "topright person",
    "lefty kid": "righty kid",
    "leftish, lefthand": "rightish, righthand",
    "man's left hand": "man's right hand",
    "sheep facing left": "sheep facing right",
    "left handed keyboard": "right handed keyboard",
    "just left of the 59 vase": "just right of the 59 vase",
    "on right next to black headband": "on left next to black headband",
    "the man on the right is looking at his phone": "the man on the left is looking at his phone",
    "bus on far right behind horse": "bus on far left behind horse",
    "all the way right man": "all the way left man",
    "my other left": "my other right",
    "bright shirt on the left": "bright shirt on the right",
    "left front": "right front",
    "girl left standing": "girl right standing",
}
UNCHANGED = [
    "",
    "red cup",
    "girl in bright blue shirt",
    "leftover food",
    "upright suitcase",
    "second from the top",
    "second row",
    "bus number 247",
    "light tan couch",
    "the eight ball",
    "you'll see a clock tower",
]
UNSAFE = [
    "hot dog right below the one closest to the man",  # exactly
    "the zebra right in front of your face",
    "right behind plate",
    "right next to her",
    "yellow area right above cats head",
    "right beside the tree",
    "so close you were right on the edge woman",
    "ottoman right under fireplace",
    "apple just right",
    "right side up glass",
    "right of way sign",
    "youre prob right lady in purple",  # agreed
    "oops right",
    "the cat, right?",
    "bowl with white stuff in it left",  # what remains
    "the only one left",
    "food left on plate",
    "pizza left over",
    "bag left behind",
    "is left",
    "i said left bottom left bowl of food",  # talk
    "guy at lft",  # misspelt or short
    "rigth bike",
    "lef zebra",
    "orange top rite",
    "rt side",
    "l",
    "R guy",
    "LEft cup",
    "leftguy",
    "motorcycleright",
    "leftright",
    "cow on right side facing east",  # compass, clock
    "southwest plane",
    "slice at 9 oclock",
    "broccoli top right 1 o clock position",
    "slice at 4 o'clock",
    "slice at 4 o’clock",
    "broccoli lower left about 7 pm",
    "counting counterclockwise from the top",
    "second elephant",  # counted from the left
    "2nd bike",
    "last car",
]


@pytest.mark.parametrize(("expression", "exchanged"), PAIRS.items(), ids=str)
def test_left_and_right_are_exchanged_and_all_else_stays(expression: str, exchanged: str) -> None:
    assert flips.exchange(expression) == exchanged
    assert flips.exchange(exchanged) == expression


@pytest.mark.parametrize("expression", UNCHANGED, ids=str)
def test_an_expression_without_sides_stays_as_it_is(expression: str) -> None:
    assert flips.exchange(expression) == expression


@pytest.mark.parametrize("expression", UNSAFE, ids=str)
def test_what_cannot_be_exchanged_safely_is_not(expression: str) -> None:
    assert flips.exchange(expression) is None


def test_one_expression_that_cannot_be_exchanged_keeps_its_image_as_it_is() -> None:
    assert flips.exchange_all(["left cup", "red"]) == ["right cup", "red"]
    assert flips.exchange_all(["left cup", "second cup"]) is None
    assert flips.exchange_all([]) == []


WORDS = ["left", "right", "Left", "RIGHT", "leftmost", "topright", "bright", "behind", "of", "in", "the", "is", "way"]
WORDS += ["second", "from", "to", "side", "up", ",", "?", "3", "l", "é"]


@given(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join) | st.text(max_size=12))
def test_the_exchange_is_its_own_inverse(expression: str) -> None:
    exchanged = flips.exchange(expression)
    assert exchanged is None or flips.exchange(exchanged) == expression


def test_real_expressions_are_exchanged_but_for_two_in_a_hundred(real_expressions: list[str]) -> None:
    exchanged = {expression: flips.exchange(expression) for expression in real_expressions}
    assert sum(exchanged[expression] is not None for expression in real_expressions) / len(real_expressions) > 0.98
    for expression, other in exchanged.items():
        if other is None:
            continue
        assert flips.exchange(other) == expression
        assert re.split("left|right", other) == re.split("left|right", expression)
        assert (other != expression) == bool(re.search("left|(?<!b)(?<!up)right", expression)), expression
