"""MagNet's losses besides mask grounding. Their formulas are our reading.

B expressions, T words, K predictions, E channels of the alignment, H W the network input, h w the grid of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from risbench.nn.fusion import mean_of_words
from risbench.nn.logits import upsample
from risbench.nn.segmentation import area_average, soft_dice


def mask_losses(masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and Dice of all predictions, averaged over them: (B, K, h, w) and (B, H, W) to two scalars.

    The last prediction is compared on the network input, as it is at test time, the others on their own grid with the
    share of the ground truth in each cell.
    """
    earlier, last = masks[:, :-1], masks[:, -1:]
    shares = area_average(truth, (masks.shape[2], masks.shape[3]))  # (B, h, w)
    on_grid = _losses(_precise(earlier), shares)
    on_input = _losses(upsample(last, truth.shape[1:], align_corners=True), truth)
    weight = earlier.shape[1] / masks.shape[1]
    cross_entropy, dice = (weight * a + (1 - weight) * b for a, b in zip(on_grid, on_input, strict=True))
    return cross_entropy, dice


def _losses(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and Dice, averaged: (B, K, h, w) and (B, h, w)."""
    expected = truth[:, None].expand(logits.shape)
    return functional.binary_cross_entropy_with_logits(logits, expected), soft_dice(logits.sigmoid(), expected)


def alignment_loss(words: Tensor, mask: Tensor, features: Tensor, truth: Tensor, temperature: float) -> Tensor:
    """Cross-modal alignment: pixels of the referent are like the words, all others are unlike them; a scalar.

    Projected words (B, T, E) and their mask (B, T), pixels (B, E, h, w), ground truth (B, H, W). The mean cosine of a
    pixel with the words, divided by the temperature, is the logit of its being the referent's.
    """
    with torch.autocast(features.device.type, enabled=False):  # cosines near 1 need all their digits
        directions = mean_of_words(functional.normalize(_precise(words), dim=2), mask)  # (B, E)
        pixels = functional.normalize(_precise(features), dim=1)
        logits = torch.einsum("be,behw->bhw", directions, pixels) / temperature
        shares = area_average(truth, (features.shape[2], features.shape[3])).to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, shares)


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x
