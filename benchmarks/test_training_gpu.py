"""Training steps at full size on a CUDA device: a batch of each method's recipe from `mini`, from scratch.

python -m pytest benchmarks/test_training_gpu.py -m gpu
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device
from pytest_benchmark.fixture import BenchmarkFixture

from risbench import methods, recipe
from risbench.api import Batch, Tokenizer
from risbench.data import loader, micro_batches, source
from risbench.data.loader import TrainingSamples
from risbench.data.text import WordPieceTokenizer
from risbench.engine import distributed, optim
from risbench.recipe import Recipe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TRAINED = [name for name in methods.names() if recipe.load(methods.recipe_file(name))[0].trains]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"piece{number}" for number in range(30517))]


@pytest.mark.parametrize(
    ("arithmetic", "at_once"), [("bf16", "micro-batches"), ("bf16", "whole batch"), ("TF32", "micro-batches")]
)  # in TF32 a whole batch of LAVT does not fit 80 GB
@pytest.mark.parametrize("name", TRAINED)
def test_a_step(name: str, arithmetic: str, at_once: str, benchmark: BenchmarkFixture) -> None:
    settings = _settings(name)
    train = settings.train
    micro_batch = train.micro_batch if at_once == "micro-batches" else train.batch_size
    tokenizer, batches = _batches(name, settings, micro_batch)
    torch.manual_seed(0)
    model = methods.load(name).build(settings, tokenizer).cuda().train()
    optimizer = optim.build_optimizer(optim.parameter_groups(model, train), train)

    def step() -> None:
        optimizer.zero_grad()
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16, enabled=arithmetic == "bf16"):
                total = model.loss(batch)["total"] / len(batches)
            torch.autograd.backward(total)
        optimizer.step()
        torch.cuda.synchronize()

    torch.cuda.reset_peak_memory_stats()
    with distributed.arithmetic("high" if arithmetic == "TF32" else "highest", fixed_sizes=True):
        benchmark.pedantic(step, rounds=6, warmup_rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info |= {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "batch": train.batch_size,
        "GiB": torch.cuda.max_memory_allocated() / 2**30,  # with what cuDNN tried in the first step
    }


def _settings(name: str) -> Recipe:
    path = methods.recipe_file(name)
    settings, _ = recipe.load(path, [])
    overrides = [] if settings.text.max_tokens else ["text.max_tokens=15"]
    overrides += ["model.pretrained=false"] if "pretrained" in settings.model else []
    return recipe.load(path, [], overrides)[0]


def _batches(name: str, settings: Recipe, micro_batch: int) -> tuple[Tokenizer, list[Batch]]:
    index = source.open_index("mini", "")
    split, train = index.split("train"), settings.train
    texts: Any = split.texts(settings.text.field)
    words = sorted({word for text in texts for word in text.lower().split()})
    tokenizer: Tokenizer = (
        methods.load(name).tokenizer(settings, texts)
        if "text_weights" not in settings.model  # else word pieces come from the hub
        else WordPieceTokenizer([*PIECES[:5], *words, *PIECES[5 : -len(words)]], settings.text.max_tokens)
    )
    samples = TrainingSamples(
        sources=[(index, split)],
        rows=loader.training_rows([index], index),
        field=settings.text.field,
        tokenizer=tokenizer,
        image=settings.image,
        per_image=train.per_image,
    )
    positions = loader.training_batches(samples, train.batch_size)[0]
    pieces = micro_batches.cut(positions, micro_batch, train.per_image, 0, 1)
    return tokenizer, [move_data_to_device(samples[piece.positions].batch, torch.device("cuda")) for piece in pieces]
