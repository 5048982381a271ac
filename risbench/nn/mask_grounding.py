"""Mask grounding (MagNet, CVPR 2024): a hidden word is found again from the others, the image and the referent's mask.

A task for training that any method with a text encoder can add; prediction does not need it. What the abstract and a
reading note say is followed; all else is our reading, decided in methods/magnet/README.md.

B expressions, I images, T words, V word pieces, D text width, C channels, H W the network input, h w the grid of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Words
from risbench.errors import InputError
from risbench.nn.bert import Bert
from risbench.nn.checkpointing import frozen_statistics
from risbench.nn.deformable import sine_positions
from risbench.nn.encoders import Backbone, check_heads
from risbench.nn.segmentation import area_average
from risbench.recipe import NonNegativeFloat, PositiveInt, Probability, Section

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SHARES = 4  # of the mask in a cell, along each side
_IGNORED = -100  # a target that does not count


class GroundingSettings(Section):
    """The part of [model] of methods that can train with mask grounding; the recipes explain every key.

    Older checkpoints lack these keys: the defaults describe their network.
    """

    grounding: NonNegativeFloat = 0.0
    grounding_probability: Probability = 0.15
    grounding_layers: PositiveInt = 6
    grounding_heads: PositiveInt = 8


class Hidden(NamedTuple):
    """Expressions in which words are hidden."""

    words: Words
    targets: Tensor  # (B, T) int64: the ids of hidden words, elsewhere what cross-entropy ignores


class MaskGrounding(nn.Module):
    """Hide words, and predict them from words, pixels and a mask by layers of BERT."""

    def __init__(
        self, vocabulary: Sequence[str], text_width: int, width: int, layers: int, heads: int, dropout: float, p: float
    ) -> None:
        """`width` are the channels of the pixels; `p` is the probability with which a word is hidden."""
        super().__init__()
        pieces = list(vocabulary)
        self.vocabulary, self.p = pieces, p
        self.hidden_id = pieces.index("[MASK]" if "[MASK]" in pieces else "[UNK]")
        special = torch.tensor([piece in _SPECIAL for piece in pieces])
        self.register_buffer("special", special, persistent=False)
        self.pixels = nn.Linear(width, text_width)
        self.mask = nn.Conv2d(1, text_width, kernel_size=_SHARES, stride=_SHARES)
        self.kinds = nn.Parameter(torch.zeros(2, text_width))  # of a pixel, and of a cell of the mask
        self.norm = nn.LayerNorm(text_width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                text_width, heads, text_width, dropout, "gelu", layer_norm_eps=1e-12, batch_first=True
            )
            for _ in range(layers)
        )
        self.transform = nn.Sequential(
            nn.Linear(text_width, text_width), nn.GELU(), nn.LayerNorm(text_width, eps=1e-12)
        )
        self.bias = nn.Parameter(torch.zeros(len(pieces)))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def hide(self, words: Words) -> Hidden:
        """Hide each word with probability p, and at least one of each expression that has any; never special pieces."""
        drawn = torch.rand(words.ids.shape, device=words.ids.device)
        drawn = drawn.masked_fill(~self._can_be_hidden(words), 2.0)
        chosen = (drawn < self.p) | ((drawn == drawn.amin(dim=1, keepdim=True)) & (drawn < 2.0))
        return self._hide(words, chosen)

    def hide_at(self, words: Words, positions: Sequence[int]) -> Hidden:
        """Hide the words at some positions of every expression."""
        chosen = torch.zeros_like(words.mask)
        chosen[:, list(positions)] = True
        return self._hide(words, chosen & words.mask)

    def forward(self, states: Tensor, pixels: Tensor, mask: Tensor, hidden: Hidden, embeddings: Tensor) -> Tensor:
        """Return the cross-entropy over the hidden words, a scalar; 0 if there is none.

        The text encoder's states of the expressions in which they are hidden (B, T, D), pixels (B, h, w, C) that have
        not read the words, ground truth (B, H, W), and the embeddings of the word pieces (V, D).
        """
        logits = self.logits(states, pixels, mask, hidden, embeddings).float()
        flat = hidden.targets.flatten()
        summed = functional.cross_entropy(logits.flatten(0, 1), flat, ignore_index=_IGNORED, reduction="sum")
        return summed / (flat != _IGNORED).sum().clamp_min(1)

    def logits(self, states: Tensor, pixels: Tensor, mask: Tensor, hidden: Hidden, embeddings: Tensor) -> Tensor:
        """Return logits of all word pieces for each word: (B, T, V)."""
        height, width = pixels.shape[1:3]
        positions = sine_positions(height, width, states.shape[2], pixels.device).to(states.dtype)  # (hw, D)
        shares = area_average(mask, (_SHARES * height, _SHARES * width))[:, None].to(pixels.dtype)  # (B, 1, 4h, 4w)
        image = self.pixels(pixels.flatten(1, 2)) + positions + self.kinds[0]  # (B, hw, D)
        referent = self.mask(shares).flatten(2).transpose(1, 2) + positions + self.kinds[1]  # (B, hw, D)
        seen = self.dropout(self.norm(torch.cat((image, referent), dim=1)))
        x = torch.cat((states, seen.to(states.dtype)), dim=1)  # (B, T + 2 hw, D)
        padding = torch.cat((~hidden.words.mask, torch.zeros_like(seen[:, :, 0], dtype=torch.bool)), dim=1)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        transformed = self.transform(x[:, : states.shape[1]])
        return functional.linear(transformed, embeddings.to(transformed.dtype), self.bias)

    def guesses(self, logits: Tensor, count: int) -> list[tuple[str, float]]:
        """Return the most likely word pieces with their probabilities: logits (V,) of one word to `count` pairs."""
        shares, order = logits.float().softmax(dim=0).topk(min(count, len(self.vocabulary)))
        return [(self.vocabulary[n], share) for n, share in zip(order.tolist(), shares.tolist(), strict=True)]

    def _can_be_hidden(self, words: Words) -> Tensor:
        return words.mask & ~cast(Tensor, self.special)[words.ids]

    def _hide(self, words: Words, chosen: Tensor) -> Hidden:
        ids = words.ids.masked_fill(chosen, self.hidden_id)
        return Hidden(Words(ids, words.mask), words.ids.masked_fill(~chosen, _IGNORED))


def build_grounding(
    settings: GroundingSettings, tokenizer: Any, text_width: int, width: int, dropout: float
) -> MaskGrounding | None:
    """Build mask grounding for a text encoder and pixels of `width` channels, or None if its weight is 0."""
    if not settings.grounding:
        return None
    vocabulary = getattr(tokenizer, "vocabulary", None)
    if vocabulary is None:
        raise InputError(
            f"model.grounding={settings.grounding} hides word pieces, which this {type(tokenizer).__name__} does not "
            "name: give model.grounding=0."
        )
    check_heads("text_width", text_width, "grounding_heads", settings.grounding_heads)
    if text_width % 4:
        raise InputError(f"model.text_width={text_width} does not fit sine encodings: give a multiple of 4.")
    sizes = (settings.grounding_layers, settings.grounding_heads, dropout, settings.grounding_probability)
    return MaskGrounding(vocabulary, text_width, width, *sizes)


def ground_words(grounding: MaskGrounding, backbone: Backbone, text: Bert, first: Tensor, batch: Batch) -> Tensor:
    """Hide words from a text encoder that reads no pixels, and return the loss of predicting them.

    `first` is the first stage's map of each image (I, h, w, C1), which has read no words.
    """
    assert batch.mask is not None
    hidden = grounding.hide(batch.words)
    pixels = wordless_maps(backbone, first)[-1][batch.image_index]  # (B, h, w, C)
    states = text.hidden_states(hidden.words)  # (B, T, D)
    return cast(Tensor, grounding(states, pixels, batch.mask, hidden, text.word_embeddings))


def wordless_maps(backbone: Backbone, first: Tensor) -> list[Tensor]:
    """Run the stages of a backbone without words: the first map (I, h, w, C1) to four maps (I, h, w, C).

    Running statistics of normalisations count the pass with the words only, which is the one at test time.
    """
    maps = [first]
    with frozen_statistics(backbone):
        for number in range(1, len(backbone.widths)):
            maps.append(backbone.stage(number, backbone.merge(number - 1, maps[-1])))
    return maps
