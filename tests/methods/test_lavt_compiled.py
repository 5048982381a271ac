"""LAVT with model.compile=true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from risbench import methods, recipe
from risbench.api import Batch, Words

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer
SMALL = ["width=8", "heads=[1, 1, 1, 1]", "text_width=8", "text_layers=1", "decoder_channels=8"]


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """No code that was compiled before, and an error where torch would give up compiling."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        yield
    torch._dynamo.reset()


def build(*overrides: str) -> Any:
    settings, _ = recipe.load(
        methods.recipe_file("lavt"), ["tiny"], [f"model.{override}" for override in (*SMALL, *overrides)]
    )
    torch.manual_seed(0)
    return methods.load("lavt").build(settings, range(30))


def batch(images: int) -> Batch:
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    truth = (torch.rand(2, 32, 32) > 0.5).float()
    return Batch(torch.randn(images, 3, 32, 32), torch.tensor([0, images - 1]), Words(5 * mask, mask), truth)


def answers(model: Any, given: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The loss and gradients of a step, then the logits in evaluation."""
    torch.manual_seed(2)
    model.train().zero_grad()
    loss = model.loss(given)["total"]
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with torch.inference_mode():
        probability = model.eval().predict(given).probability
    return [loss.detach(), *gradients], probability.logit()


def compare(numbers: Sequence[int], *overrides: str) -> None:
    plain, compiled = build(*overrides), build(*overrides, "compile=true")
    for images in numbers:
        expected, found = answers(plain, batch(images)), answers(compiled, batch(images))
        assert len(found[0]) == len(expected[0])
        for ours, plainly in zip(found[0], expected[0], strict=True):
            # gradients of the word vectors pass through all of the network, and round at 1e-4 of their size
            assert (ours - plainly).abs().max() < 1e-3 * plainly.abs().max() + 1e-5
        assert torch.allclose(found[1], expected[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_every_block_is_traced_whatever_its_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten blocks, each with a drop path of its own, which is more than torch compiles of one function by default."""
    compile_module = nn.Module.compile
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    compare([2, 1, 2], "depths=[2, 2, 4, 2]", "drop_path=0.3")
    assert len(graphs) > 8


@pytest.mark.slow
def test_compiled_code_answers_the_same() -> None:
    """Without drop path, for compiled code draws random numbers of its own."""
    compare([2], "depths=[1, 1, 2, 1]", "drop_path=0")
