"""Protocols: names, sources, and what the recipe fills in."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from risbench.data import rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import protocol
from risbench.scoring.protocol import Protocol, ScoreHalf

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
    released = ["lavt", "lavt-train", "magnet", "magnet-448", "cris", "rela", "grefcoco", "simrec", "zs-lavt"]
    assert protocol.names() == ["original", "lts", *released, "zs-ris", "lisa", "gsva", "seqtr", "deris"]
    assert all(protocol.load(name).name == name and protocol.load(name).source for name in protocol.names())


def test_every_protocol_reads_back_from_json() -> None:
    for made in map(protocol.load, protocol.names()):
        assert Protocol.model_validate_json(made.model_dump_json()) == made


def test_grefcoco_is_rela_with_the_no_target_rule() -> None:
    rela, grefcoco = protocol.load("rela"), protocol.load("grefcoco")
    assert grefcoco.input == rela.input
    assert grefcoco.score == rela.score.model_copy(update={"no_target": "scored", "headline": "gIoU"})
    with_rule = [name for name in protocol.names() if protocol.load(name).score.no_target != "refused"]
    assert with_rule == ["grefcoco", "gsva"]


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Unknown protocol 'orignal'. Did you mean 'original'?"):
        protocol.load("orignal")


def test_original_leaves_the_input_to_the_recipe_and_scores_at_least() -> None:
    original = protocol.load("original")
    assert set(dict(original.input).values()) == {"recipe", "each", "scored"}
    assert original.score.at_least == ">="
    assert original.score.empty_union == 0
    assert (original.score.ground_truth, original.score.headline) == ("union", "oIoU")


def test_lts_cuts_at_a_quarter_and_scores_above() -> None:
    lts = protocol.load("lts")
    assert lts.input.threshold == 0.25
    assert lts.score.at_least == ">"


def test_lavt_compares_at_480_by_480_with_the_pixels_that_one_polygon_covers() -> None:
    lavt = protocol.load("lavt")
    fixed = {"image_size": 480, "geometry": "stretch", "resampling": "bilinear", "text": "raw", "max_tokens": 20}
    assert dict(lavt.input) == {**fixed, "border": "recipe", "sentences": "each", "threshold": 0.5, "cut_at": "scored"}
    assert (lavt.score.scored_at, lavt.score.ground_truth, lavt.score.mask_resize) == ((480, 480), "once", "nearest")
    assert (lavt.score.at_least, lavt.score.empty_union, lavt.score.headline) == (">=", 0, "oIoU")
    image_size = [name for name in protocol.names() if protocol.load(name).score.size((5, 7)) == (5, 7)]
    assert image_size == ["original", "lts", "cris", "simrec", "zs-lavt", "zs-ris", "lisa", "gsva", "seqtr"]


def test_magnet_compares_as_lavt_does() -> None:
    lavt, magnet = protocol.load("lavt"), protocol.load("magnet")
    assert (magnet.input, magnet.score) == (lavt.input, lavt.score)


def test_cris_and_simrec_take_a_mean_above_each_threshold_at_the_size_of_the_image() -> None:
    cris, simrec = protocol.load("cris"), protocol.load("simrec")
    common = {"image_size": 416, "text": "sent", "sentences": "each", "threshold": 0.35}
    special: dict[str, Any] = {
        "geometry": "letterbox",
        "border": (123, 117, 104),
        "resampling": "bicubic",
        "max_tokens": "recipe",
        "cut_at": "scored",
    }
    assert dict(cris.input) == {**common, **special}
    special = {"geometry": "letterbox-cut", "border": 127, "resampling": "bilinear", "max_tokens": 15}
    assert dict(simrec.input) == {**common, **special, "cut_at": "network"}
    assert cris.score == ScoreHalf(at_least="> float32", headline="mIoU")
    assert simrec.score == ScoreHalf(headline="mIoU", empty_union=1)


def test_rela_draws_the_ground_truth_at_480_by_480() -> None:
    rela, lavt = protocol.load("rela"), protocol.load("lavt")
    assert rela.input == lavt.input
    assert dict(rela.score) == {**dict(lavt.score), "ground_truth": "scored"}


def test_zs_lavt_joins_sentences_and_leaves_empty_unions_out() -> None:
    made = protocol.load("zs-lavt")
    assert (made.input.image_size, made.input.sentences, made.input.threshold) == (448, "joined", 0.5)
    assert made.score == ScoreHalf(ground_truth="once", empty_union="nan")


def test_lavt_train_is_lavt_on_drawn_sentences_and_not_comparable() -> None:
    test, train = protocol.load("lavt"), protocol.load("lavt-train")
    assert train.score == test.score
    assert dict(train.input) == {**dict(test.input), "sentences": "random"}
    assert [name for name in protocol.names() if not protocol.load(name).comparable] == ["lavt-train"]
    assert "seed 0" in train.source


def test_one_sentence_of_each_ref_is_selected_whatever_else_is_in_the_split(small_index: Index) -> None:
    split, half = small_index.split("train"), protocol.load("lavt-train").input
    selected = half.select_expressions(split)
    assert sorted(selected.ref_id) == sorted(set(split.ref_id)) and len(selected) == 6 < len(split)
    drawn = dict(zip(selected.ref_id.tolist(), selected.sent_id.tolist(), strict=True))
    for ref_id, sent_id in drawn.items():  # independent: numpy's generator over the sorted ids of the ref
        sent_ids = sorted(split.sent_id[split.ref_id == ref_id].tolist())
        assert sent_id == sent_ids[np.random.default_rng((0, ref_id)).integers(len(sent_ids))]
    turned = half.select_expressions(split.take(np.arange(len(split))[::-1]))
    assert dict(zip(turned.ref_id.tolist(), turned.sent_id.tolist(), strict=True)) == drawn
    part = half.select_expressions(split.take(np.flatnonzero(split.image_id != 1)))
    assert set(part.sent_id) == set(selected.sent_id[selected.image_id != 1])
    again = half.select_expressions(selected)
    assert all(
        list(getattr(again, f.name)) == list(getattr(selected, f.name)) for f in fields(selected) if f.name != "name"
    )
    assert protocol.load("lavt").input.select_expressions(split) is split


def test_joined_sentences_are_one_expression_under_the_first_id(small_index: Index) -> None:
    split, half = small_index.split("train"), protocol.load("zs-lavt").input
    selected = half.select_expressions(split)
    by_ref: dict[int, list[tuple[int, str, str]]] = {}
    for row in zip(split.ref_id.tolist(), split.sent_id.tolist(), split.raw, split.sent, strict=True):
        by_ref.setdefault(row[0], []).append(row[1:])
    expected = {}
    for sentences in by_ref.values():
        sent_ids, raw, sent = zip(*sorted(sentences), strict=True)
        expected[sent_ids[0]] = (" ".join(raw), " ".join(sent))
    texts = zip(selected.raw, selected.sent, strict=True)
    assert dict(zip(selected.sent_id.tolist(), texts, strict=True)) == expected
    assert expected[890] == ("The RED thing!! left one", "the red thing left one")
    keys = list(zip(selected.image_id, selected.sent_id, strict=True))
    assert keys == sorted(keys) and set(selected.kind) == {""}
    again = half.select_expressions(selected)
    assert all(
        list(getattr(again, f.name)) == list(getattr(selected, f.name)) for f in fields(selected) if f.name != "name"
    )


def test_ground_truth_is_drawn_at_the_scored_size(small_index: Index) -> None:
    """Three boxes of an image of 64 x 64, 7.5 times as large: every corner lies on a whole pixel."""
    expected = np.zeros((480, 480), np.bool_)
    expected[45:195, 45:270] = expected[120:270, 150:375] = expected[150:375, 75:180] = True
    mask = protocol.load("rela").score.ground_truth_mask(small_index, 51, (64, 64))
    assert np.array_equal(rle.decode(mask, (480, 480)), expected)


def test_ground_truth_drawn_at_the_size_of_the_image_is_the_union(small_index: Index) -> None:
    rule = ScoreHalf(ground_truth="scored")
    for name in small_index.split_names():
        split = small_index.split(name)
        sizes = zip(split.height.tolist(), split.width.tolist(), strict=True)
        for ann_id, size in zip(split.ann_id.tolist(), sizes, strict=True):
            assert rule.ground_truth_mask(small_index, ann_id, size) == small_index.ground_truth(ann_id, "union")


def test_ground_truth_of_run_lengths_is_resized_and_that_of_a_polygon_is_not(small_index: Index) -> None:
    rule = protocol.load("rela").score
    for ann_id, size, same in ((21, (60, 40), True), (32, (40, 56), False)):
        nearest = rle.resize(small_index.ground_truth(ann_id, "union"), size, (480, 480), "nearest")
        assert (rule.ground_truth_mask(small_index, ann_id, size) == nearest) is same


def test_every_sentence_of_a_ref_may_be_drawn(small_index: Index) -> None:
    split = small_index.split("train")
    drawn = np.concatenate([split.draw_one_per_ref(seed).sent_id for seed in range(300)])
    for sent_id, ref_id in zip(split.sent_id, split.ref_id, strict=True):
        share = (drawn == sent_id).sum() / 300
        assert abs(share - 1 / (split.ref_id == ref_id).sum()) < 0.12  # four standard deviations


def test_resolving_replaces_only_recipe_values() -> None:
    resolved = protocol.load("lts").input.resolve(RECIPE)
    assert dict(resolved) == {**RECIPE, "sentences": "each", "threshold": 0.25, "cut_at": "scored"}


def test_a_value_that_the_recipe_lacks_is_named() -> None:
    with pytest.raises(InputError, match="leaves border, max_tokens to the recipe"):
        protocol.load("lts").input.resolve({k: v for k, v in RECIPE.items() if k not in ("border", "max_tokens")})


def test_a_protocol_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        protocol.load("lts").score.at_least = ">="
