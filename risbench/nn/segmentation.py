"""The segmentation module of LTS (section 3.3, Fig. 3), which other networks may use too, and its losses.

B expressions, C channels, H W the network input, h w the grid of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import ASPP

from risbench.nn.logits import PRIOR, Logit


class ASPPDeconvolution(nn.Module):
    """ASPP, then a deconvolution that doubles the resolution, then one logit per position."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: Sequence[int],
        dropout: float,
        slope: float,
        prior: float = PRIOR,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, list(rates), channels)
        self.aspp.project[-1].p = dropout
        self.deconvolution = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, kernel_size=4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(slope),
        )
        self.logit = Logit(channels, prior)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to logits (B, 2h, 2w)."""
        x = self.aspp(features)  # (B, channels, h, w)
        x = self.deconvolution(x)  # (B, channels, 2h, 2w)
        logits: Tensor = self.logit(x)
        return logits


def area_average(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the share of foreground in each cell of a coarser grid: (B, H, W) to (B, h, w)."""
    return functional.adaptive_avg_pool2d(mask[:, None], size).squeeze(1)


def summed_bce(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy, summed over positions (LTS, eq. 11 and 12), averaged over the batch: both (B, h, w)."""
    return functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(logits)


def soft_dice(probability: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice loss of masks, averaged: both (..., H, W), to a scalar.

    1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1) with sums over positions; the 1 keeps it defined when both sums are 0.
    """
    overlap, total = (probability * truth).sum(dim=(-2, -1)), (probability + truth).sum(dim=(-2, -1))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()
