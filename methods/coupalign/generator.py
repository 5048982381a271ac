"""Pixel embeddings and mask embeddings from the fused maps S_o, in the manner of MaskFormer. Our reading.

B expressions, N masks, C and D channels, H W the network input, h w the grid of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from risbench.nn.convolution import ConvNormReLU


class FPN(nn.Module):
    """Feature pyramid: the coarsest map, up-sampled and added to the next finer one, three times."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Linear(width, channels) for width in widths)  # 1x1 convolutions
        self.smooth = nn.ModuleList(ConvNormReLU(channels, channels) for _ in widths[1:])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, h, w, C), the finest first, to pixel embeddings (B, D, H/4, W/4)."""
        pairs = zip(self.laterals, maps, strict=True)
        *finer, x = (cast(Tensor, lateral(fused)).permute(0, 3, 1, 2) for lateral, fused in pairs)  # (B, D, h, w)
        for fine, smooth in zip(finer[::-1], self.smooth, strict=True):
            x = functional.interpolate(x, fine.shape[2:], mode="bilinear", align_corners=False)
            x = smooth(x + fine)
        return x


class MaskGenerator(nn.Module):
    """Learned queries that attend to the coarsest fused map and become mask embeddings Q_o."""

    def __init__(self, masks: int, pixel_width: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(masks, width))
        self.memory = nn.Linear(pixel_width, width)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.norm = nn.LayerNorm(width)
        for parameter in self.decoder.parameters():  # TransformerDecoder copies one layer, weights included
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, pixels: Tensor) -> Tensor:
        """The coarsest map (B, h, w, C) to mask embeddings Q_o (B, N, D)."""
        width = self.queries.shape[1]
        positions = build_sincos2d_pos_embed(list(pixels.shape[1:3]), width, device=pixels.device)  # (hw, D)
        memory = self.memory(pixels.flatten(1, 2)) + positions  # (B, hw, D)
        embeddings = self.decoder(self.queries.expand(len(pixels), -1, -1), memory)  # (B, N, D)
        centred = embeddings - embeddings.mean(dim=1, keepdim=True)  # the common part distinguishes no mask
        return cast(Tensor, self.norm(centred))
