"""The word embedding of LTS: GloVe vectors where a file is given, random ones otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from risbench.data import text

_SPREAD = 0.4  # standard deviation of random vectors; close to that of GloVe's own numbers


def embedding(vocabulary: Sequence[str], width: int, glove: str) -> tuple[nn.Embedding, str]:
    """Return an embedding of padding (0), unknown words (1) and the vocabulary, and a word on where it comes from."""
    table = nn.Embedding(len(vocabulary) + 2, width, padding_idx=0)
    nn.init.normal_(table.weight, std=_SPREAD)
    with torch.no_grad():
        table.weight[0].zero_()
    if not glove:
        return table, "random"
    vectors = text.glove(Path(glove), vocabulary, width)
    with torch.no_grad():
        for number, word in enumerate(vocabulary, start=2):
            if word in vectors:
                table.weight[number] = vectors[word]
    return table, f"{Path(glove).name} for {len(vectors)} of {len(vocabulary)} words"
