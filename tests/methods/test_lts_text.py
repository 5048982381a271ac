"""The text encoder of LTS, on the CPU and as it computes on CUDA, where no length may be brought to the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from risbench import methods
from risbench.api import Words

lts_text: Any = importlib.import_module(f"{methods.module('lts').__package__}.text")

LENGTHS = [[7, 1, 4, 7, 2], [1], [3, 3], [6, 5, 1]]  # of sentences that are padded to 7 words
READERS = ["read_packed", "read_padded"]


def gradients(read: Callable[..., Tensor], vectors: Tensor, lengths: list[int]) -> list[Tensor]:
    """Return h_t and the gradients of the vectors and of the weights."""
    torch.manual_seed(0)
    gru = nn.GRU(5, 3, bidirectional=True, batch_first=True).double()
    states = read(gru, vectors.requires_grad_(), torch.tensor(lengths))
    weights = torch.randn(states.shape, dtype=torch.float64)
    return [states, *torch.autograd.grad((weights * states).sum(), [vectors, *gru.parameters()])]


def read_by_torch(gru: nn.GRU, vectors: Tensor, lengths: Tensor) -> Tensor:
    """Sentence after sentence, cut to its length."""
    states = vectors.new_zeros(*vectors.shape[:2], 6)
    for number, length in enumerate(lengths.tolist()):
        states[number, :length] = gru(vectors[number : number + 1, :length])[0]
    return states


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("reader", READERS)
def test_each_direction_begins_at_its_end_of_the_sentence_whatever_the_padding(reader: str, lengths: list[int]) -> None:
    vectors = torch.randn(len(lengths), 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = gradients(getattr(lts_text, reader), vectors.clone(), lengths)
    expected = gradients(read_by_torch, vectors.clone(), lengths)
    assert len(results) == 2 + 8
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-12, atol=1e-12)
    for number, length in enumerate(lengths):
        assert not results[0][number, length:].any() and not results[1][number, length:].any()


def test_both_ways_of_reading_agree_with_torch_s_packed_sentences() -> None:
    gru, lengths = nn.GRU(5, 3, bidirectional=True, batch_first=True).double(), torch.tensor([4, 1, 6])
    vectors = torch.randn(3, 6, 5, dtype=torch.float64)
    packed = pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(gru(packed)[0], batch_first=True)
    for reader in READERS:
        torch.testing.assert_close(getattr(lts_text, reader)(gru, vectors, lengths), expected, rtol=1e-12, atol=1e-12)


def test_a_sentence_is_encoded_the_same_whatever_stands_beside_it() -> None:
    torch.manual_seed(0)
    encoder = lts_text.TextEncoder(nn.Embedding(9, 4, padding_idx=0), 6)
    ids = torch.tensor([[3, 5, 0, 0, 0], [1, 2, 3, 4, 5]])
    both, alone = (encoder(Words(rows, rows > 0)) for rows in (ids, ids[:1]))
    assert both.words.shape == (2, 5, 6) and torch.equal(both.mask, ids > 0)
    assert torch.equal(both.words[:1], alone.words) and torch.equal(both.sentence[:1], alone.sentence)


def test_on_another_device_no_value_is_read_on_the_cpu() -> None:
    """A tensor on the device meta has no values."""
    encoder = lts_text.TextEncoder(nn.Embedding(9, 4), 6).to("meta")
    ids = torch.ones(2, 5, dtype=torch.int64, device="meta")
    assert encoder(Words(ids, ids > 0)).sentence.shape == (2, 6)
