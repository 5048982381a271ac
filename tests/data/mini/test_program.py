"""Programs of mini: their referents in a scene worked by hand, and their margins."""

from __future__ import annotations

from typing import Any

import pytest

from risbench.data.mini.program import GAP, referent
from risbench.data.mini.scene import Thing


def thing(
    shape: str, colour: str, x: int, y: int, area: int = 100, size: str = "small", pattern: str = "plain"
) -> Thing:
    """An object of 10 x 10 pixels around (x, y)."""
    return Thing(shape, colour, pattern, size, (x - 5, y - 5, 10, 10), area)


ROW = [
    thing("star", "red", 10, 30),
    thing("star", "blue", 30, 32, area=400, size="large"),
    thing("star", "red", 50, 28, area=210, size="medium", pattern="striped"),
    thing("moon", "red", 70, 60),
]
STARS = ["filter", "shape", "star", ["all"]]
MOON = ["filter", "shape", "moon", ["all"]]


@pytest.mark.parametrize(
    ("program", "number"),
    [
        (MOON, 3),
        (["filter", "colour", "blue", STARS], 1),
        (["not", "colour", "red", ["all"]], 1),
        (["extreme", "left", STARS], 0),
        (["extreme", "right", STARS], 2),
        (["extreme", "bottom", ["all"]], 3),
        (["extreme", "top left", ["all"]], 0),
        (["middle", STARS], 1),
        (["ordinal", 2, "left", STARS], 1),
        (["ordinal", 3, "right", ["all"]], 1),
        (["largest", STARS], 1),
        (["smallest", STARS], 0),
        (["except", ["filter", "colour", "red", STARS], ["extreme", "left", STARS]], 2),
        (["right_of", STARS, ["filter", "colour", "blue", STARS]], 2),
        (["left_of", STARS, ["filter", "colour", "blue", STARS]], 0),
        (["above", ["filter", "pattern", "striped", STARS], MOON], 2),
        (["below", ["filter", "colour", "red", ["all"]], ["filter", "pattern", "striped", STARS]], 3),
        (["below", ["all"], ["filter", "pattern", "striped", STARS]], None),
        (["nearest", ["all"], ["extreme", "left", STARS]], 1),
        (["nearest", ["all"], ["filter", "colour", "blue", ["all"]]], None),
        (["nearest", STARS, MOON], None),
        (["filter", "size", "small", ["filter", "pattern", "plain", STARS]], 0),
    ],
)
def test_programs_refer_to_the_objects_of_a_scene_worked_by_hand(program: list[Any], number: int | None) -> None:
    if number is None:
        with pytest.raises(ValueError, match="refers to 0 objects, not one"):
            referent(program, ROW)
    else:
        assert referent(program, ROW) == number


@pytest.mark.parametrize(
    ("program", "change"),
    [
        (["extreme", "left", STARS], {"box": (5 + GAP // 2 - 1, 25, 10, 10)}),
        (["ordinal", 2, "left", STARS], {"box": (5 + GAP // 2 - 1, 25, 10, 10)}),
        (["largest", STARS], {"area": 300}),
        (["smallest", STARS], {"area": 140}),
        (["smallest", STARS], {"size": "small"}),
        (["filter", "size", "small", ["filter", "pattern", "plain", STARS]], {"size": "medium", "pattern": "plain"}),
        (["left_of", STARS, ["filter", "colour", "blue", STARS]], {"box": (25, 5, 10, 10), "colour": "blue"}),
    ],
)
def test_a_program_without_its_margin_refers_to_no_object(program: list[Any], change: dict[str, Any]) -> None:
    scene = [*ROW[:2], ROW[2]._replace(**change), ROW[3]]
    assert referent(program, ROW) in (0, 1)
    with pytest.raises(ValueError, match="refers to 0 objects, not one"):
        referent(program, scene)
