"""The auxiliary loss of CoupAlign, which draws pixels of the target together, away from the background. Our reading.

B expressions, S sampled pixels, D channels, h w the grid of a map.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Sides(NamedTuple):
    """Normalised pixels of each expression; no step waits for the device to tell which expressions count."""

    pixels: Tensor  # (B, hw, D)
    inside: Tensor  # (B, hw), whether a pixel is the target's
    target: Tensor  # drawn pixels (B, S, D)
    background: Tensor  # drawn pixels (B, S, D)
    usable: Tensor  # (B,), whether an expression has both; otherwise what was drawn means nothing


def pixel_contrast(features: Tensor, mask: Tensor, samples: int, temperature: float) -> Tensor:
    """InfoNCE over pixels: features (B, D, h, w) and mask (B, h, w), above 0.5 on the target, to a scalar.

    For each expression, `samples` pixels of the target and as many of the background are drawn with repetition. Target
    pixel i is compared with each other target pixel j and with all background pixels k, by the cosine s:
    -log(exp(s_ij / t) / (exp(s_ij / t) + sum_k exp(s_ik / t))). Expressions without target or without background do not
    count; without any other expression the loss is 0.
    """
    with torch.autocast(features.device.type, enabled=False):  # cosines near 1 need all their digits
        sides = _draw_sides(features, mask, samples)
        near = sides.target @ sides.target.transpose(1, 2) / temperature  # (B, S, S)
        losses = functional.softplus(_far(sides, temperature) - near)  # the formula above, without overflow
    pairs = 1 - torch.eye(samples, device=features.device)  # (S, S)
    return _mean_of_usable((losses * pairs).sum(dim=(1, 2)) / pairs.sum(), sides.usable)


def prototype_contrast(features: Tensor, mask: Tensor, samples: int, temperature: float) -> Tensor:
    """As `pixel_contrast`, with the mean of all normalised target pixels, a, in place of the other target pixels.

    For each expression -log(mean_i exp(s_ia / t) / (exp(s_ia / t) + sum_k exp(s_ik / t))), the mean inside the
    logarithm, as in LESS (NeurIPS 2024), which compares all pixels instead of `samples` of them.
    """
    with torch.autocast(features.device.type, enabled=False):
        sides = _draw_sides(features, mask, samples)
        count = sides.inside.sum(dim=1, keepdim=True).clamp_min(1)  # (B, 1)
        prototype = (sides.pixels * sides.inside[:, :, None]).sum(dim=1) / count  # (B, D)
        near = sides.target @ prototype[:, :, None] / temperature  # (B, S, 1)
        log_ratios = functional.logsigmoid(near - _far(sides, temperature))  # (B, S, 1)
        losses = math.log(samples) - log_ratios.logsumexp(dim=(1, 2))  # (B,)
    return _mean_of_usable(losses, sides.usable)


def _far(sides: Sides, temperature: float) -> Tensor:
    """Return log(sum_k exp(s_ik / t)) of each drawn target pixel i: (B, S, 1)."""
    return (sides.target @ sides.background.transpose(1, 2) / temperature).logsumexp(dim=2, keepdim=True)


def _mean_of_usable(losses: Tensor, usable: Tensor) -> Tensor:
    """Return the mean over the usable expressions, both (B,), or 0 when there is none."""
    return torch.where(usable, losses, 0.0).sum() / usable.sum().clamp_min(1)


def _draw_sides(features: Tensor, mask: Tensor, samples: int) -> Sides:
    """Draw `samples` pixels of the target and of the background of each expression."""
    inside = mask.flatten(1) > 0.5  # (B, hw)
    usable = inside.any(dim=1) & ~inside.all(dim=1)
    pixels = functional.normalize(features.flatten(2).transpose(1, 2).float(), dim=2)  # (B, hw, D)
    positions = _draw_positions(torch.cat((inside, ~inside)), usable.repeat(2), samples)  # (2B, S)
    target, background = (_take(pixels, drawn) for drawn in positions.chunk(2))
    return Sides(pixels, inside, target, background, usable)


def _draw_positions(candidates: Tensor, usable: Tensor, samples: int) -> Tensor:
    """Draw positions from each row of candidates (R, hw), with repetition: (R, S).

    Rows that are not usable (R,) may have no candidate, which would be an error: they are drawn from all positions, and
    last, so that they do not change what the others draw.
    """
    order = usable.int().argsort(descending=True, stable=True)
    among = (candidates | ~usable[:, None])[order]
    drawn = torch.multinomial(among.float(), samples, replacement=True)
    return drawn[order.argsort()]


def _take(pixels: Tensor, positions: Tensor) -> Tensor:
    """(B, hw, D) at positions (B, S) to (B, S, D)."""
    return pixels.gather(1, positions[:, :, None].expand(-1, -1, pixels.shape[2]))
