"""The text encoder of LTS (section 3.2). B expressions, T words, C channels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from risbench.api import Words


class Text(NamedTuple):
    """An encoded sentence."""

    sentence: Tensor  # f_text (B, C)
    words: Tensor  # h_t (B, T, C), zero after the last word; T is the length of the longest sentence
    mask: Tensor  # (B, T) bool, True at words


class TextEncoder(nn.Module):
    """Word vectors, bidirectional GRU, mean over the words."""

    def __init__(self, vectors: nn.Embedding, channels: int) -> None:
        super().__init__()
        self.vectors = vectors
        self.gru = nn.GRU(vectors.embedding_dim, channels // 2, bidirectional=True, batch_first=True)

    def forward(self, words: Words) -> Text:
        """Words (B, T) to the sentence and its words, without padding in the GRU and in the mean."""
        lengths = words.mask.sum(dim=1)  # (B,)
        packed = pack_padded_sequence(self.vectors(words.ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return Text(states.sum(dim=1) / lengths[:, None], states, words.mask[:, : states.shape[1]])
