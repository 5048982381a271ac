"""What is particular to CoupAlign: its parts against plain computations, its losses, its variants."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from risbench import methods, recipe
from risbench.api import Batch, Words, repeat_for_expressions
from risbench.errors import InputError

coupalign = methods.module("coupalign")
alignment, contrast, generator = (
    importlib.import_module(f"{coupalign.__package__}.{name}") for name in ("alignment", "contrast", "generator")
)
RECIPE = methods.recipe_file("coupalign")
PIECES = 90  # word pieces of the networks here
PARAMETERS = {  # at full size, with a vocabulary of PIECES
    "swin-base": 188_408_762,
    "resnet101": 147_390_530,
    "darknet53": 142_252_514,
    "masks-0": 180_749_754,
    "masks-20": 188_388_282,
    "masks-50": 188_395_962,
    "masks-100": 188_408_762,
    "masks-150": 188_421_562,
    "masks-200": 188_434_362,
    "no-wpa": 182_778_298,
    "no-aux": 188_408_762,
}


def build(*overrides: str, variants: tuple[str, ...] = ("tiny",)) -> Any:
    """A network, by default the small one from scratch, always the same one."""
    settings, _ = recipe.load(RECIPE, variants, [f"model.{override}" for override in overrides])
    torch.manual_seed(0)
    return methods.load("coupalign").build(settings, range(PIECES))


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
    assert [tuple(fused.shape) for fused in encoded.maps] == [(3, 16 // 2**n, 16 // 2**n, 32 * 2**n) for n in range(4)]
    assert encoded.words.shape == (3, 6, 64) and encoded.sentence.shape == (3, 64)
    pixels = model.head.pixels(encoded.maps)  # (B, D, H/4, W/4)
    queries = model.head.generator(encoded.maps[-1])
    proposals = model.head.align.align(queries, encoded.sentence, pixels)
    assert pixels.shape == (3, 32, 16, 16) and queries.shape == (3, 7, 32)
    assert proposals.masks.shape == (3, 7, 16, 16)
    assert torch.allclose(proposals.weights.sum(dim=1), torch.ones(3))
    assert model.predict(batch).probability.shape == (3, 64, 64)


def test_the_sentence_is_the_mean_of_its_words_without_padding() -> None:
    words, mask = torch.randn(2, 5, 3), torch.arange(5) < torch.tensor([[5], [2]])
    expected = torch.stack((words[0].mean(dim=0), words[1, :2].mean(dim=0)))
    assert torch.allclose(alignment.mean_of_words(words, mask), expected, atol=1e-6)


def test_the_signals_are_the_masks_by_the_sentence_s_weights_and_return_to_the_pixels_they_cover() -> None:
    torch.manual_seed(0)
    module = alignment.SMA(5, 4, temperature=0.5).double()
    queries, sentence = torch.randn(1, 3, 4).double(), torch.randn(1, 5).double()
    pixels = torch.randn(1, 4, 2, 2).double()
    direction = functional.normalize(module.sentence(sentence[0]), dim=0)
    agreement = [functional.normalize(module.proposal(q), dim=0) @ direction for q in queries[0]]
    weights = (torch.stack(agreement) / 0.5).softmax(dim=0)
    expected, signal = torch.zeros(4, 2, 2).double(), torch.zeros(2, 2).double()
    for n in range(3):
        for y in range(2):
            for x in range(2):
                mask = module.embedding(queries[0, n]) @ pixels[0, :, y, x]
                expected[:, y, x] += weights[n] * mask.sigmoid() * module.project(queries[0, n])
                signal[y, x] += weights[n] * mask
    gathered, signals = module(queries, sentence, pixels)
    assert torch.allclose(gathered[0], expected, rtol=0, atol=1e-12)
    assert torch.allclose(signals[0], signal, rtol=0, atol=1e-12)


def test_mask_embeddings_differ_even_for_similar_queries(batch: Batch) -> None:
    """Learned queries that hardly differ, as after training, still give different proposals."""
    model = build().eval()
    with torch.no_grad():
        queries = model.head.generator.queries
        queries.copy_(10.0 + 0.01 * queries)
    unit = functional.normalize(model.head.generator(encode(model, batch).maps[-1]), dim=2)  # (B, N, D)
    pairs = ~torch.eye(unit.shape[1], dtype=torch.bool)
    assert (unit @ unit.mT)[:, pairs].mean() < 0.2


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


def test_the_contrast_is_its_formula_over_pairs_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the drawn pixels known, against a loop over them."""
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4, 4).double()
    mask = torch.zeros(2, 4, 4)
    mask[0, :2, :2] = mask[1, 1:3, :] = 1
    places = {True: torch.tensor([[0, 1, 4], [5, 8, 8]]), False: torch.tensor([[2, 15, 8], [0, 3, 14]])}

    def drawn(weights: Tensor, samples: int, replacement: bool) -> Tensor:
        chosen = places[bool(weights[0, 0])]  # the first pixel belongs to the target of the first expression
        assert samples == 3 and replacement and weights.gather(1, chosen).all()
        return chosen

    monkeypatch.setattr(torch, "multinomial", drawn)
    losses = []
    for n in range(2):
        unit = functional.normalize(features[n].flatten(1).T, dim=1)
        target, background = unit[places[True][n]], unit[places[False][n]]
        for i in range(3):
            for j in {0, 1, 2} - {i}:
                near = torch.exp(target[i] @ target[j] / 0.5)
                losses.append(-torch.log(near / (near + torch.exp(background @ target[i] / 0.5).sum())))
    expected = torch.stack(losses).mean()
    assert torch.allclose(contrast.pixel_contrast(features, mask, 3, 0.5).double(), expected, rtol=0, atol=1e-5)


