"""CoupAlign's mask proposals: how queries read the maps, and what the sentence's weights write to the pixels."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from risbench import methods

PACKAGE = methods.module("coupalign").__package__
alignment, generator = (importlib.import_module(f"{PACKAGE}.{name}") for name in ("alignment", "generator"))


@pytest.fixture
def pyramid() -> list[Tensor]:
    """Maps (B, D, h, w) of two expressions, the finest first."""
    torch.manual_seed(0)
    return [torch.randn(2, 8, 2**n, 2**n) for n in (4, 3, 2, 1)]


def build(masks: int = 5, layers: int = 1, attention: str = "shares", dropout: float = 0.0) -> Any:
    """A generator for the pyramid, always the same one."""
    torch.manual_seed(1)
    return generator.MaskGenerator(masks, 8, layers, 2, dropout, attention).eval()


@pytest.fixture
def regions() -> Tensor:
    """Logits of three masks that share out 4 x 4 pixels: the first row, the second, the rest; (1, 3, 4, 4)."""
    masks = torch.full((1, 3, 4, 4), -30.0)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 2, 2:] = 30.0
    return masks


def test_the_weighted_masks_are_projected_to_the_pixels_with_what_they_cover() -> None:
    """Y_N and the masks' logit against a computation that takes one mask and one pixel at a time."""
    torch.manual_seed(0)
    module = alignment.SMA(5, 4, temperature=0.5)
    queries, sentence = torch.randn(1, 3, 4), torch.randn(1, 5)
    pixels, shares = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 2, 2).softmax(dim=1)
    places = [(y, x) for y in range(2) for x in range(2)]
    means = [sum(shares[0, n, y, x] * pixels[0, :, y, x] for y, x in places) / shares[0, n].sum() for n in range(3)]
    direction = functional.normalize(module.sentence(sentence[0]), dim=0)
    agreement = [functional.normalize(module.proposal(mean), dim=0) @ direction for mean in means]
    weights = (torch.stack(agreement) / 0.5).softmax(dim=0)
    content = [module.embedding(queries[0, n]) + module.region(means[n]) for n in range(3)]
    factors = sum(weights[n] * content[n][4:] for n in range(3))
    expected, chosen = torch.zeros(4, 2, 2), torch.zeros(2, 2)
    for y, x in places:
        for n in range(3):
            expected[:, y, x] += 3 * weights[n] * shares[0, n, y, x] * content[n][:4]
            chosen[y, x] += weights[n] * shares[0, n, y, x]
        expected[:, y, x] += factors * pixels[0, :, y, x]
    written, signal = module(queries, sentence, shares.logit(), pixels)
    assert torch.allclose(written[0], expected, rtol=0, atol=1e-5)
    assert torch.allclose(signal[0], chosen.logit() - torch.tensor(1 / 3).logit(), rtol=0, atol=1e-5)


def test_a_pixel_changes_the_map_wherever_its_mask_lies(regions: Tensor) -> None:
    """What a mask covers is written back to all of its pixels, and to no other unless by the common factors."""
    torch.manual_seed(0)
    module = alignment.SMA(5, 4, temperature=1e9)  # nearly uniform weights, whatever the regions
    with torch.no_grad():
        module.region.weight[4:] = 0.0  # no common factors of the regions
    queries, sentence, pixels = torch.randn(1, 3, 4), torch.randn(1, 5), torch.randn(1, 4, 4, 4)
    other = pixels.clone()
    other[0, :, 0, 0] += 1.0  # a quarter of the first region
    before, after = (module(queries, sentence, regions, p)[0][0] for p in (pixels, other))
    expected = module.region.weight[:4] @ torch.ones(4) / 4
    assert torch.allclose((after - before)[:, 0, 1:], expected[:, None].expand(4, 3), atol=1e-5)
    assert expected.abs().max() > 0.01 and torch.allclose(after[:, 1:], before[:, 1:], atol=1e-5)


def test_the_map_grows_with_the_weights_of_the_masks(regions: Tensor) -> None:
    torch.manual_seed(0)
    module = alignment.SMA(5, 4, temperature=0.2)
    queries, sentence, pixels = torch.randn(1, 3, 4), torch.randn(1, 5), torch.zeros(1, 4, 4, 4)
    pixels[0, 0, 0], pixels[0, 0, 1], pixels[0, 0, 2:] = 1.0, -1.0, 3.0
    weights, _, means = module.align(sentence, regions, pixels)
    assert torch.allclose(means[0, :, 0], torch.tensor([1.0, -1.0, 3.0]), atol=1e-5)
    content = module.embedding(queries) + module.region(means)
    factors = (weights[:, :, None] * content[..., 4:]).sum(dim=1)[0]
    written, signal = module(queries, sentence, regions, pixels)
    for row, mask in ((0, 0), (1, 1), (3, 2)):
        local = 3 * weights[0, mask] * content[0, mask, :4]
        assert torch.allclose(written[0, :, row, 0], local + factors * pixels[0, :, row, 0], atol=1e-5)
    rows = signal[0, [0, 1, 3], 0]
    assert (rows.argsort() == weights[0].argsort()).all()


def test_the_weights_follow_what_the_masks_cover_and_not_which_queries_made_them(regions: Tensor) -> None:
    """So no query becomes the one of the referent, whatever the sentence."""
    torch.manual_seed(0)
    module = alignment.SMA(5, 4, temperature=0.2)
    sentence, pixels = torch.randn(1, 5), torch.randn(1, 4, 4, 4)
    order = torch.tensor([2, 0, 1])
    before, after = (module.align(sentence, masks, pixels).weights for masks in (regions, regions[:, order]))
    assert torch.allclose(after, before[:, order], atol=1e-6) and before.std() > 0.01


