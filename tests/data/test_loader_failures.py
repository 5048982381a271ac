"""Errors that cross processes: the sentence of one process reaches the other, and nobody waits for ever."""

from __future__ import annotations

import os
import pickle
import signal
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from risbench import failures
from risbench.data import loader
from risbench.data.loader import Batch, Item
from risbench.data.text import Words
from risbench.errors import InputError


@dataclass(frozen=True)
class Samples(Dataset[Item]):
    """Samples that fail at one position."""

    error: Exception | int | None  # a number: the signal that ends the process
    at: int = 2

    def __getitem__(self, positions: list[int]) -> Item:
        if positions[0] == self.at and isinstance(self.error, int):
            os.kill(os.getpid(), self.error)
        if positions[0] == self.at and isinstance(self.error, Exception):
            raise self.error
        words = Words(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool))
        return Item(Batch(torch.ones(1, 3, 8, 8) * positions[0], torch.zeros(1), words, None), positions, [])


BATCHES = [[number] for number in range(6)]


def read(samples: Samples, workers: int) -> list[int]:
    return [item.positions[0] for item in loader.load(samples, BATCHES, workers)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_the_same_sentence_from_a_loader_process(workers: int) -> None:
    """The batches before it come first, whichever process is faster."""
    items = loader.load(Samples(InputError("There is no image a.jpg. Copy it there.")), BATCHES, workers)
    assert [next(items).positions, next(items).positions] == [[0], [1]]
    with pytest.raises(InputError) as raised:
        next(items)
    assert str(raised.value) == "There is no image a.jpg. Copy it there."


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_that_runs_out_is_a_sentence_from_a_loader_process(workers: int) -> None:
    with pytest.raises(InputError, match="^Memory ran out.*train.workers"):
        read(Samples(MemoryError()), workers)


def test_a_bug_in_a_loader_process_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match=r"(?s)Original Traceback.*raise self.error.*KeyError: .counts"):
        read(Samples(KeyError("counts")), 1)


def test_tensors_are_the_same_from_a_loader_process() -> None:
    """Also empty ones, and structures of a method's own."""
    alone, sent = (list(loader.load(Samples(None), BATCHES, workers)) for workers in (0, 2))
    for one, other in zip(alone, sent, strict=True):
        assert pickle.dumps(one.positions) == pickle.dumps(other.positions)
        assert torch.equal(one.batch.image, other.batch.image)
        assert one.batch.words.ids.shape == other.batch.words.ids.shape == (1, 0)


@pytest.mark.parametrize("at", [0, 2])
def test_a_loader_process_that_is_killed_is_a_sentence(at: int) -> None:
    """Before or after torch notices it by itself: an item that is on its way is lost as well."""
    with pytest.raises((InputError, RuntimeError)) as raised:
        read(Samples(int(signal.SIGKILL), at), 1)
    assert "A loader process was stopped from outside" in str(failures.translate(raised.value))


def test_shared_memory_that_is_full_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch shares tensors in a thread of the loader process, whose errors the receiver never learns of."""

    def full(*_: Any) -> None:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_8_1_0>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    with pytest.raises(InputError, match="/dev/shm.*train.workers=0"):
        read(Samples(None), 2)
