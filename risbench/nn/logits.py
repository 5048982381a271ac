"""Logits of the target and what becomes of them. B expressions, C channels, h w the grid of a map, H W a finer grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

PRIOR = 0.05  # default share of foreground that an untrained network predicts, so that the loss starts low


class Logit(nn.Conv2d):
    """1x1 convolution to one logit per position, which starts at a prior share of foreground."""

    def __init__(self, channels: int, prior: float = PRIOR) -> None:
        super().__init__(channels, 1, kernel_size=1)
        nn.init.constant_(cast(Tensor, self.bias), prior_bias(prior))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) to (B, h, w)."""
        return super().forward(input).squeeze(1)


def two_logits(channels: int, prior: float) -> nn.Conv2d:
    """1x1 convolution to logits of background and target (B, 2, h, w), which start at a prior share of foreground."""
    layer = nn.Conv2d(channels, 2, kernel_size=1)
    with torch.no_grad():
        cast(Tensor, layer.bias)[1] += prior_bias(prior)
    return layer


def prior_bias(prior: float) -> float:
    """Return the bias at which a sigmoid predicts a prior share of foreground (Lin et al., RetinaNet, section 3.3)."""
    return math.log(prior / (1 - prior))


def upsample(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Sample bilinearly, in float32 or better: (B, n, h, w) to (B, n, H, W)."""
    precise = logits.float() if logits.dtype.itemsize < 4 else logits
    return functional.interpolate(precise, list(size), mode="bilinear", align_corners=align_corners)


def target_probability(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Up-sample logits of background and target and apply softmax: (B, 2, h, w) to the target's probability (B, H, W).

    Up-sampling is linear and softmax needs the difference only, so one map is sampled instead of two.
    """
    margin = upsample(logits[:, 1:] - logits[:, :1], size, align_corners)[:, 0]  # (B, H, W)
    return margin.float().sigmoid()
