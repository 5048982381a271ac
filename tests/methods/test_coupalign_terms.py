"""CoupAlign's loss terms besides the segmentation: the contrasts of pixels and the incoherence of the masks."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from risbench import methods

PACKAGE = methods.module("coupalign").__package__
contrast, coherence = (importlib.import_module(f"{PACKAGE}.{name}") for name in ("contrast", "coherence"))
PLACES = {True: torch.tensor([[0, 1, 4], [5, 8, 8]]), False: torch.tensor([[2, 15, 8], [0, 3, 14]])}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Features and masks of two expressions, with the places that are drawn known: 3 of the target, 3 of the rest."""
    torch.manual_seed(0)
    mask = torch.zeros(2, 4, 4)
    mask[0, :2, :2] = mask[1, 1:3, :] = 1
    places = torch.cat((PLACES[True], PLACES[False]))

    def draw(weights: Tensor, samples: int, replacement: bool) -> Tensor:
        assert samples == 3 and replacement and weights.gather(1, places).all()
        return places

    monkeypatch.setattr(torch, "multinomial", draw)
    return torch.randn(2, 3, 4, 4).double(), mask


def test_the_contrast_is_its_formula_over_pairs_of_pixels(drawn: tuple[Tensor, Tensor]) -> None:
    """Against a loop over the drawn pixels."""
    features, mask = drawn
    losses = []
    for n in range(2):
        unit = functional.normalize(features[n].flatten(1).T, dim=1)
        target, background = unit[PLACES[True][n]], unit[PLACES[False][n]]
        for i in range(3):
            for j in {0, 1, 2} - {i}:
                near = torch.exp(target[i] @ target[j] / 0.5)
                losses.append(-torch.log(near / (near + torch.exp(background @ target[i] / 0.5).sum())))
    expected = torch.stack(losses).mean()
    assert torch.allclose(contrast.pixel_contrast(features, mask, 3, 0.5).double(), expected, rtol=0, atol=1e-5)


def test_the_contrast_with_a_prototype_is_its_formula(drawn: tuple[Tensor, Tensor]) -> None:
    features, mask = drawn
    losses = []
    for n in range(2):
        unit = functional.normalize(features[n].flatten(1).T, dim=1)
        prototype = unit[mask[n].flatten() > 0].mean(dim=0)
        ratios = []
        for pixel in unit[PLACES[True][n]]:
            near, far = torch.exp(pixel @ prototype / 0.5), torch.exp(unit[PLACES[False][n]] @ pixel / 0.5).sum()
            ratios.append(near / (near + far))
        losses.append(-torch.stack(ratios).mean().log())
    expected = torch.stack(losses).mean()
    assert torch.allclose(contrast.prototype_contrast(features, mask, 3, 0.5).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["pixel_contrast", "prototype_contrast"])
def test_the_contrast_draws_from_the_right_side_and_leaves_out_expressions_with_one_side(form: str) -> None:
    """Equal target pixels, unlike the background: no loss. Without target or background: zero, with a gradient."""
    loss_of = getattr(contrast, form)
    mask = torch.zeros(2, 4, 4)
    mask[0, :2] = 1
    features = torch.stack((mask, 1 - mask), dim=1).requires_grad_()  # (B, 2, h, w)
    assert loss_of(features, mask, 8, 0.02) < 1e-6
    for one_sided in (torch.zeros(2, 4, 4), torch.ones(2, 4, 4)):
        loss = loss_of(features, one_sided, 8, 0.1)
        loss.backward()
        assert loss == 0 and features.grad is not None and not features.grad.any()


@pytest.mark.parametrize("form", ["pixel_contrast", "prototype_contrast"])
def test_an_expression_with_one_side_changes_nothing_for_the_others(form: str) -> None:
    """Neither the loss nor which pixels are drawn, wherever in the batch it stands."""
    torch.manual_seed(0)
    features, mask = torch.randn(3, 8, 6, 6), torch.zeros(3, 6, 6)
    mask[:, 1:3, 2:5] = 1
    losses = []
    for rows in ([0, 1, 2], [0, 3, 1, 2], [4, 3, 0, 1, 2, 3]):
        all_features = torch.cat((features, torch.randn(2, 8, 6, 6)))[rows]
        all_masks = torch.cat((mask, torch.zeros(1, 6, 6), torch.ones(1, 6, 6)))[rows]
        torch.manual_seed(1)
        losses.append(getattr(contrast, form)(all_features, all_masks, 16, 0.1))
    assert torch.allclose(torch.stack(losses), losses[0], rtol=1e-6)


