"""Protocols: names, sources, and what the recipe fills in."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from pydantic import ValidationError

from risbench import protocol
from risbench.data.index import Index
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
    assert protocol.names() == ["original", "lts", "lavt", "lavt-train"]
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


def test_lavt_train_is_lavt_on_drawn_sentences_and_not_comparable() -> None:
    test, train = protocol.load("lavt"), protocol.load("lavt-train")
    assert train.score == test.score
    assert dict(train.input) == {**dict(test.input), "sentences": "random"}
    assert [name for name in protocol.names() if not protocol.load(name).comparable] == ["lavt-train"]
    assert "seed 0" in train.source


def test_one_sentence_of_each_ref_is_asked_whatever_else_is_in_the_split(small_index: Index) -> None:
    split, half = small_index.split("train"), protocol.load("lavt-train").input
    asked = half.asked(split)
    assert sorted(asked.ref_id) == sorted(set(split.ref_id)) and len(asked) == 6 < len(split)
    drawn = dict(zip(asked.ref_id.tolist(), asked.sent_id.tolist(), strict=True))
    for ref_id, sent_id in drawn.items():  # independent: numpy's generator over the sorted ids of the ref
        own = sorted(split.sent_id[split.ref_id == ref_id].tolist())
        assert sent_id == own[np.random.default_rng((0, ref_id)).integers(len(own))]
    turned = half.asked(split.take(np.arange(len(split))[::-1]))
    assert dict(zip(turned.ref_id.tolist(), turned.sent_id.tolist(), strict=True)) == drawn
    part = half.asked(split.take(np.flatnonzero(split.image_id != 1)))
    assert set(part.sent_id) == set(asked.sent_id[asked.image_id != 1])
    again = half.asked(asked)
    assert all(list(getattr(again, f.name)) == list(getattr(asked, f.name)) for f in fields(asked) if f.name != "name")
    assert protocol.load("lavt").input.asked(split) is split


def test_every_sentence_of_a_ref_may_be_drawn(small_index: Index) -> None:
    split = small_index.split("train")
    drawn = np.concatenate([split.one_of_each_ref(seed).sent_id for seed in range(300)])
    for sent_id, ref_id in zip(split.sent_id, split.ref_id, strict=True):
        share = (drawn == sent_id).sum() / 300
        assert abs(share - 1 / (split.ref_id == ref_id).sum()) < 0.12  # four standard deviations


def test_resolving_replaces_only_what_is_left_to_the_recipe() -> None:
    resolved = protocol.load("lts").input.resolved(RECIPE)
    assert dict(resolved) == {**RECIPE, "sentences": "each", "threshold": 0.25}


def test_a_value_that_the_recipe_lacks_is_named() -> None:
    with pytest.raises(InputError, match="leaves border, max_tokens to the recipe"):
        protocol.load("lts").input.resolved({k: v for k, v in RECIPE.items() if k not in ("border", "max_tokens")})


def test_a_protocol_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        protocol.load("lts").score.at_least = ">="
