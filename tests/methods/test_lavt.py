"""What is particular to LAVT: its parts against plain computations, its losses, its variants."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Batch, Words, repeat_for_expressions
from risbench.errors import InputError
from risbench.nn.swin import Block

lavt = methods.module("lavt")
decoder = importlib.import_module(f"{lavt.__package__}.decoder")
RECIPE = methods.recipe_file("lavt")
PIECES = 90  # word pieces of the small networks here
SMALL = ["model.patch=2", "model.window=8", "model.class_weights=[0.9, 1.1]"]  # whatever tiny sets


def build(*overrides: str, variants: tuple[str, ...] = ("tiny",)) -> Any:
    """A network, by default the small one from scratch, always the same one."""
    fixed = SMALL if variants == ("tiny",) else []
    settings, _ = recipe.load(RECIPE, variants, [*fixed, *(f"model.{override}" for override in overrides)])
    torch.manual_seed(0)
    return methods.load("lavt").build(settings, range(PIECES))


@pytest.fixture
def batch() -> Batch:
    """Three expressions of two images; 48 pixels make maps of 24, 12, 6 and 3 cells for windows of 8."""
    torch.manual_seed(1)
    ids = torch.randint(5, PIECES, (3, 6))
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    truth = (torch.rand(3, 48, 48) > 0.7).float()
    return Batch(torch.randn(2, 3, 48, 48), torch.tensor([0, 0, 1]), Words(ids * mask, mask), truth)


def logits(model: Any, batch: Batch) -> Tensor:
    features = repeat_for_expressions(model.encode_image(batch), batch.image_index)
    output: Tensor = model.logits(features, batch.words)
    return output


def array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("variants", [("tiny",), ("resnet101",)])
def test_a_word_is_shown_where_it_is_attended_to_in_each_stage(batch: Batch, variants: tuple[str, ...]) -> None:
    small = ["text_width=64", "text_layers=1", "text_heads=2", "pretrained=false", "decoder_channels=8"]
    model = build(*small, variants=variants).eval()
    one = Batch(batch.image[:1, :, :32], torch.tensor([0]), Words(batch.words.ids[:1], batch.words.mask[:1]), None)
    stages: list[Tensor] = []
    for module in model.network.fusions:
        module.register_forward_pre_hook(lambda pwam, inputs: stages.append(pwam.attention(*inputs)[0]))
    probability = model.predict(one).probability
    sought = stages.copy()
    panels = model.explain(one, [2, 4])
    for number, (panel, attention) in enumerate(zip(panels, sought, strict=True), start=1):
        stride = model.network.backbone.stride * 2 ** (number - 1)
        share = attention[..., 2] + attention[..., 4]
        assert panel.values.shape == share.shape == (-(-32 // stride), -(-48 // stride))
        assert torch.allclose(panel.values * share.max(), share, atol=1e-6) and panel.values.max() == 1
        assert f"stage {number}: {100 * share.min():.0f} to {100 * share.max():.0f} %" in panel.title
    assert torch.equal(model.predict(one).probability, probability)


def test_without_a_word_the_attention_asks_for_one(batch: Batch) -> None:
    with pytest.raises(InputError, match="with --word"):
        build().explain(batch, [])


def test_gates_start_open_a_little() -> None:
    """The authors wanted to start them at zero, but their released code does not."""
    layers = [layer for gate in build().network.gates for layer in (gate.inner, gate.outer)]
    spread = [float(layer.weight.detach().std()) for layer in layers]
    assert spread == pytest.approx([0.02] * 8, rel=0.1)


def test_the_decoder_in_single_precision_stays_close_to_double() -> None:
    """On the CPU another library computes its convolutions when there is no gradient."""
    torch.manual_seed(0)
    network = decoder.Decoder([4, 6, 8, 10], 5, prior=0.5).eval()
    maps = [torch.randn(3, side, side, width) for side, width in ((17, 4), (9, 6), (5, 8), (3, 10))]
    with torch.inference_mode():
        logits = network(maps)
    expected = network.double()([fused.double() for fused in maps])
    assert logits.shape == (3, 2, 17, 17)
    assert torch.allclose(logits.double(), expected, rtol=0, atol=1e-5)


def test_logits_are_sampled_up_corner_on_corner(batch: Batch) -> None:
    model = build().double().eval()
    batch = batch._replace(image=batch.image.double())
    [features] = repeat_for_expressions(model.encode_image(batch), batch.image_index)
    small = array(model.network(features, batch.words))  # (B, 2, 24, 24)
    place = np.linspace(0, 23, 48)
    low = np.minimum(place.astype(int), 22)
    share = place - low
    rows = small[:, :, low] * (1 - share)[:, None] + small[:, :, low + 1] * share[:, None]
    expected = rows[..., low] * (1 - share) + rows[..., low + 1] * share
    assert np.allclose(array(logits(model, batch)), expected, rtol=0, atol=1e-12)


def test_cross_entropy_is_a_mean_weighted_by_class(batch: Batch) -> None:
    model = build()
    values = array(logits(model, batch))
    assert batch.mask is not None
    truth = array(batch.mask).astype(int)
    log_sum = np.log(np.exp(values).sum(axis=1))
    chosen = np.take_along_axis(values, truth[:, None], axis=1)[:, 0]
    weight = np.where(truth == 1, 1.1, 0.9)
    terms = model.loss(batch)
    assert set(terms) == {"total", "cross-entropy"}
    assert terms["total"].item() == pytest.approx((weight * (log_sum - chosen)).sum() / weight.sum(), rel=1e-5)


def test_dice_is_averaged_over_classes_and_expressions(batch: Batch) -> None:
    model = build("loss=dice")
    exponentials = np.exp(array(logits(model, batch)))
    probability = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert batch.mask is not None
    losses = []
    for share, truth in zip(probability, array(batch.mask), strict=True):
        for p, g in ((share[0], 1 - truth), (share[1], truth)):
            losses.append(1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))
    terms = model.loss(batch)
    assert set(terms) == {"total", "dice"}
    assert terms["total"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_dice_of_a_correct_empty_mask_is_zero() -> None:
    background = torch.stack((torch.ones(1, 4, 4), torch.zeros(1, 4, 4)), dim=1)
    assert lavt.dice(background, torch.zeros(1, 4, 4)).item() == 0


def test_foreground_is_where_argmax_says_object(batch: Batch) -> None:
    model = build().double().eval()
    batch = batch._replace(image=batch.image.double())
    model.network.decoder.logits.bias.data -= logits(model, batch).mean(dim=(0, 2, 3)).detach()  # some of either class
    foreground = model.predict(batch).probability > 0.5
    assert torch.equal(foreground, logits(model, batch).argmax(dim=1) == 1)
    assert 0.1 < foreground.double().mean() < 0.9


def test_a_tie_is_background(batch: Batch) -> None:
    model = build().eval()
    for parameter in model.network.decoder.logits.parameters():
        parameter.data.zero_()
    assert not (model.predict(batch).probability > 0.5).any()
    assert not logits(model, batch).argmax(dim=1).any()


def test_padded_words_change_nothing(batch: Batch) -> None:
    model = build().double().eval()
    batch = batch._replace(image=batch.image.double())
    ids, mask = batch.words
    other = batch._replace(words=Words(torch.where(mask, ids, 7), mask))
    short = batch._replace(image_index=torch.tensor([0]), words=Words(ids[1:2, :2], mask[1:2, :2]))
    expected = logits(model, batch)
    assert torch.allclose(logits(model, other), expected, rtol=0, atol=1e-10)
    assert torch.allclose(logits(model, short)[0], expected[1], rtol=0, atol=1e-10)


def test_checkpointing_changes_neither_loss_nor_gradients(batch: Batch) -> None:
    """With stochastic depth, whose choices the second computation has to repeat."""
    gradients, computed = [], []
    for checkpointing in ("false", "true"):
        model = build(f"activation_checkpointing={checkpointing}", "drop_path=0.5").train()
        for block in (module for module in model.modules() if isinstance(module, Block)):
            block.register_forward_pre_hook(lambda block, _: computed.append(block))
        torch.manual_seed(3)
        loss = model.loss(batch)["total"]
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) > 100
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*gradients, strict=True))
    assert sorted(Counter(computed).values()) == [1] * (len(set(computed)) // 2) + [2] * (len(set(computed)) // 2)


def test_bfloat16_stays_close(batch: Batch) -> None:
    model = build().eval()
    precise = logits(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = logits(model, batch)
        probability = model.predict(batch).probability
        model.train().loss(batch)["total"].backward()
    assert half.dtype == probability.dtype == torch.float32
    assert 0 < (half - precise).std() < 0.05 * precise.std()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("variants", "side", "multiple"), [(("tiny",), 47, 2), ((), 50, 4), (("resnet101",), 66, 4)])
def test_an_input_that_patches_do_not_fill_is_refused(variants: tuple[str, ...], side: int, multiple: int) -> None:
    with torch.device("meta"):
        model = build(variants=variants)
        words = Words(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))
        with pytest.raises(InputError, match=f"image.size={side} .*multiple of {multiple}"):
            model.predict(Batch(torch.zeros(1, 3, side, side), torch.tensor([0]), words, None))


@pytest.mark.parametrize(
    "override",
    [
        "depths=[2, 2, 2]",
        "depths=[2, 2, 2, 0]",
        "heads=[1, 2, 4, -8]",
        "heads=[3, 3, 3, 3]",
        "window=0",
        "patch=0",
        "drop_path=1",
        "text_heads=7",
        "text_layers=0",
        "text_layers_trained=0",
        "text_dropout=1.5",
        "fusion_dropout=-1",
        "decoder_channels=0",
        "class_weights=[1, 0]",
        "class_weights=[1]",
        "loss=focal",
        "backbone=resnet1",
        "backbone=vgg16",
    ],
)
def test_a_setting_that_makes_no_network_is_one_sentence(override: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(InputError) as error:
        build(override)
    assert f"model.{key}" in str(error.value) and value.strip("[]").split(", ")[-1] in str(error.value)
    assert "\n" not in str(error.value)
