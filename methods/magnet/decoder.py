"""MagNet's decoder: Mask2Former (CVPR 2022) with a single query, the referent's.

B expressions, C channels of a map, D channels of the decoder, K predictions, h w the grid of a map, N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.nn.deformable import DeformableEncoder, sine_positions
from risbench.nn.logits import prior_bias

SCALES = 3  # of the maps that the query reads: the coarsest three, in turn


class Decoded(NamedTuple):
    """The decoder's output."""

    masks: Tensor  # logits (B, K, H/4, W/4): before the first layer and after each; the last one counts
    features: Tensor  # of the pixels, (B, D, H/4, W/4)
    query: Tensor  # after the last layer, normalised, (B, D)


class MaskLayer(nn.Module):
    """The query reads pixels where its mask lies, then itself, then a feed-forward network; norms come behind."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, query: Tensor, place: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """Query and its encoding (B, 1, D), keys and values (B, N, D), the pixels that are hidden (B, N)."""
        query = self.cross_norm(query + self._read(query + place, keys, values, hidden))
        own = self.self_attention(query + place, query + place, query, need_weights=False)[0]
        query = self.self_norm(query + own)
        return cast(Tensor, self.norm(query + self.linear2(functional.relu(self.linear1(query)))))

    def attention(self, query: Tensor, place: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
        """Return the query's attention to the pixels, averaged over the heads: (B, N), of sum 1."""
        attended = self.cross_attention(query + place, keys, keys, key_padding_mask=hidden)
        return cast(Tensor, attended[1])[:, 0]

    def _read(self, query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.cross_attention(query, keys, values, key_padding_mask=hidden, need_weights=False)[0])


class MaskDecoder(nn.Module):
    """Pixel decoder of four scales, then layers in which the query reads the coarser three in turn."""

    def __init__(
        self, pixels: DeformableEncoder, channels: int, layers: int, heads: int, hidden: int, prior: float
    ) -> None:
        """`prior` is the share of foreground that an untrained network predicts."""
        super().__init__()
        self.pixels = pixels
        self.features = nn.Conv2d(channels, channels, kernel_size=1)
        self.query = nn.Parameter(torch.randn(1, channels))
        self.place = nn.Parameter(torch.randn(1, channels))
        self.scale_embedding = nn.Parameter(torch.randn(SCALES, channels))
        self.layers = nn.ModuleList(MaskLayer(channels, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        self.mask_embedding = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
        )
        self.class_embedding = nn.Linear(channels, 2)
        self.bias = prior_bias(prior)
        for parameter in self.layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, maps: Sequence[Tensor]) -> Decoded:
        """Four maps (B, h, w, C), the finest first, to the masks of all layers."""
        decoded, _ = self._run(maps, explain=False)
        return decoded

    def attention(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the query's attention to the pixels in each layer, (B, h, w)."""
        return self._run(maps, explain=True)[1]

    def classes(self, query: Tensor) -> Tensor:
        """Return logits of the query's classes, which decide nothing: with one query its share is 1: (B, 2)."""
        return cast(Tensor, self.class_embedding(query))

    def _run(self, maps: Sequence[Tensor], explain: bool) -> tuple[Decoded, list[Tensor]]:
        encoded = self.pixels(maps[::-1])  # the coarsest first, (B, D, h, w)
        features = self.features(encoded[-1])
        memories = [self._memory(number, x) for number, x in enumerate(encoded[:SCALES])]
        query, place = (p.expand(len(features), 1, -1) for p in (self.query, self.place))  # (B, 1, D)
        masks, attentions = [self._mask(query, features)], []
        for number, layer in enumerate(self.layers):
            height, width = encoded[number % SCALES].shape[2:]
            keys, values = memories[number % SCALES]
            hidden = hidden_pixels(masks[-1], (height, width))
            if explain:
                attention = cast(MaskLayer, layer).attention(query, place, keys, hidden)  # (B, N)
                attentions.append(attention.view(-1, height, width))
            query = layer(query, place, keys, values, hidden)
            masks.append(self._mask(query, features))
        return Decoded(torch.stack(masks, dim=1), features, self.norm(query)[:, 0]), attentions

    def _memory(self, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of an encoded map (B, D, h, w): (B, N, D) each."""
        values = x.flatten(2).transpose(1, 2) + self.scale_embedding[number]
        positions = sine_positions(x.shape[2], x.shape[3], x.shape[1], x.device)  # (N, D)
        return values + positions.to(values.dtype), values

    def _mask(self, query: Tensor, features: Tensor) -> Tensor:
        """Return the logits of the query's mask: (B, H/4, W/4)."""
        embedding = self.mask_embedding(self.norm(query))[:, 0]  # (B, D)
        return torch.einsum("bd,bdhw->bhw", embedding, features) + self.bias


def hidden_pixels(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Say which cells of a coarser map are not of a mask, of which the logits are given: (B, h, w) to (B, N).

    They have a probability below 0.5. A mask that has no cell hides none.
    """
    sampled = functional.interpolate(mask.detach()[:, None], size, mode="bilinear", align_corners=False)
    hidden = sampled.sigmoid().flatten(1) < 0.5  # (B, N)
    return hidden & ~hidden.all(dim=1, keepdim=True)
