"""The text encoder of LTS (section 3.1). B expressions, T words, C channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from risbench.api import Words


class Text(NamedTuple):
    """An encoded sentence."""

    sentence: Tensor  # f_text (B, C)
    words: Tensor  # h_t (B, T, C), zero after the last word
    mask: Tensor  # (B, T) bool, True at words


class TextEncoder(nn.Module):
    """Word vectors, bidirectional GRU, mean over the words."""

    def __init__(self, vectors: nn.Embedding, channels: int) -> None:
        super().__init__()
        self.vectors = vectors
        self.gru = nn.GRU(vectors.embedding_dim, channels // 2, bidirectional=True, batch_first=True)

    def forward(self, words: Words) -> Text:
        """Words (B, T) to the sentence and its words, without padding in the GRU and in the mean."""
        vectors, lengths = self.vectors(words.ids), words.mask.sum(dim=1)  # (B, T, D), (B,)
        # Packing leaves out the padding, but it needs the lengths on the CPU: from CUDA each batch would wait for them.
        read = read_packed if lengths.device.type == "cpu" else read_padded
        states = read(self.gru, vectors, lengths)
        return Text(states.sum(dim=1) / lengths[:, None], states, words.mask)


def read_packed(gru: nn.GRU, vectors: Tensor, lengths: Tensor) -> Tensor:
    """Read sentences of these lengths (B,), which are on the CPU, in both directions: (B, T, D) to h_t (B, T, C)."""
    packed = pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=vectors.shape[1])[0]


def read_padded(gru: nn.GRU, vectors: Tensor, lengths: Tensor) -> Tensor:
    """Read as `read_packed` does, with the lengths on any device.

    Every sentence is read twice, with its padding behind it and before it. Of each direction those states count that
    come before its padding.
    """
    longest = vectors.shape[1]
    positions = torch.arange(longest, device=vectors.device)  # (T,)
    shift = longest - lengths[:, None]  # (B, 1), the length of the padding
    both = torch.cat((vectors, _take(vectors, (positions - shift) % longest)))  # (2B, T, D)
    behind, before = gru(both)[0].chunk(2)  # each (B, T, C)
    forward, backward = behind.chunk(2, dim=2)[0], before.chunk(2, dim=2)[1]
    states = torch.cat((forward, _take(backward, (positions + shift) % longest)), dim=2)  # (B, T, C)
    return states * (positions < lengths[:, None])[:, :, None]


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Take the words of a sentence at these positions: (B, T, C) and (B, T) to (B, T, C)."""
    return x.take_along_dim(positions[:, :, None], dim=1)
