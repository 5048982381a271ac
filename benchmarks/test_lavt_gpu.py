"""LAVT at full size on a CUDA device, 480 x 480: bf16, eager and compiled, against float32 eager as released.

python -m pytest benchmarks/test_lavt_gpu.py -m gpu
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.data.text import WordPieceTokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),  # torch.compile
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # its tracer
]

EXPRESSIONS, PIECES = 7, 8  # of an image of RefCOCO val, and of each expression
BATCH = 8  # expressions of a training step
EVALUATION_GOAL, TRAINING_GOAL = 4.0, 2.5  # times the reference's speed
WAYS = ["reference", "bf16", "bf16 compiled"]
_SECONDS: dict[str, float] = {}


def _model(*overrides: str) -> Any:
    settings, _ = recipe.load(methods.recipe_file("lavt"), [], ["model.pretrained=false", *overrides])
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = WordPieceTokenizer([*special, *(f"piece{n}" for n in range(30517))], 20)
    return methods.load("lavt").build(settings, tokenizer).cuda()


def _words(count: int) -> Words:
    ids = torch.randint(1000, 30000, (count, 20), generator=torch.Generator().manual_seed(2))
    return Words(ids.cuda(), (torch.arange(20) < PIECES).expand(count, -1).cuda())


def _measure(name: str, compute: Callable[[], object], benchmark: BenchmarkFixture) -> None:
    def finished() -> None:
        compute()
        torch.cuda.synchronize()

    benchmark.pedantic(finished, rounds=10, warmup_rounds=3)  # type: ignore[no-untyped-call]
    _SECONDS[name] = benchmark.stats.stats.median  # type: ignore[union-attr]
    benchmark.extra_info["device"] = torch.cuda.get_device_name()
    benchmark.extra_info["torch"] = torch.__version__


@pytest.mark.parametrize("way", WAYS)
@torch.inference_mode()
def test_evaluation(way: str, benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    if way == "reference":
        request.getfixturevalue("as_released")
    model = _model(*["model.compile=true"] * (way == "bf16 compiled")).eval()
    image, words = torch.randn(1, 3, 480, 480, device="cuda"), _words(EXPRESSIONS)
    whole = Batch(image, torch.zeros(EXPRESSIONS, dtype=torch.int64, device="cuda"), words, None)
    alone = [
        Batch(image, whole.image_index[:1], Words(words.ids[n : n + 1], words.mask[n : n + 1]), None)
        for n in range(EXPRESSIONS)
    ]

    def reference() -> list[Tensor]:
        return [model.predict(batch).probability for batch in alone]

    def ours() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            probability: Tensor = model.predict(whole).probability
        return probability

    _measure(f"evaluation {way}", reference if way == "reference" else ours, benchmark)
    if way == "bf16 compiled":
        assert _SECONDS["evaluation reference"] / _SECONDS["evaluation bf16 compiled"] > EVALUATION_GOAL


@pytest.mark.parametrize("way", WAYS)
def test_training(way: str, benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    if way == "reference":
        request.getfixturevalue("as_released")
    model = _model(*["model.compile=true"] * (way == "bf16 compiled")).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=5e-5)
    image, mask = torch.randn(BATCH, 3, 480, 480, device="cuda"), torch.zeros(BATCH, 480, 480, device="cuda")
    mask[:, 100:300, 100:300] = 1
    batch = Batch(image, torch.arange(BATCH, device="cuda"), _words(BATCH), mask)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=way != "reference"):
            total = model.loss(batch)["total"]
        torch.autograd.backward(total)
        optimizer.step()

    _measure(f"training {way}", step, benchmark)
    if way == "bf16 compiled":
        assert _SECONDS["training reference"] / _SECONDS["training bf16 compiled"] > TRAINING_GOAL
