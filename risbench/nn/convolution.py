"""The decoders' convolution, with a fast path for evaluation. B expressions, C channels, h w the grid of a map."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights


class ConvNormReLU(nn.Module):
    """3x3 convolution, batch normalisation, ReLU; evaluation folds the normalisation into the convolution."""

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
        weight, bias = fuse_conv_bn_weights(  # in every call: it is cheap, and the weights may have changed
            self.conv.weight, None, mean, variance, norm.eps, norm.weight, norm.bias
        )
        return functional.relu_(_convolve(x, weight, bias))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution with padding 1: (B, C, h, w) to (B, channels, h, w).

    On the CPU in float32 it calls NNPACK, whose Winograd algorithm is four times as fast; torch itself does so only for
    batches of 16 or more.
    """
    in_float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()  # neither autograd nor the compiler knows NNPACK
    fast = x.device.type == "cpu" and in_float32 and not traced
    if fast and torch.backends.nnpack.is_available():  # type: ignore[no-untyped-call]
        return torch._nnpack_spatial_convolution(x.contiguous(), weight, bias, padding=[1, 1])
    return functional.conv2d(x, weight, bias, padding=1)
