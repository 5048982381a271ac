"""The word embedding of LTS: random vectors, or GloVe's where a file is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from risbench.data import text

_SPREAD = 0.4  # standard deviation of random vectors; close to that of GloVe's own numbers


def random_vectors(words: int, width: int) -> nn.Embedding:
    """An embedding of padding (0), unknown words (1) and the vocabulary behind them."""
    table = nn.Embedding(words, width, padding_idx=0)
    nn.init.normal_(table.weight, std=_SPREAD)
    with torch.no_grad():
        table.weight[0].zero_()
    return table


def fill(table: nn.Embedding, vocabulary: Sequence[str], glove: str) -> str:
    """Put the vectors of a GloVe file under their words; say for how many there was one."""
    vectors = text.glove(Path(glove), vocabulary, table.embedding_dim)
    with torch.no_grad():
        for number, word in enumerate(vocabulary, start=2):
            if word in vectors:
                table.weight[number] = vectors[word]
    return f"{Path(glove).name} for {len(vectors)} of {len(vocabulary)} words"
