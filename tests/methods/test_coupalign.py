"""What is particular to CoupAlign: its parts against plain computations, its losses, its variants."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from risbench import methods, recipe
from risbench.api import Batch, Words, repeat_for_expressions
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError
from risbench.nn.fusion import mean_of_words

coupalign = methods.module("coupalign")
alignment, generator = (
    importlib.import_module(f"{coupalign.__package__}.{name}") for name in ("alignment", "generator")
)
RECIPE = methods.recipe_file("coupalign")
PIECES = 90  # word pieces of the networks here
PARAMETERS = {  # at full size, with a vocabulary of PIECES
    "swin-base": 188_343_738,
    "resnet101": 147_063_362,
    "darknet53": 142_187_490,
    "masks-0": 180_749_754,
    "masks-20": 188_323_258,
    "masks-50": 188_330_938,
    "masks-100": 188_343_738,
    "masks-150": 188_356_538,
    "masks-200": 188_369_338,
    "no-wpa": 182_713_274,
    "no-aux": 188_343_738,
    "no-coherence": 188_343_738,
    "less-weights": 188_343_738,
    "prototype-contrast": 188_343_738,
    "hidden-pixels": 188_343_738,
    "one-layer": 183_056_058,
    "whole-attention": 188_343_738,
    "mask-grounding": 211_019_028,
}


def build(*overrides: str, variants: tuple[str, ...] = ("tiny",)) -> Any:
    """A network, by default the small one from scratch, always the same one."""
    settings, _ = recipe.load(RECIPE, variants, [f"model.{override}" for override in overrides])
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(PIECES - 4))]
    return methods.load("coupalign").build(settings, WordPieceTokenizer(vocabulary, settings.text.max_tokens))


@pytest.fixture
def batch() -> Batch:
    """Three expressions of two images of 64 pixels."""
    torch.manual_seed(1)
    ids = torch.randint(5, PIECES, (3, 6))
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    truth = torch.zeros(3, 64, 64)
    truth[0, 8:30, 8:30] = truth[1, 40:60, 20:50] = truth[2, 30:, :20] = 1
    return Batch(torch.randn(2, 3, 64, 64), torch.tensor([0, 0, 1]), Words(ids * mask, mask), truth)


def encode(model: Any, batch: Batch) -> Any:
    return model.network(repeat_for_expressions(model.encode_image(batch), batch.image_index)[0], batch.words)


def step(model: Any, batch: Batch) -> None:
    """One training step."""
    before = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=1e-3)
    torch.autograd.backward(model.loss(batch)["total"])
    optimizer.step()
    after = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) > len(after) / 2


def test_alignment_is_attention_both_ways_behind_gates() -> None:
    """Against a computation that takes one expression and one head at a time."""
    torch.manual_seed(0)
    module = alignment.WPA(6, 5, width=8, heads=2, gate=0.3).double()
    pixels, words = torch.randn(2, 3, 4, 6).double(), torch.randn(2, 7, 5).double()
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    new_pixels, new_words = module(pixels, words, mask)
    for n, length in enumerate([7, 3]):
        x, y = module.pixel_norm(pixels[n].reshape(12, 6)), module.word_norm(words[n])
        queries, keys, values, modulated = (x @ w.T + b for w, b in _parts(module.pixels, 4))
        word_keys, word_values, word_queries = (y @ w.T + b for w, b in _parts(module.words, 3))
        language, vision = [], []
        for part in (slice(0, 4), slice(4, 8)):
            to_words = (queries[:, part] @ word_keys[:length, part].T / 2).softmax(dim=1)
            language.append(to_words @ word_values[:length, part] * functional.gelu(modulated[:, part]))
            vision.append((word_queries[:, part] @ keys[:, part].T / 2).softmax(dim=1) @ values[:, part])
        update = functional.layer_norm(module.to_pixels(torch.cat(language, 1)), (6,))
        expected = pixels[n].reshape(12, 6) + torch.tanh(module.pixel_gate) * update
        assert torch.allclose(new_pixels[n].reshape(12, 6), expected, rtol=0, atol=1e-12)
        update = functional.layer_norm(module.to_words(torch.cat(vision, 1)), (5,))
        expected = words[n] + torch.tanh(module.word_gate) * update
        assert torch.allclose(new_words[n], expected, rtol=0, atol=1e-12)


def _parts(layer: Any, parts: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(layer.weight.chunk(parts), layer.bias.chunk(parts), strict=True))


def test_both_directions_learn_from_the_first_step_on_and_hardly_disturb_the_encoders(batch: Batch) -> None:
    model = build("alignment_gate=0.1")
    torch.autograd.backward(model.loss(batch)["total"])
    for module in model.network.alignments:
        assert all(gate.detach().tanh().max() < 0.11 for gate in (module.pixel_gate, module.word_gate))
        for layer in (module.to_pixels, module.to_words, module.pixels, module.words):
            assert layer.weight.grad.abs().max() > 0
        assert module.pixel_gate.grad.abs().max() > 0 and module.word_gate.grad.abs().max() > 0


def test_both_attentions_are_fed_back_into_the_encoders(batch: Batch) -> None:
    """The first alignment changes the maps of later stages and the words of later layers."""
    model = build().eval()
    before = encode(model, batch)
    with torch.no_grad():
        model.network.alignments[0].pixel_gate.fill_(0.0)
    assert not torch.allclose(encode(model, batch).maps[3], before.maps[3], atol=1e-5)
    model = build().eval()
    with torch.no_grad():
        model.network.alignments[0].word_gate.fill_(0.0)
    assert not torch.allclose(encode(model, batch).words, before.words, atol=1e-5)


def test_an_untrained_network_predicts_its_prior(batch: Batch) -> None:
    low, high = (build(f"prior={prior}").eval().predict(batch).probability.logit().mean() for prior in (0.05, 0.5))
    assert torch.allclose(high - low, torch.tensor(0.05).logit().neg(), atol=1e-3)


def test_maps_words_and_masks_have_the_shapes_of_the_readme(batch: Batch) -> None:
    model = build("masks=7").eval()
    encoded = encode(model, batch)
    assert [tuple(fused.shape) for fused in encoded.maps] == [(3, 16 // 2**n, 16 // 2**n, 16 * 2**n) for n in range(4)]
    assert encoded.words.shape == (3, 6, 32) and encoded.sentence.shape == (3, 32)
    pyramid = model.head.pixels(encoded.maps)  # four maps (B, D, h, w)
    assert [tuple(level.shape) for level in pyramid] == [(3, 16, 16 // 2**n, 16 // 2**n) for n in range(4)]
    queries, masks = model.head.generator(pyramid)
    assert queries.shape == (3, 7, 16) and masks.shape == (3, 7, 16, 16)
    assert torch.allclose(model.head.proposals(encoded).weights.sum(dim=1), torch.ones(3))
    output = model.head(encoded)
    assert output.features.shape == (3, 16, 16, 16) and output.logits.shape == (3, 2, 16, 16)
    assert torch.equal(output.masks, masks) and model.predict(batch).probability.shape == (3, 64, 64)


def test_the_sentence_is_the_mean_of_its_words_without_padding() -> None:
    words, mask = torch.randn(2, 5, 3), torch.arange(5) < torch.tensor([[5], [2]])
    expected = torch.stack((words[0].mean(dim=0), words[1, :2].mean(dim=0)))
    assert torch.allclose(mean_of_words(words, mask), expected, atol=1e-6)


def test_the_order_of_the_queries_changes_nothing(batch: Batch) -> None:
    model = build().eval()
    before = model.predict(batch).probability
    with torch.no_grad():
        queries = model.head.generator.queries
        queries.copy_(queries[torch.randperm(len(queries))])
    assert torch.allclose(model.predict(batch).probability, before, atol=1e-5)


def test_ids_in_padding_change_nothing(batch: Batch) -> None:
    model = build().eval()
    other = batch.words.ids + 7 * ~batch.words.mask
    changed = batch._replace(words=Words(other, batch.words.mask))
    assert torch.allclose(model.predict(changed).probability, model.predict(batch).probability, atol=1e-6)


def test_the_total_is_segmentation_weighted_contrast_and_incoherence(batch: Batch) -> None:
    torch.manual_seed(0)
    terms = build("contrast=0.25", "mask_coherence=0.5").loss(batch)
    assert set(terms) == {"total", "segmentation", "auxiliary", "incoherence"}
    expected = terms["segmentation"] + 0.25 * terms["auxiliary"] + 0.5 * terms["incoherence"]
    assert torch.allclose(terms["total"], expected)
    assert set(build("contrast=0.0", "mask_coherence=0.0").loss(batch)) == {"total", "segmentation"}
    assert set(build("masks=0").loss(batch)) == {"total", "segmentation", "auxiliary"}


@pytest.mark.parametrize("variant", ["tiny", "prototype-contrast", "hidden-pixels", "less-weights", "masks-0"])
def test_a_training_step_never_waits_for_the_device(variant: str, batch: Batch) -> None:
    """Tensors without values stand for those of a device: a step that needs one to go on would be an error."""
    model, mask = build(variants=("tiny", variant)), batch.mask
    assert mask is not None
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        image, index, mask = map(mode.from_tensor, (batch.image, batch.image_index, mask))
        words = Words(*map(mode.from_tensor, batch.words))
        torch.autograd.backward(model.loss(Batch(image, index, words, mask))["total"])


def test_segmentation_is_the_weighted_cross_entropy_on_the_input(batch: Batch) -> None:
    model = build("class_weights=[0.9, 1.1]").eval()
    terms, probability = model.loss(batch), model.predict(batch).probability.double()
    assert batch.mask is not None
    weights = torch.where(batch.mask > 0, 1.1, 0.9).double()
    losses = -torch.where(batch.mask > 0, probability, 1 - probability).log()
    assert torch.allclose(terms["segmentation"].double(), (weights * losses).sum() / weights.sum(), atol=1e-5)


def test_mixed_precision_keeps_the_terms_whole(batch: Batch) -> None:
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch)
    assert len(terms) == 4 and all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


@pytest.mark.parametrize("variant", recipe.variant_names(RECIPE))
def test_every_variant_trains_a_step_and_predicts(variant: str, batch: Batch) -> None:
    model = build(variants=("tiny", variant))
    step(model.train(), batch)
    with torch.inference_mode():
        probability = model.eval().predict(batch).probability
    assert probability.shape == (3, 64, 64) and probability.isfinite().all()


@pytest.mark.parametrize("variant", [name for name in recipe.variant_names(RECIPE) if name != "tiny"])
def test_the_size_of_every_variant_is_pinned(variant: str) -> None:
    with torch.device("meta"):
        model = build(variants=(variant,))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[variant]


def test_without_masks_nothing_of_the_alignment_of_sentence_and_masks_is_left(batch: Batch) -> None:
    model = build("masks=0")
    assert model.head.generator is None and model.head.align is None
    step(model, batch)
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith(tuple(model.frozen))}
    assert len(without) == 3 and all("alignments.3" in name for name in without)


def test_without_alignment_the_words_act_through_the_masks_alone(batch: Batch) -> None:
    model = build("alignment=false").eval()
    one = batch._replace(image_index=torch.tensor([0, 0, 0]))
    encoded = encode(model, one)
    assert torch.allclose(encoded.maps[3][0], encoded.maps[3][1], atol=1e-6)
    probability = model.predict(one).probability
    assert not torch.allclose(probability[0], probability[1], atol=1e-6)


def test_explanations_show_the_heaviest_masks_and_where_a_word_looks(batch: Batch) -> None:
    model = build().eval()
    one = Batch(batch.image[:1], torch.tensor([0]), Words(*(part[:1] for part in batch.words)), None)
    with torch.inference_mode():
        panels = model.explain(one, [2, 3])
        encoded = encode(model, one)
        proposals = model.head.proposals(encoded)
        heaviest = int(proposals.weights[0].argmax())
        looks = model.network.attention(model.encode_image(one)[0], one.words)
        assert len(panels) == 6 + 4 and len(model.explain(one, [])) == 6
        assert f"mask {heaviest}:" in panels[0].title and torch.equal(
            panels[0].values, proposals.masks[0, heaviest].sigmoid()
        )
        shares = (looks[1][0, 2] + looks[1][0, 3]) / 2
        assert torch.allclose(panels[7].values, shares / shares.max(), atol=1e-5)
        assert f"stage 2: {100 * shares.min():.1f} to {100 * shares.max():.1f} %" in panels[7].title
        assert torch.allclose(looks[0].sum(dim=(2, 3)), torch.ones(1, 6), atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "tokens", "message"),
    [(("alignment=false",), [1], "leave --word out"), (("masks=0",), [], "with --word")],
)
def test_what_cannot_be_shown_is_one_sentence(
    overrides: tuple[str, ...], tokens: list[int], message: str, batch: Batch
) -> None:
    one = Batch(batch.image[:1], torch.tensor([0]), Words(*(part[:1] for part in batch.words)), None)
    with pytest.raises(InputError, match=message):
        build(*overrides).eval().explain(one, tokens)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("masks=0", "alignment=false"), "nothing that reads the words"),
        (("text_taps=[1, 2, 3, 3]",), "must rise"),
        (("text_taps=[1, 2, 3, 5]",), "must rise and end with the last of 4"),
        (("alignment_heads=3",), "cannot share 16"),
        (("mask_heads=3",), "cannot share 16"),
        (("mask_width=18",), "multiple of 4"),
        (("masks=1",), "nothing to choose"),
        (("backbone=resnetv2_50",), "no ResNet"),
        (("masks=-1",), "masks"),
        (("temperature=0.0",), "temperature"),
        (("mask_temperature=0.0",), "mask_temperature"),
        (("contrast_samples=1",), "contrast_samples"),
        (("backbone=resnet1",), "no ResNet"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(*overrides)


def test_an_input_that_no_first_map_fits_is_one_sentence(batch: Batch) -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        build().predict(batch._replace(image=batch.image[..., :63, :63]))


def test_weights_that_decay_are_those_of_layers() -> None:
    model = build()
    decayed, free = (group["params"] for group in model.parameter_groups())
    assert all(parameter.ndim > 1 for parameter in decayed)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed = {names[id(parameter)] for parameter in free if parameter.ndim > 1}
    assert undecayed == {n for n in names.values() if n.endswith(("generator.queries", "position_bias_table"))}
    assert len(decayed) + len(free) == len(names)
    assert [group.get("weight_decay") for group in model.parameter_groups()] == [None, 0.0]