def test_the_contrast_draws_from_the_right_side_and_leaves_out_expressions_with_one_side() -> None:
    """Equal target pixels, unlike the background: no loss. Without target or background: zero, with a gradient."""
    mask = torch.zeros(2, 4, 4)
    mask[0, :2] = 1
    features = torch.stack((mask, 1 - mask), dim=1).requires_grad_()  # (B, 2, h, w)
    assert contrast.pixel_contrast(features, mask, 8, 0.02) < 1e-6
    for one_sided in (torch.zeros(2, 4, 4), torch.ones(2, 4, 4)):
        loss = contrast.pixel_contrast(features, one_sided, 8, 0.1)
        loss.backward()
        assert loss == 0 and features.grad is not None and not features.grad.any()


def test_the_total_is_segmentation_and_weighted_contrast(batch: Batch) -> None:
    torch.manual_seed(0)
    terms = build("contrast=0.25").loss(batch)
    assert set(terms) == {"total", "segmentation", "auxiliary"}
    assert torch.allclose(terms["total"], terms["segmentation"] + 0.25 * terms["auxiliary"])
    assert set(build("contrast=0.0").loss(batch)) == {"total", "segmentation"}


def test_segmentation_is_the_weighted_cross_entropy_on_the_input(batch: Batch) -> None:
    model = build("class_weights=[0.9, 1.1]").eval()
    terms, probability = model.loss(batch), model.predict(batch).probability.double()
    assert batch.mask is not None
    weights = torch.where(batch.mask > 0, 1.1, 0.9).double()
    losses = -torch.where(batch.mask > 0, probability, 1 - probability).log()
    assert torch.allclose(terms["segmentation"].double(), (weights * losses).sum() / weights.sum(), atol=1e-5)


def test_mixed_precision_keeps_class_weights_and_cosines_whole(batch: Batch) -> None:
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch)
    torch.manual_seed(0)
    features, mask = 5 + 0.1 * torch.randn(2, 8, 4, 4), torch.eye(4).expand(2, 4, 4)
    torch.manual_seed(1)
    expected = contrast.pixel_contrast(features, mask, 16, 0.1)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrast.pixel_contrast(features, mask, 16, 0.1)
    assert torch.equal(loss, expected)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


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
        proposals = model.head.align.align(
            model.head.generator(encoded.maps[-1]), encoded.sentence, model.head.pixels(encoded.maps)
        )
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
        (("alignment_heads=3",), "cannot share 32"),
        (("mask_heads=3",), "cannot share 32"),
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


def test_the_generator_knows_positions() -> None:
    """The same pixels at other positions give other proposals, though attention alone ignores positions."""
    torch.manual_seed(0)
    module = generator.MaskGenerator(4, pixel_width=6, width=8, layers=1, heads=2, dropout=0.0).eval()
    pixels = torch.randn(1, 3, 3, 6)
    assert not torch.allclose(module(pixels), module(pixels.flip(2)), atol=1e-4)


def test_dropout_of_the_generator_is_the_recipe_s() -> None:
    layers = build("mask_dropout=0.3").head.generator.decoder.layers
    assert all(layer.dropout.p == 0.3 for layer in layers)


def test_half_covered_pixels_are_background_to_the_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def first(pixels: Tensor, among: Tensor, samples: int) -> Tensor:
        drawn.append(among)
        return pixels[:, :samples]

    monkeypatch.setattr(contrast, "_draw_pixels", first)
    contrast.pixel_contrast(torch.randn(1, 3, 1, 4), torch.tensor([[[0.0, 0.5, 0.51, 1.0]]]), 2, 0.1)
    assert drawn[0].tolist() == [[False, False, True, True]] and drawn[1].tolist() == [[True, True, False, False]]
