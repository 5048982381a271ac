"""The auxiliary loss of CoupAlign, which draws pixels of the target together, away from the background. Our reading.

B expressions, S sampled pixels, D channels, h w the grid of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pixel_contrast(features: Tensor, mask: Tensor, samples: int, temperature: float) -> Tensor:
    """InfoNCE over pixels: features (B, D, h, w) and mask (B, h, w), above 0.5 on the target, to a scalar.

    For each expression, `samples` pixels of the target and as many of the background are drawn with repetition. Target
    pixel i is compared with each other target pixel j and with all background pixels k, by the cosine s:
    -log(exp(s_ij / t) / (exp(s_ij / t) + sum_k exp(s_ik / t))). Expressions without target or without background do not
    count; without any other expression the loss is 0.
    """
    inside = mask.flatten(1) > 0.5  # (B, hw)
    usable = inside.any(dim=1) & ~inside.all(dim=1)
    if not usable.any():
        return features.sum() * 0.0
    inside = inside[usable]
    with torch.autocast(features.device.type, enabled=False):  # cosines near 1 need all their digits
        pixels = functional.normalize(features[usable].flatten(2).transpose(1, 2).float(), dim=2)  # (B, hw, D)
        target, background = (_draw_pixels(pixels, side, samples) for side in (inside, ~inside))  # (B, S, D)
        near = target @ target.transpose(1, 2) / temperature  # (B, S, S)
        far = (target @ background.transpose(1, 2) / temperature).logsumexp(dim=2, keepdim=True)  # (B, S, 1)
    losses = functional.softplus(far - near)  # the formula above, without overflow
    pairs = ~torch.eye(samples, dtype=torch.bool, device=features.device)
    return losses[:, pairs].mean()


def _draw_pixels(pixels: Tensor, candidates: Tensor, samples: int) -> Tensor:
    """Draw pixels of each expression from its candidates: (B, hw, D) and bool (B, hw) to (B, S, D)."""
    positions = torch.multinomial(candidates.float(), samples, replacement=True)  # (B, S)
    return pixels.gather(1, positions[:, :, None].expand(-1, -1, pixels.shape[2]))
