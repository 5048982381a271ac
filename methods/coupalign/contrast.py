"""The auxiliary loss of CoupAlign: pixels of the object together, away from the background. Our reading."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pixel_contrast(features: Tensor, mask: Tensor, samples: int, temperature: float) -> Tensor:
    """InfoNCE over pixels: features (B, D, h, w) and mask (B, h, w), above 0.5 on the object, to a scalar.

    Of each expression `samples` pixels of the object and as many of the background are drawn, with repetition. Each
    pixel i of the object is compared with each other drawn one j and with all k of the background, by cosine s:
    -log(exp(s_ij / t) / (exp(s_ij / t) + sum_k exp(s_ik / t))). Expressions that lack either kind are left out.
    """
    inside = mask.flatten(1) > 0.5  # (B, hw)
    usable = inside.any(dim=1) & ~inside.all(dim=1)
    if not usable.any():
        return features.sum() * 0.0
    inside = inside[usable]
    with torch.autocast(features.device.type, enabled=False):  # cosines near 1 need all their digits
        pixels = functional.normalize(features[usable].flatten(2).transpose(1, 2).float(), dim=2)  # (B, hw, D)
        object_, background = (_drawn(pixels, among, samples) for among in (inside, ~inside))  # (B, S, D)
        near = object_ @ object_.transpose(1, 2) / temperature  # (B, S, S)
        far = (object_ @ background.transpose(1, 2) / temperature).logsumexp(dim=2, keepdim=True)  # (B, S, 1)
    losses = functional.softplus(far - near)  # the formula above, without its overflow
    others = ~torch.eye(samples, dtype=torch.bool, device=features.device)
    return losses[:, others].mean()


def _drawn(pixels: Tensor, among: Tensor, samples: int) -> Tensor:
    """Random pixels of each expression among those that are marked: (B, hw, D) and (B, hw) to (B, samples, D)."""
    places = torch.multinomial(among.float(), samples, replacement=True)  # (B, samples)
    return pixels.gather(1, places[:, :, None].expand(-1, -1, pixels.shape[2]))