def test_uniform_weights_add_no_logit() -> None:
    """Whatever the masks: only a choice of the sentence moves the logits."""
    torch.manual_seed(0)
    module = alignment.SMA(5, 4, temperature=0.5)
    masks = generator.share_logits(3 * torch.randn(2, 6, 4, 4))
    queries, sentence, pixels = torch.randn(2, 6, 4), torch.randn(2, 5), torch.randn(2, 4, 4, 4)
    assert module(queries, sentence, masks, pixels)[1].abs().max() > 0.1
    with torch.no_grad():
        module.sentence.weight.zero_()
        module.sentence.bias.zero_()
    assert module(queries, sentence, masks, pixels)[1].abs().max() < 1e-5


def test_weights_by_products_have_neither_norm_nor_temperature(regions: Tensor) -> None:
    torch.manual_seed(0)
    align = alignment.SMA(5, 4, temperature=None)
    sentence, pixels = torch.randn(1, 5), torch.randn(1, 4, 4, 4)
    weights, _, means = align.align(sentence, regions, pixels)
    products = align.proposal(means[0]) @ align.sentence(sentence[0])
    assert torch.allclose(weights[0], products.softmax(dim=0), atol=1e-6)


def test_proposals_share_out_every_pixel_so_that_no_two_cover_it(pyramid: list[Tensor]) -> None:
    _, masks = build()(pyramid)
    assert torch.allclose(masks.sigmoid().sum(dim=1), torch.ones(2, 16, 16), atol=1e-4)
    assert (masks > 0).sum(dim=1).max() <= 1
    sharp = generator.share_logits(torch.tensor([40.0, 0.0, -40.0]).view(1, 3, 1, 1)).flatten()
    assert sharp.isfinite().all() and sharp[0] > 10 and torch.allclose(sharp[1:], torch.tensor([-40.0, -80.0]))


def test_a_mask_s_logits_are_those_of_its_share(pyramid: list[Tensor]) -> None:
    module = build()
    queries, masks = module(pyramid)
    signals = torch.einsum("bnd,bdhw->bnhw", module.embedding(queries), pyramid[0])
    assert torch.allclose(masks.sigmoid(), signals.softmax(dim=1), atol=1e-5)


@pytest.mark.parametrize(("layers", "expected"), [(1, [64]), (2, [16, 64]), (3, [4, 16, 64]), (4, [64, 4, 16, 64])])
def test_the_layers_read_the_coarser_maps_in_turn_and_the_last_the_finest_of_them(
    pyramid: list[Tensor], layers: int, expected: list[int]
) -> None:
    module = build(layers=layers)
    sizes: list[int] = []
    for layer in module.layers:
        layer.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[1].shape[1]))
    module(pyramid)
    assert sizes == expected


def test_queries_read_more_than_the_coarsest_map(pyramid: list[Tensor]) -> None:
    module = build(layers=3)
    before, _ = module(pyramid)
    for number in range(4):  # the finest decides where the masks lie, and so what is read of the others
        changed = [level.roll(1, dims=3) if number == n else level for n, level in enumerate(pyramid)]
        assert not torch.allclose(module(changed)[0], before, atol=1e-4)


@pytest.mark.parametrize(("attention", "reads"), [("shares", False), ("hidden", False), ("whole", True)])
def test_a_query_reads_only_where_its_mask_lies(pyramid: list[Tensor], attention: str, reads: bool) -> None:
    """The first mask has all of the left half and nothing of the right half of the map that is changed there."""
    module = build(masks=2, attention=attention)
    signals = torch.zeros(2, 2, 8, 8)
    signals[:, 0, :, :4] = signals[:, 1, :, 4:] = 60.0
    module._signals = lambda queries, pixels: signals
    module.layers[0].self_attn.out_proj.weight.data.zero_()  # queries do not tell each other
    memory = generator._tokens(pyramid[1])
    changed = memory.clone().view(2, 8, 8, 8)
    changed[:, :, 4:] += 1.0
    queries = module.queries.expand(2, -1, -1)
    visibility = module._visibility(queries, pyramid[0], pyramid[1])
    before, after = (module.layers[0](queries, m.view(2, 64, 8), memory_mask=visibility) for m in (memory, changed))
    assert torch.allclose(before[:, 0], after[:, 0], atol=1e-5) is not reads
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_a_query_whose_mask_has_less_than_half_of_every_pixel_reads_all(pyramid: list[Tensor]) -> None:
    module = build(attention="hidden")
    module._signals = lambda queries, pixels: torch.zeros(2, 5, 8, 8)
    assert not module._visibility(module.queries.expand(2, -1, -1), pyramid[0], pyramid[1]).any()


def test_mask_embeddings_differ_even_for_similar_queries(pyramid: list[Tensor]) -> None:
    """Learned queries that hardly differ, as after training, still give different proposals."""
    module = build(masks=20)
    with torch.no_grad():
        module.queries.copy_(10.0 + 0.01 * module.queries)
    unit = functional.normalize(module(pyramid)[0], dim=2)  # (B, N, D)
    pairs = ~torch.eye(20, dtype=torch.bool)
    assert (unit @ unit.mT)[:, pairs].mean() < 0.2


def test_the_generator_knows_positions(pyramid: list[Tensor]) -> None:
    """The same pixels at other positions give other proposals, though attention alone ignores positions."""
    module = build(attention="whole")
    assert not torch.allclose(module(pyramid)[0], module([level.flip(3) for level in pyramid])[0], atol=1e-4)


def test_dropout_of_the_generator_is_the_recipe_s() -> None:
    assert all(layer.dropout.p == 0.3 for layer in build(layers=2, dropout=0.3).layers)
