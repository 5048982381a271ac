"""LAVT's decoder (section 3.4): from the coarsest fused map to the finest, by 3x3 convolutions.

B expressions, C channels, H W the network input, h w the grid of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.nn.convolution import ConvNormReLU
from risbench.nn.logits import two_logits
from risbench.nn.segmentation import ASPPDeconvolution


class Decoder(nn.Module):
    """Up-sample, join the next finer map, two convolutions; three times; then the logits."""

    def __init__(
        self, widths: Sequence[int], channels: int, prior: float, segmentation: ASPPDeconvolution | None = None
    ) -> None:
        """Logits come from a 1x1 convolution, or from a segmentation module."""
        super().__init__()
        coarsest, *finer = widths[::-1]
        self.levels = nn.ModuleList()
        for coarser, width in zip([coarsest, channels, channels], finer, strict=True):
            self.levels.append(nn.Sequential(ConvNormReLU(coarser + width, channels), ConvNormReLU(channels, channels)))
        self.segmentation = segmentation
        if segmentation is None:
            self.logits = two_logits(channels, prior)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, h, w, C), the finest first, to logits of background and target (B, 2, H/4, W/4).

        With a segmentation module the logits are (B, 2, H/2, W/2).
        """
        *finer, x = (fused.permute(0, 3, 1, 2) for fused in maps)  # (B, C, h, w), channels last in memory
        for level, fused in zip(self.levels, finer[::-1], strict=True):
            x = functional.interpolate(x, fused.shape[2:], mode="bilinear", align_corners=True)
            x = level(torch.cat((x, fused), dim=1))
        if self.segmentation is not None:
            target: Tensor = self.segmentation(x)  # (B, H/2, W/2)
            return torch.stack((torch.zeros_like(target), target), dim=1)  # softmax of (0, z) is sigmoid of z
        logits: Tensor = self.logits(x)
        return logits
