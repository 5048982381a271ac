"""Pixel embeddings, mask embeddings and mask proposals from the fused maps S_o, after MaskFormer. Our reading.

B expressions, N masks, C and D channels, h w the grid of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from risbench.nn.convolution import ConvNormReLU

Attention = Literal["shares", "hidden", "whole"]
_LEAST = 1e-6  # distance of a share from 1, so that its logit is a number


class FPN(nn.Module):
    """Feature pyramid: the coarsest map, up-sampled and added to the next finer one, three times."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Linear(width, channels) for width in widths)  # 1x1 convolutions
        self.smooth = nn.ModuleList(ConvNormReLU(channels, channels) for _ in widths[1:])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps (B, h, w, C) to four (B, D, h, w), the finest first: it holds the pixel embeddings P."""
        pairs = zip(self.laterals, maps, strict=True)
        *finer, x = (cast(Tensor, lateral(fused)).permute(0, 3, 1, 2) for lateral, fused in pairs)  # (B, D, h, w)
        pyramid = [x]
        for fine, smooth in zip(finer[::-1], self.smooth, strict=True):
            x = functional.interpolate(x, fine.shape[2:], mode="bilinear", align_corners=False)
            x = smooth(x + fine)
            pyramid.append(x)
        return pyramid[::-1]


class MaskGenerator(nn.Module):
    """Learned queries that read the pyramid where their own masks lie: mask embeddings Q_o, and a mask of each."""

    def __init__(self, masks: int, width: int, layers: int, heads: int, dropout: float, attention: Attention) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.queries = nn.Parameter(torch.randn(masks, width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.embedding = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        for parameter in self.layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Four maps (B, D, h, w), the finest first, to Q_o (B, N, D) and the logits of the masks (B, N, H/4, W/4).

        The layers read the three coarser maps in turn, so that the last layer reads the finest of them.
        """
        pixels, *coarser = pyramid
        queries = self.queries.expand(len(pixels), -1, -1)
        for following, layer in zip(reversed(range(len(self.layers))), self.layers, strict=True):
            memory = coarser[following % len(coarser)]
            queries = layer(queries, _tokens(memory), memory_mask=self._visibility(queries, pixels, memory))
        queries = self._distinguish(queries)
        return queries, share_logits(self._signals(queries, pixels))

    def _visibility(self, queries: Tensor, pixels: Tensor, memory: Tensor) -> Tensor | None:
        """Return what is added to the scores of the attention to a map: (B heads, N, hw), or None for nothing."""
        if self.attention == "whole":
            return None
        size = (memory.shape[2], memory.shape[3])
        averaged = functional.adaptive_avg_pool2d(pixels, size)  # (B, D, h, w): signals are linear in the pixels
        signals = self._signals(self._distinguish(queries), averaged)  # (B, N, h, w)
        scores = functional.log_softmax(signals, dim=1).flatten(2)  # (B, N, hw)
        if self.attention == "hidden":
            visible = scores.exp() >= 0.5
            visible = visible | ~visible.any(dim=2, keepdim=True)  # a query with nothing to read reads everything
            scores = torch.zeros_like(scores).masked_fill(~visible, -torch.inf)
        return scores.repeat_interleave(self.heads, dim=0)

    def _distinguish(self, queries: Tensor) -> Tensor:
        """Subtract the mean of an expression's queries, which distinguishes no mask, and normalise: (B, N, D)."""
        return cast(Tensor, self.norm(queries - queries.mean(dim=1, keepdim=True)))

    def _signals(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Compare embeddings (B, N, D) with pixels (B, D, h, w): float32 (B, N, h, w)."""
        return torch.einsum("bnd,bdhw->bnhw", self.embedding(queries), pixels).float()


def share_logits(signals: Tensor) -> Tensor:
    """Let the masks share out each pixel by a softmax, and return the logits of their shares: both (B, N, h, w)."""
    logarithm = functional.log_softmax(signals, dim=1).clamp_max(-_LEAST)
    return logarithm - torch.log(-torch.expm1(logarithm))


def _tokens(memory: Tensor) -> Tensor:
    """Add fixed sine encodings of the positions: (B, D, h, w) to (B, hw, D)."""
    positions = build_sincos2d_pos_embed(list(memory.shape[2:]), memory.shape[1], device=memory.device)  # (hw, D)
    return memory.flatten(2).transpose(1, 2) + positions
