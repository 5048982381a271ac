"""Pixel-word attention and the gate behind it (LAVT, sections 3.2 and 3.3), with the variations of MagNet.

B expressions, T words, D text width, C channels, h w the grid of a map, N positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class InstanceNorm(nn.Module):
    """Normalise each channel over the positions, without parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same shape."""
        return instance_norm(x)


class PWAM(nn.Module):
    """Pixel-Word Attention Module: each pixel gathers words, and the result modulates it.

    All layers are 1x1 convolutions in the paper and linear layers over the last dimension, the channels, here.
    """

    def __init__(
        self, width: int, text_width: int, dropout: float, norm: Callable[[int], nn.Module] = InstanceNorm
    ) -> None:
        """`norm` normalises the queries and what was gathered: LAVT over the positions, MagNet over the channels."""
        super().__init__()
        self.visual = nn.Linear(width, width)  # omega_m
        self.query = nn.Linear(width, width)  # omega_iq
        self.query_norm = norm(width)
        self.key = nn.Linear(text_width, width)  # omega_ik
        self.value = nn.Linear(text_width, width)  # omega_iv
        self.out = nn.Linear(width, width)  # omega_iw
        self.out_norm = norm(width)
        self.project = nn.Linear(width, width)  # omega_o
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Pixels (B, h, w, C), words (B, T, D) and their mask (B, T) to F_i (B, h, w, C)."""
        flat = pixels.flatten(1, 2)  # (B, hw, C)
        visual = self.dropout(functional.gelu(self.visual(flat)))
        gathered = functional.scaled_dot_product_attention(  # one head; scale C^-0.5
            self.query_norm(self.query(flat))[:, None],
            self.key(words)[:, None],
            self.value(words)[:, None],
            attn_mask=mask[:, None, None],
        )[:, 0]  # (B, hw, C)
        language = self.out_norm(self.out(gathered))
        fused: Tensor = self.dropout(functional.gelu(self.project(visual * language)))
        return fused.view(pixels.shape)

    def attention(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Return the weights with which each pixel gathers the words: (B, h, w, T), of sum 1 over the words."""
        query = self.query_norm(self.query(pixels.flatten(1, 2)))  # (B, hw, C)
        scores = query @ self.key(words).mT * query.shape[-1] ** -0.5  # (B, hw, T)
        weights: Tensor = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)
        return weights.view(*pixels.shape[:3], -1)


class LanguageGate(nn.Module):
    """Decide how much of the fused features flows into the next stage."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor] = functional.relu) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.outer = nn.Linear(width, width, bias=False)
        self.activation = activation
        for layer in (self.inner, self.outer):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, features: Tensor, fused: Tensor) -> Tensor:
        """V_i and F_i to V_i + tanh(MLP(F_i)) F_i, all (..., C)."""
        return features + torch.tanh(self.outer(self.activation(self.inner(fused)))) * fused


def mean_of_words(words: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the words without padding: (B, T, D) and (B, T) to (B, D)."""
    present = mask[:, :, None].to(words.dtype)
    return (words * present).sum(dim=1) / present.sum(dim=1)


def instance_norm(x: Tensor, mask: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise each channel over the positions, without parameters, in float32 or better: (B, N, C) to (B, N, C).

    With a mask (B, N), only the positions where it is True count.
    """
    with torch.autocast(x.device.type, enabled=False):
        precise = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if mask is None:
            variance, mean = torch.var_mean(precise, dim=1, correction=0, keepdim=True)  # (B, 1, C)
        else:
            counted = mask.to(precise.dtype)
            weights = (counted / counted.sum(dim=1, keepdim=True))[:, :, None]  # (B, N, 1)
            mean = (weights * precise).sum(dim=1, keepdim=True)
            variance = (weights * (precise - mean).square()).sum(dim=1, keepdim=True)
        return ((precise - mean) * torch.rsqrt(variance + eps)).to(x.dtype)
