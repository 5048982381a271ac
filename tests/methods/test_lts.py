"""What is particular to LTS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.data.pretrained import from_scratch
from risbench.data.text import WordTokenizer
from risbench.errors import InputError

lts = methods.module("lts")
RECIPE = methods.recipe_file("lts")


def test_the_full_size_maps_are_those_of_the_paper() -> None:
    settings, _ = recipe.load(RECIPE, [], ["model.pretrained=false", "text.max_tokens=15"])
    tokenizer = WordTokenizer.build(["left red cup"], 15)
    with torch.device("meta"):
        model: Any = methods.load("lts").build(settings, tokenizer)
        levels = model.backbone(torch.empty(1, 3, 416, 416))
    assert [tuple(level.shape[1:]) for level in levels] == [(256, 52, 52), (512, 26, 26), (1024, 13, 13)]
    heads = model.network
    assert heads.localisation.kernel.out_features == 1024  # the 1024 x 1 x 1 kernel of eq. 8
    assert heads.segmentation.aspp.convs[0][0].in_channels == 1025  # F_m3 and H_mask
    assert heads.text.gru.hidden_size == 512 and heads.text.gru.bidirectional
    assert sum(parameter.numel() for parameter in model.parameters()) == 55_360_701


@pytest.mark.parametrize(
    "override",
    [
        "model.stage_depths=[0]",
        "model.stage_depths=[1, 1, 1, 1]",
        "model.stage_channels=[8, 8, 8, 8, 1]",
        "model.aspp_rates=[1, 2, 0]",
        "model.stem_channels=-1",
        "model.text_channels=7",
        "model.word_width=0",
        "model.dropout=2",
        "model.slope=-0.1",
        "model.loc_weight=-1",
    ],
)
def test_a_setting_that_makes_no_network_is_one_sentence(override: str) -> None:
    key, _, value = override.partition("=")
    settings, _ = recipe.load(RECIPE, ["tiny"], [override])
    with pytest.raises(InputError) as error:
        methods.load("lts").build(settings, WordTokenizer.build(["red"], 5))
    assert key in str(error.value) and value.strip("[]").split(", ")[-1] in str(error.value)
    assert "\n" not in str(error.value)


def test_the_smallest_settings_make_a_network() -> None:
    small = ["stem_channels=1", "stage_channels=[2, 2, 2, 2, 2]", "stage_depths=[1, 1, 1, 1, 1]", "word_width=1"]
    small += ["text_channels=2", "fusion_channels=1", "aspp_channels=1", "aspp_rates=[1, 1, 1]", "dropout=0"]
    settings, _ = recipe.load(RECIPE, ["tiny"], [f"model.{setting}" for setting in small])
    model = methods.load("lts").build(settings, WordTokenizer.build(["red"], 5)).eval()
    batch = Batch(torch.zeros(1, 3, 64, 64), torch.tensor([0]), WordTokenizer(["red"], 5)(["red"]), None)
    assert model.predict(batch).probability.shape == (1, 16, 16)


def test_an_input_that_cannot_be_halved_five_times_is_refused() -> None:
    tokenizer = WordTokenizer.build(["red"], 5)
    settings, _ = recipe.load(RECIPE, ["tiny"], ["image.size=100"])
    with pytest.raises(InputError, match="image.size=100 .*multiple of 32"):
        methods.load("lts").build(settings, tokenizer)
    settings, _ = recipe.load(RECIPE, ["tiny"])
    model = methods.load("lts").build(settings, tokenizer).eval()
    with pytest.raises(InputError, match="image.size=80 .*multiple of 32"):
        model.predict(Batch(torch.zeros(1, 3, 80, 80), torch.tensor([0]), tokenizer(["red"]), None))


def test_the_map_behind_a_prediction_is_h_mask() -> None:
    settings, _ = recipe.load(RECIPE, ["tiny"])
    tokenizer = WordTokenizer.build(["left red cup"], 5)
    torch.manual_seed(0)
    model: Any = methods.load("lts").build(settings, tokenizer).eval()
    batch = Batch(torch.randn(1, 3, 64, 96), torch.tensor([0]), tokenizer(["red cup"]), None)
    outputs: list[Tensor] = []
    model.network.localisation.register_forward_hook(lambda *call: outputs.append(call[2]))
    peak = model.predict(batch).peak[0]
    [panel] = model.explain(batch, [])
    assert (
        panel.values.shape == (8, 12) and "H_mask" in panel.title and f"at most {panel.values.max():.2f}" in panel.title
    )
    assert torch.equal(panel.values, outputs[0][0].sigmoid())
    assert panel.values[tuple(peak // 2)] == panel.values.max()
    with pytest.raises(InputError, match="leave --word out"):
        model.explain(batch, [1])


def test_the_sentence_is_the_mean_over_its_words_alone() -> None:
    encoder = lts.TextEncoder(nn.Embedding(9, 4, padding_idx=0), 6)
    ids = torch.tensor([[3, 5, 0, 0], [1, 2, 3, 4]])
    text = encoder(Words(ids, ids > 0))
    states, _ = encoder.gru(encoder.vectors(ids[:1, :2]))
    assert torch.allclose(text.sentence[0], states[0].mean(dim=0), atol=1e-6)
    assert torch.allclose(text.words[0, :2], states[0], atol=1e-6) and not text.words[0, 2:].any()


def test_the_relevance_filter_is_a_1x1_convolution_with_a_kernel_for_each_expression() -> None:
    layer = lts.RelevanceFilter(5, 8, times=1)
    multi, sentence = torch.randn(3, 8, 4, 4), torch.randn(3, 5)
    kernels = layer.kernel(sentence)[:, :, None, None]  # (B, C, 1, 1)
    expected = functional.conv2d(multi.reshape(1, 24, 4, 4), kernels, groups=3)[0]
    text = lts.Text(sentence, torch.empty(0), torch.empty(0))  # it looks at the sentence alone
    assert torch.allclose(layer(multi, text), expected, atol=1e-5)


def test_glove_vectors_stand_under_their_words(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("cup 1 2 3\nred 4 5 6\n", encoding="utf-8")
    settings, _ = recipe.load(RECIPE, ["tiny"], [f"model.glove={tmp_path / 'glove.txt'}", "model.word_width=3"])
    model: Any = methods.load("lts").build(settings, WordTokenizer.build(["red red cup unicorn"], 5))
    _, vectors = model.load_pretrained(settings, WordTokenizer.build(["red red cup unicorn"], 5))
    assert model.network.text.vectors.weight[2:4].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert (vectors.part, vectors.source, vectors.detail) == ("word vectors", "glove.txt", "for 2 of 3 words")


def test_without_glove_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    settings, _ = recipe.load(RECIPE, ["tiny"])
    model = methods.load("lts").build(settings, tokenizer := WordTokenizer.build(["red"], 5))
    loaded = model.load_pretrained(settings, tokenizer)
    assert "word vectors start random" in caplog.text
    assert loaded == [from_scratch("Darknet53"), from_scratch("word vectors")]


def test_f_m3_is_that_of_equations_5_to_7_with_every_map_upsampled_before_its_transformation() -> None:
    torch.manual_seed(0)
    fusion = lts.Fusion([6, 5, 4], 7, 3, slope=0.1).double()
    levels = [torch.randn(2, c, side, side).double() for c, side in ((6, 2), (5, 4), (4, 8))]
    sentence, images = torch.randn(4, 7).double(), torch.tensor([0, 0, 1, 1])
    coarse, middle, fine = (level[images] for level in levels)
    multi = fusion.visual1(coarse) * fusion.text(sentence)[:, :, None, None]
    multi = torch.cat((fusion.multi1(lts.upsample_twofold(multi)), fusion.visual2(middle)), dim=1)
    expected = torch.cat((fusion.multi2(lts.upsample_twofold(multi)), fusion.visual3(fine)), dim=1)
    projected = [level[images] for level in fusion.project_image(levels)]
    torch.testing.assert_close(fusion(projected, sentence), expected)


def test_features_of_an_image_have_the_width_of_the_projections() -> None:
    settings, _ = recipe.load(RECIPE, ["tiny"])
    tokenizer = WordTokenizer.build(["red"], 5)
    batch = Batch(torch.randn(1, 3, 64, 64), torch.tensor([0]), tokenizer(["red"]), None)
    features = methods.load("lts").build(settings, tokenizer).encode_image(batch)
    assert [tuple(feature.shape) for feature in features] == [
        (1, settings.model["fusion_channels"], s, s) for s in (2, 4, 8)
    ]
