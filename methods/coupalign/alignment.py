"""The two alignments: words with pixels inside the encoders, the sentence with masks after them. Our reading.

B expressions, T words, N masks, C and D channels, D_t text width, d channels of a head, h w the grid of a map.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_FLOOR = 1e-6  # of areas in pixels, and of weights


class WPA(nn.Module):
    """Word-Pixel Alignment: pixels attend to words and words to pixels; gates scale both results."""

    def __init__(self, pixel_width: int, word_width: int, width: int, heads: int, gate: float) -> None:
        super().__init__()
        self.heads = heads
        self.pixel_norm = nn.LayerNorm(pixel_width)
        self.word_norm = nn.LayerNorm(word_width)
        self.pixels = nn.Linear(pixel_width, 4 * width)  # queries; keys and values for the words; modulated pixels
        self.words = nn.Linear(word_width, 3 * width)  # keys and values for the pixels; queries
        self.to_pixels = nn.Linear(width, pixel_width)
        self.to_words = nn.Linear(width, word_width)
        self.pixel_gate = nn.Parameter(torch.full((pixel_width,), gate))
        self.word_gate = nn.Parameter(torch.full((word_width,), gate))

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, h, w, C), words (B, T, D) and their mask (B, T) to new pixels and words of the same shapes."""
        queries, keys, values, modulated = self._project_pixels(pixels)  # (B, heads, hw, d)
        word_keys, word_values, word_queries = self._project_words(words)  # (B, heads, T, d)
        language = functional.scaled_dot_product_attention(
            queries, word_keys, word_values, attn_mask=mask[:, None, None]
        )  # (B, heads, hw, d)
        vision = functional.scaled_dot_product_attention(word_queries, keys, values)  # (B, heads, T, d)
        language = _standardise(self.to_pixels(_join_heads(language * functional.gelu(modulated)))).view(pixels.shape)
        vision = _standardise(self.to_words(_join_heads(vision)))  # (B, T, D)
        return pixels + torch.tanh(self.pixel_gate) * language, words + torch.tanh(self.word_gate) * vision

    def attention(self, pixels: Tensor, words: Tensor) -> Tensor:
        """Return each word's attention to the pixels, averaged over the heads: (B, T, h, w), of sum 1."""
        _, keys, _, _ = self._project_pixels(pixels)
        _, _, queries = self._project_words(words)
        scores = queries @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5  # (B, heads, T, hw)
        shares: Tensor = scores.softmax(dim=3).mean(dim=1)  # (B, T, hw)
        return shares.view(*scores.shape[:1], -1, *pixels.shape[1:3])

    def _project_pixels(self, pixels: Tensor) -> list[Tensor]:
        """(B, h, w, C) to queries, keys, values and modulated pixels, each (B, heads, hw, d)."""
        return self._split(self.pixels(self.pixel_norm(pixels.flatten(1, 2))), 4)

    def _project_words(self, words: Tensor) -> list[Tensor]:
        """(B, T, D) to keys, values and queries, each (B, heads, T, d)."""
        return self._split(self.words(self.word_norm(words)), 3)

    def _split(self, x: Tensor, parts: int) -> list[Tensor]:
        """(B, N, parts heads d) to `parts` times (B, heads, N, d)."""
        return list(x.view(*x.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4))


class Proposals(NamedTuple):
    """Mask proposals, weighted by the agreement of what they cover with the sentence."""

    weights: Tensor  # (B, N), of sum 1
    masks: Tensor  # logits of their shares of the pixels, (B, N, h, w)
    regions: Tensor  # means of the pixel embeddings that they cover, (B, N, D)


class SMA(nn.Module):
    """Sentence-Mask Alignment: the sentence weights the masks, which aggregate pixels and write back to them."""

    def __init__(self, word_width: int, width: int, temperature: float | None) -> None:
        super().__init__()
        self.temperature = temperature  # None: products instead of cosines
        self.sentence = nn.Linear(word_width, width)
        self.proposal = nn.Linear(width, width)  # of a region, compared with the sentence
        # of Q_o and of a region: what is written where the mask lies, and what every pixel is multiplied by
        self.embedding = nn.Linear(width, 2 * width)
        self.region = nn.Linear(width, 2 * width)

    def align(self, sentence: Tensor, masks: Tensor, pixels: Tensor) -> Proposals:
        """L_g (B, D_t), the masks' logits (B, N, h, w) and pixel embeddings P (B, D, h, w) to the proposals."""
        shares = masks.sigmoid()  # (B, N, h, w)
        sums = torch.einsum("bnhw,bdhw->bnd", shares, pixels)
        regions = sums / (shares.sum(dim=(2, 3))[:, :, None] + _FLOOR)  # (B, N, D)
        proposal, direction = self.proposal(regions), self.sentence(sentence)[:, None]  # (B, N, D), (B, 1, D)
        if self.temperature is None:
            agreement = (proposal * direction).sum(dim=2)  # (B, N)
        else:
            agreement = functional.cosine_similarity(proposal, direction, dim=2) / self.temperature
        return Proposals(agreement.float().softmax(dim=1), masks, regions)

    def forward(self, queries: Tensor, sentence: Tensor, masks: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `align`, with Q_o (B, N, D), to the map Y_N (B, D, h, w) and the logit of the masks (B, h, w)."""
        weights, masks, regions = self.align(sentence, masks, pixels)
        local, common = (self.embedding(queries) + self.region(regions)).chunk(2, dim=2)  # (B, N, D) each
        relative = weights * weights.shape[1]  # to uniform weights, so that N does not set the size of Y_N
        written = torch.einsum("bnhw,bnd->bdhw", masks.sigmoid(), relative[:, :, None] * local)
        factors = torch.einsum("bn,bnd->bd", weights, common)  # (B, D)
        return written + factors[:, :, None, None] * pixels, _logit_over_uniform(weights, masks)


def _logit_over_uniform(weights: Tensor, masks: Tensor) -> Tensor:
    """Return log(s / (1 - s)) of the weighted shares s, less its value for uniform weights, where s is 1 / N.

    Weights (B, N), and logits of shares that sum to 1 at each pixel, (B, N, h, w), to (B, h, w).
    """
    logarithm = weights.clamp_min(_FLOOR).log()[:, :, None, None]  # (B, N, 1, 1)
    inside = (logarithm + functional.logsigmoid(masks)).logsumexp(dim=1)
    outside = (logarithm + functional.logsigmoid(-masks)).logsumexp(dim=1)
    return inside - outside + math.log(weights.shape[1] - 1)


def _standardise(x: Tensor) -> Tensor:
    """Give the channels mean 0 and variance 1, so that only the gate sets the scale."""
    return functional.layer_norm(x, x.shape[-1:])


def _join_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) to (B, N, heads d)."""
    return x.transpose(1, 2).flatten(2)
