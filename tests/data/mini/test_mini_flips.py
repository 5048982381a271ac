"""mini's expressions with left and right exchanged, in mirrored scenes: the programs say what they refer to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from risbench.data import flips
from risbench.data.mini.language import SHARES, Expression, Picture, express
from risbench.data.mini.program import evaluate
from risbench.data.mini.scene import Dice, Thing, draw_scene

Described = list[tuple[Picture, Expression]]


@pytest.fixture(scope="module")
def described() -> Described:
    """Expressions of every kind for every object of some scenes."""
    return list(_describe())


def _describe() -> Iterator[tuple[Picture, Expression]]:
    for number in range(40):
        dice = Dice(7, number)
        scene = draw_scene(dice)
        for target in range(len(scene.things)):
            picture = Picture(scene.things, scene.pixels.shape[0], scene.pixels.shape[1], target)
            expressions = (express(dice, picture, kind) for kind in SHARES)
            yield from ((picture, expression) for expression in expressions if expression)


def mirrored(program: Any) -> Any:
    """A program with left and right exchanged."""
    if isinstance(program, list):
        return [mirrored(part) for part in program]
    exchanged = {"left": "right", "right": "left"}
    return re.sub("left|right", lambda side: exchanged[side[0]], program) if isinstance(program, str) else program


def mirrored_things(picture: Picture) -> list[Thing]:
    return [
        thing._replace(box=(picture.width - x - width, y, width, height))
        for thing in picture.things
        for x, y, width, height in [thing.box]
    ]


def sides(text: Any) -> Counter[str]:
    return Counter(re.findall("left|right", str(text).lower()))


def test_exchanged_words_refer_to_the_same_object_of_the_mirrored_scene(described: Described) -> None:
    kinds: Counter[str] = Counter()
    for picture, expression in described:
        for text in (expression.raw, expression.sent):
            exchanged = flips.exchange(text)
            assert exchanged is not None and sides(exchanged) == sides(mirrored(expression.program)), text
        assert evaluate(mirrored(expression.program), mirrored_things(picture)) == [picture.target]
        kinds[expression.kind] += bool(sides(expression.raw))
    assert set(SHARES) - {"attribute", "size"} <= {kind for kind, count in kinds.items() if count > 5}


def test_words_that_are_not_exchanged_refer_to_another_object_or_to_none(described: Described) -> None:
    """So that the test above can fail."""
    named = [(picture, expression.program) for picture, expression in described if sides(expression.program)]
    right = [evaluate(program, mirrored_things(picture)) == [picture.target] for picture, program in named]
    assert len(named) > 200 and sum(right) < len(named) / 5
