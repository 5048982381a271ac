"""LAVT at full size, 480 x 480, float32 on the CPU: an image with its expressions against a loop as released.

The reference is the same network called as released: batch 1, one sentence after another, everything again each time,
attention written out, masks and biases computed in every block, batch normalisation on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from risbench import methods, recipe
from risbench.api import Words
from risbench.data.text import WordPieceTokenizer

EXPRESSIONS = 7  # RefCOCO val has 7.2 expressions to an image
PIECES = 8  # of each expression, [CLS] and [SEP] included
GOAL = 1.3  # times the expressions per second of the reference
_LOGITS: dict[str, Tensor] = {}
_SECONDS: dict[str, float] = {}


@pytest.fixture(scope="module")
def model() -> Any:
    settings, _ = recipe.load(methods.recipe_file("lavt"), [], ["model.pretrained=false"])
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = WordPieceTokenizer([*special, *(f"piece{n}" for n in range(30517))], 20)
    built = methods.load("lavt").build(settings, tokenizer).eval()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return built


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 3, 480, 480, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def words() -> Words:
    ids = torch.randint(1000, 30000, (EXPRESSIONS, 20), generator=torch.Generator().manual_seed(2))
    return Words(ids, (torch.arange(20) < PIECES).expand(EXPRESSIONS, -1))


@torch.inference_mode()
def test_reference(model: Any, image: Tensor, words: Words, as_released: None, benchmark: BenchmarkFixture) -> None:
    def loop() -> Tensor:
        return torch.cat([_logits(model, image, _one(words, number)) for number in range(EXPRESSIONS)])

    _measure("reference", loop, benchmark)


@torch.inference_mode()
def test_whole_image(model: Any, image: Tensor, words: Words, benchmark: BenchmarkFixture) -> None:
    _measure("whole image", lambda: _logits(model, image, words), benchmark)
    assert torch.allclose(_LOGITS["whole image"], _LOGITS["reference"], atol=1e-4)
    assert _SECONDS["reference"] / _SECONDS["whole image"] > GOAL


def _measure(name: str, compute: Callable[[], Tensor], benchmark: BenchmarkFixture) -> None:
    _LOGITS[name] = benchmark.pedantic(compute, rounds=3, warmup_rounds=1)  # type: ignore[no-untyped-call]
    _SECONDS[name] = benchmark.stats.stats.min  # type: ignore[union-attr]
    benchmark.extra_info["seconds per expression"] = _SECONDS[name] / EXPRESSIONS


def _logits(model: Any, image: Tensor, words: Words) -> Tensor:
    features = model.network.encode_image(image)
    logits: Tensor = model.logits((features.expand(len(words.ids), -1, -1, -1),), words)
    return logits


def _one(words: Words, number: int) -> Words:
    return Words(words.ids[number : number + 1], words.mask[number : number + 1])