@pytest.mark.parametrize("form", ["pixel_contrast", "prototype_contrast"])
def test_the_contrast_never_waits_for_the_device(form: str) -> None:
    """Tensors without values stand for those of a device: a step that needs one to go on would be an error."""
    with FakeTensorMode():
        features, mask = torch.randn(3, 8, 6, 6, requires_grad=True), torch.rand(3, 6, 6)
        loss = getattr(contrast, form)(features, mask, 16, 0.1)
        torch.autograd.backward(loss)
        assert features.grad is not None and features.grad.shape == features.shape


def test_half_covered_pixels_are_background_to_the_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates: list[Tensor] = []

    def first(among: Tensor, usable: Tensor, samples: int) -> Tensor:
        candidates.append(among)
        return torch.zeros(len(among), samples, dtype=torch.int64)

    monkeypatch.setattr(contrast, "_draw_positions", first)
    contrast.pixel_contrast(torch.randn(1, 3, 1, 4), torch.tensor([[[0.0, 0.5, 0.51, 1.0]]]), 2, 0.1)
    assert candidates[0].tolist() == [[False, False, True, True], [True, True, False, False]]


@pytest.mark.parametrize("form", ["pixel_contrast", "prototype_contrast"])
def test_mixed_precision_keeps_cosines_whole(form: str) -> None:
    torch.manual_seed(0)
    features, mask = 5 + 0.1 * torch.randn(2, 8, 4, 4), torch.eye(4).expand(2, 4, 4)
    losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(getattr(contrast, form)(features, mask, 16, 0.1))
    assert torch.equal(*losses)


def test_incoherence_is_the_variance_within_the_masks() -> None:
    """Against plain sums over pixels, masks, and the five features colour and place."""
    torch.manual_seed(0)
    image, shares = torch.rand(2, 3, 6, 6), torch.randn(3, 4, 3, 3).softmax(dim=1)
    index = torch.tensor([0, 1, 1])
    expected = []
    for b, i in enumerate(index.tolist()):
        cells = []
        for y in range(3):
            for x in range(3):
                colour = image[i, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(dim=(1, 2))
                cells.append(torch.cat((colour, torch.tensor([y - 1.0, x - 1.0]))))
        features, within = torch.stack(cells), torch.tensor(0.0)
        for n in range(4):
            share = shares[b, n].flatten()
            centre = (share[:, None] * features).sum(dim=0) / share.sum()
            within += (share * (features - centre).square().sum(dim=1)).sum()
        expected.append(within / (features - features.mean(dim=0)).square().sum())
    measured = coherence.incoherence(image, index, shares)
    assert torch.allclose(measured, torch.stack(expected).mean(), atol=1e-5)


def test_incoherence_is_low_for_masks_of_objects_and_one_for_masks_that_are_alike() -> None:
    image, shares = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    image[0, :, 1:3, 1:3], image[0, :, 5:7, 5:7] = 9.0, -9.0
    shares[0, 0, 1:3, 1:3] = shares[0, 1, 5:7, 5:7] = 1
    shares[0, 2] = 1 - shares[0, :2].sum(dim=0)
    index = torch.tensor([0])
    objects, shifted, alike = (
        coherence.incoherence(image, index, value)
        for value in (shares, shares.roll(2, dims=3), torch.full_like(shares, 1 / 3))
    )
    assert objects < 0.05 and shifted > 0.5 and torch.allclose(alike, torch.tensor(1.0), atol=1e-6)


def test_masks_that_follow_incoherence_part_the_objects_of_an_image() -> None:
    """No mask is shown: two blobs on a ground and the term alone give each of the three a mask of its own."""
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 8, 8)
    image[0, :, 1:3, 1:3], image[0, :, 5:7, 5:7] = 9.0, -9.0
    logits = torch.randn(1, 3, 8, 8).mul_(0.1).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(coherence.incoherence(image, torch.tensor([0]), logits.softmax(dim=1)))
        optimizer.step()
    chosen = logits[0].argmax(dim=0)
    blobs = torch.zeros(2, 8, 8, dtype=torch.bool)
    blobs[0, 1:3, 1:3] = blobs[1, 5:7, 5:7] = True
    parts = [set(chosen[region].tolist()) for region in (blobs[0], blobs[1], ~(blobs[0] | blobs[1]))]
    assert [len(part) for part in parts] == [1, 1, 1] and len(set.union(*parts)) == 3
