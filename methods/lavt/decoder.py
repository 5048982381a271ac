"""LAVT's decoder (section 3.4): from the coarsest fused map to the finest, by 3x3 convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.nn.convolution import ConvNormReLU
from risbench.nn.segmentation import ASPPDeconvolution


class Decoder(nn.Module):
    """Up-sample, join the next finer map, two convolutions; three times (eq. 8); then the logits."""

    def __init__(
        self, widths: Sequence[int], channels: int, prior: float, segmentation: ASPPDeconvolution | None = None
    ) -> None:
        """Two logits by a 1x1 convolution, or what a segmentation module makes of the last map."""
        super().__init__()
        coarsest, *finer = widths[::-1]
        self.levels = nn.ModuleList()
        for below, width in zip([coarsest, channels, channels], finer, strict=True):
            self.levels.append(nn.Sequential(ConvNormReLU(below + width, channels), ConvNormReLU(channels, channels)))
        self.segmentation = segmentation
        if segmentation is None:
            self.logits = nn.Conv2d(channels, 2, kernel_size=1)
            with torch.no_grad():
                cast(Tensor, self.logits.bias)[1] += math.log(prior / (1 - prior))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, h, w, C), the finest first, to logits of background and object (B, 2, H/4, W/4).

        The segmentation module answers at twice that resolution.
        """
        *finer, x = (fused.permute(0, 3, 1, 2) for fused in maps)  # (B, C, h, w), channels last in memory
        for level, fused in zip(self.levels, finer[::-1], strict=True):
            x = functional.interpolate(x, fused.shape[2:], mode="bilinear", align_corners=True)
            x = level(torch.cat((x, fused), dim=1))
        if self.segmentation is not None:
            foreground: Tensor = self.segmentation(x)  # (B, H/2, W/2)
            return torch.stack((torch.zeros_like(foreground), foreground), dim=1)  # softmax of it is their sigmoid
        logits: Tensor = self.logits(x)
        return logits
