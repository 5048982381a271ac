"""The fusions of MagNet, both ways: pixels read words at several scales, and words read pixels.

B expressions, T words, D text width, C channels, h w the grid of a map.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.nn.fusion import PWAM, instance_norm
from risbench.nn.parameters import initialise_without_biases

SIDES = (1, 2, 3, 6)  # of the pyramid's grids
_ADDED = -10_000.0  # what BERT adds to the attention to padding; the released code takes it for a mask


class PyramidBranch(nn.Module):
    """Pixels pooled to a small grid read the words there."""

    def __init__(self, width: int, text_width: int, dropout: float, side: int) -> None:
        super().__init__()
        self.side = side
        self.widen = nn.Linear(width, 4 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width, eps=1e-6)
        self.narrow = nn.Linear(4 * width, width, bias=False)
        self.reduce = nn.Linear(width, width // 4, bias=False)
        self.fusion = PWAM(width // 4, text_width, dropout, nn.LayerNorm)

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Pixels (B, h, w, C), words (B, T, D) and their mask (B, T) to (B, h, w, C / 4)."""
        pooled = functional.adaptive_avg_pool2d(pixels.permute(0, 3, 1, 2), self.side).permute(0, 2, 3, 1)
        reduced = self.reduce(functional.gelu(self.narrow(self.norm(self.widen(pooled)))))  # (B, side, side, C / 4)
        fused = self.fusion(reduced, words, mask).permute(0, 3, 1, 2)
        size = (pixels.shape[1], pixels.shape[2])
        return functional.interpolate(fused, size, mode="bilinear", align_corners=True).permute(0, 2, 3, 1)


class CAM(nn.Module):
    """Cross-modal Alignment Module: pixels read the words at full resolution and on four grids; a mixer joins them.

    Without grids there is a normalisation in the mixer's place, as in LAVT.
    """

    def __init__(self, width: int, text_width: int, dropout: float, sides: tuple[int, ...] = SIDES) -> None:
        super().__init__()
        self.full = PWAM(width, text_width, dropout, nn.LayerNorm)
        branch = partial(PyramidBranch, width, text_width, dropout)
        self.pyramid = nn.ModuleList(branch(side) for side in sides)
        joined = width + len(sides) * (width // 4)
        self.mixer = (
            nn.Sequential(nn.Linear(joined, width), nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
            if sides
            else nn.LayerNorm(width)
        )
        initialise_without_biases(self)

    def forward(self, pixels: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, h, w, C), words (B, T, D), mask (B, T) to what the gate reads, and the decoder: (B, h, w, C)."""
        fused = self.full(pixels, words, mask)
        branches = [branch(pixels, words, mask) for branch in self.pyramid]
        return fused, cast(Tensor, self.mixer(torch.cat((*branches, fused), dim=-1)))


class Pixels(NamedTuple):
    """What words read of a map, (B, hw, D) each."""

    keys: Tensor
    values: Tensor


class WordFusion(nn.Module):
    """PWAM with the roles exchanged: each word gathers pixels, and the result modulates it."""

    def __init__(self, text_width: int, width: int, released_mask: bool) -> None:
        """`released_mask` repeats a mistake of the released code, which takes what BERT adds for a mask of 0 and 1.

        Queries of words are multiplied by 0 there, those of padding by -10,000, and padding counts as words.
        """
        super().__init__()
        self.released_mask = released_mask
        self.visual = nn.Linear(text_width, text_width)  # of the words
        self.query = nn.Linear(text_width, text_width)
        self.key = nn.Linear(width, text_width)
        self.value = nn.Linear(width, text_width)
        self.out = nn.Linear(text_width, text_width)
        self.project = nn.Linear(text_width, text_width)

    def forward(self, words: Tensor, pixels: Pixels, mask: Tensor) -> Tensor:
        """Words (B, T, D), their mask (B, T) and pixels (B, hw, D) to (B, T, D); padding gives no number of use."""
        queries, counted = self.query(words), None if self.released_mask else mask
        if self.released_mask:
            queries = queries * (_ADDED * ~mask[:, :, None]).to(queries.dtype)
        gathered = functional.scaled_dot_product_attention(  # one head; scale D^-0.5
            queries[:, None], pixels.keys[:, None], pixels.values[:, None]
        )[:, 0]  # (B, T, D)
        vision = instance_norm(self.out(gathered), counted)
        return functional.gelu(self.project(functional.gelu(self.visual(words)) * vision))

    def project_pixels(self, pixels: Tensor) -> Pixels:
        """Return keys and values of a map, normalised over the positions: (I, h, w, C) to (I, hw, D) each."""
        flat = pixels.flatten(1, 2)  # (I, hw, C)
        return Pixels(instance_norm(self.key(flat)), instance_norm(self.value(flat)))
