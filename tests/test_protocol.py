"""Protocols: names, sources, and what the recipe fills in."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from risbench import protocol
from risbench.errors import InputError

RECIPE = {
    "image_size": 416,
    "geometry": "letterbox",
    "border": 127,
    "resampling": "bilinear",
    "text": "raw",
    "max_tokens": 15,
    "threshold": 0.5,
}


def test_the_default_comes_first_and_every_protocol_names_its_source() -> None:
    assert protocol.names() == ["original", "lts", "lavt"]
    assert all(protocol.load(name).name == name and protocol.load(name).source for name in protocol.names())


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Unknown protocol 'orignal'. Did you mean 'original'?"):
        protocol.load("orignal")


def test_original_leaves_the_input_to_the_recipe_and_scores_at_least() -> None:
    original = protocol.load("original")
    assert set(dict(original.input).values()) == {"recipe", "each"}
    assert original.score.at_least == ">="
    assert original.score.empty_union == 0
    assert (original.score.ground_truth, original.score.headline) == ("union", "oIoU")


def test_lts_cuts_at_a_quarter_and_scores_above() -> None:
    lts = protocol.load("lts")
    assert lts.input.threshold == 0.25
    assert lts.score.at_least == ">"


def test_lavt_compares_at_480_by_480_with_the_pixels_that_one_polygon_covers() -> None:
    lavt = protocol.load("lavt")
    given = {"image_size": 480, "geometry": "stretch", "resampling": "bilinear", "text": "raw", "max_tokens": 20}
    assert dict(lavt.input) == {**given, "border": "recipe", "sentences": "each", "threshold": 0.5}
    assert (lavt.score.scored_at, lavt.score.ground_truth, lavt.score.mask_resize) == ((480, 480), "once", "nearest")
    assert (lavt.score.at_least, lavt.score.empty_union, lavt.score.headline) == (">=", 0, "oIoU")
    assert [name for name in protocol.names() if protocol.load(name).score.size((5, 7)) == (5, 7)] == [
        "original",
        "lts",
    ]


def test_resolving_replaces_only_what_is_left_to_the_recipe() -> None:
    resolved = protocol.load("lts").input.resolved(RECIPE)
    assert dict(resolved) == {**RECIPE, "sentences": "each", "threshold": 0.25}


def test_a_value_that_the_recipe_lacks_is_named() -> None:
    with pytest.raises(InputError, match="leaves border, max_tokens to the recipe"):
        protocol.load("lts").input.resolved({k: v for k, v in RECIPE.items() if k not in ("border", "max_tokens")})


def test_a_protocol_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        protocol.load("lts").score.at_least = ">="
