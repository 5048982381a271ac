"""The convolution of the decoders, as fast in evaluation as torch can."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights


class ConvNormReLU(nn.Module):
    """3x3 convolution, batch normalisation, ReLU; in evaluation the normalisation is folded into the convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, channels, h, w)."""
        if self.training:
            return functional.relu(self.norm(self.conv(x)))
        norm = self.norm
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        weight, bias = fuse_conv_bn_weights(  # cheap beside the convolution, and never out of date
            self.conv.weight, None, mean, variance, norm.eps, norm.weight, norm.bias
        )
        return functional.relu_(_convolution(x, weight, bias))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution with padding 1; on the CPU in float32 by NNPACK, four times as fast by Winograd's algorithm.

    torch itself turns to NNPACK for batches of 16 and more only.
    """
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    plain = plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling()  # which cannot trace NNPACK
    if plain and torch.backends.nnpack.is_available():  # type: ignore[no-untyped-call]
        return torch._nnpack_spatial_convolution(x.contiguous(), weight, bias, padding=[1, 1])
    return functional.conv2d(x, weight, bias, padding=1)
