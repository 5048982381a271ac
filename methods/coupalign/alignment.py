"""The two alignments, words with pixels in the encoders and the sentence with masks behind them: our reading."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class WPA(nn.Module):
    """Word-Pixel Alignment: pixels attend to words and words to pixels, and gates let both answers in."""

    def __init__(self, pixel_width: int, word_width: int, width: int, heads: int, gate: float) -> None:
        super().__init__()
        self.heads = heads
        self.pixel_norm = nn.LayerNorm(pixel_width)
        self.word_norm = nn.LayerNorm(word_width)
        self.pixels = nn.Linear(
            pixel_width, 4 * width
        )  # queries to the words; keys and values for them; what they modulate
        self.words = nn.Linear(word_width, 3 * width)  # keys and values for the pixels; queries to them
        self.to_pixels = nn.Linear(width, pixel_width)
        self.to_words = nn.Linear(width, word_width)
        self.pixel_gate = nn.Parameter(torch.full((pixel_width,), gate))
        self.word_gate = nn.Parameter(torch.full((word_width,), gate))

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, h, w, C), words (B, T, D) and their mask (B, T) to new pixels and words of the same shapes."""
        asked, keys, values, own = self._pixels(pixels)
        word_keys, word_values, word_queries = self._words(words)
        told = functional.scaled_dot_product_attention(asked, word_keys, word_values, attn_mask=mask[:, None, None])
        seen = functional.scaled_dot_product_attention(word_queries, keys, values)  # (B, heads, T, d)
        told = _unit(self.to_pixels(_joined(told * functional.gelu(own)))).view(pixels.shape)
        seen = _unit(self.to_words(_joined(seen)))
        return pixels + torch.tanh(self.pixel_gate) * told, words + torch.tanh(self.word_gate) * seen

    def attention(self, pixels: Tensor, words: Tensor) -> Tensor:
        """Where each word looks, averaged over the heads: shares that add up to 1 over the pixels, (B, T, h, w)."""
        _, keys, _, _ = self._pixels(pixels)
        _, _, queries = self._words(words)
        scores = queries @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5  # (B, heads, T, hw)
        shares: Tensor = scores.softmax(dim=3).mean(dim=1)  # (B, T, hw)
        return shares.view(*scores.shape[:1], -1, *pixels.shape[1:3])

    def _pixels(self, pixels: Tensor) -> list[Tensor]:
        """Four parts of the pixels, each (B, heads, hw, d)."""
        return self._parts(self.pixels(self.pixel_norm(pixels.flatten(1, 2))), 4)

    def _words(self, words: Tensor) -> list[Tensor]:
        """Three parts of the words, each (B, heads, T, d)."""
        return self._parts(self.words(self.word_norm(words)), 3)

    def _parts(self, x: Tensor, parts: int) -> list[Tensor]:
        return list(x.view(*x.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4))


class Aligned(NamedTuple):
    """What the sentence made of the mask proposals."""

    weights: Tensor  # (B, N), adding up to 1
    masks: Tensor  # logits of each proposal (B, N, h, w)


class SMA(nn.Module):
    """Sentence-Mask Alignment: the sentence weights the mask embeddings, and their signals go back to the pixels."""

    def __init__(self, word_width: int, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.sentence = nn.Linear(word_width, width)
        self.proposal = nn.Linear(width, width)  # Q_o, to be compared with the sentence
        self.embedding = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))  # to the pixels
        self.project = nn.Linear(width, width)

    def align(self, queries: Tensor, sentence: Tensor, pixels: Tensor) -> Aligned:
        """Q_o (B, N, D), L_g (B, D_t) and pixel embeddings (B, D, h, w) to weights and masks of the proposals."""
        agreement = functional.cosine_similarity(self.proposal(queries), self.sentence(sentence)[:, None], dim=2)
        weights = (agreement / self.temperature).softmax(dim=1)  # (B, N)
        masks = torch.einsum("bnd,bdhw->bnhw", self.embedding(queries), pixels)
        return Aligned(weights, masks)

    def forward(self, queries: Tensor, sentence: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """To the weighted embeddings at the pixels they cover (B, D, h, w), and the sum of Y_N, a logit (B, h, w)."""
        weights, masks = self.align(queries, sentence, pixels)
        shares = weights[:, :, None, None]
        gathered = torch.einsum("bnhw,bnd->bdhw", shares * masks.sigmoid(), self.project(queries))
        return gathered, (shares * masks).sum(dim=1)


def pooled(words: Tensor, mask: Tensor) -> Tensor:
    """L_g: the mean of the words without padding, (B, T, D) and (B, T) to (B, D)."""
    shown = mask[:, :, None].to(words.dtype)
    return (words * shown).sum(dim=1) / shown.sum(dim=1)


def _unit(x: Tensor) -> Tensor:
    """Of mean 0 and variance 1 over the channels, so that a gate alone says how much of an answer counts."""
    return functional.layer_norm(x, x.shape[-1:])


def _joined(x: Tensor) -> Tensor:
    """Heads side by side: (B, heads, N, d) to (B, N, heads d)."""
    return x.transpose(1, 2).flatten(2)
