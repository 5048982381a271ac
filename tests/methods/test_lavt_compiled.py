"""LAVT with model.compile=true."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from risbench import methods, recipe
from risbench.api import Batch, Words

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer
compilation = importlib.import_module(f"{methods.module('lavt').__package__}.compilation")
SMALL = ["width=8", "heads=[1, 1, 1, 1]", "text_width=8", "text_layers=1", "decoder_channels=8"]


@pytest.fixture(autouse=True)
def fresh_and_strict() -> Iterator[None]:
    """No code from earlier compilations, and an error when torch would stop compiling."""
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


def make_batch(images: int) -> Batch:
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    truth = (torch.rand(2, 32, 32) > 0.5).float()
    return Batch(torch.randn(images, 3, 32, 32), torch.tensor([0, images - 1]), Words(5 * mask, mask), truth)


def train_and_predict(model: Any, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the loss and gradients of a step, and the logits in evaluation."""
    torch.manual_seed(2)
    model.train().zero_grad()
    loss = model.loss(batch)["total"]
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with torch.inference_mode():
        probability = model.eval().predict(batch).probability
    return [loss.detach(), *gradients], probability.logit()


def assert_same_results(image_counts: Sequence[int], *overrides: str) -> None:
    eager, compiled = build(*overrides), build(*overrides, "compile=true")
    for images in image_counts:
        expected_gradients, expected_logits = train_and_predict(eager, make_batch(images))
        gradients, logits = train_and_predict(compiled, make_batch(images))
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            # gradients of the word vectors pass through all of the network and round at 1e-4 of their size
            assert (gradient - expected).abs().max() < 1e-3 * expected.abs().max() + 1e-5
        assert torch.allclose(logits, expected_logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_recompile_limit_is_raised_only_while_compiled_parts_are_called(
    monkeypatch: pytest.MonkeyPatch, checkpointing: str
) -> None:
    """Also when the backward pass computes a block again. Nothing is compiled here, so that the test is quick."""
    limits: list[int] = []

    def compile_module(module: nn.Module) -> None:
        def call(*inputs: Any) -> Any:
            limits.append(torch._dynamo.config.recompile_limit)
            return module._call_impl(*inputs)  # type: ignore[no-untyped-call]

        module._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compile_module)
    model = build("depths=[2, 2, 2, 2]", "compile=true", f"activation_checkpointing={checkpointing}")
    assert torch._dynamo.config.recompile_limit == 8
    train_and_predict(model, make_batch(2))
    assert torch._dynamo.config.recompile_limit == 8
    parts = 8 + 4 + 4 + 1  # blocks, fusions, gates, decoder
    calls = 2 * (parts - 1)  # a step and an evaluation call all parts but the last gate
    assert limits == (calls + 8 * (checkpointing == "true")) * [4 * parts]


def test_a_higher_recompile_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []

    def compile_module(module: nn.Module) -> None:
        module._compiled_call_impl = lambda *_: limits.append(torch._dynamo.config.recompile_limit)

    monkeypatch.setattr(nn.Module, "compile", compile_module)
    module = nn.Identity()
    compilation.compile_modules([module])
    for limit in (2, 1000):
        with torch._dynamo.config.patch(recompile_limit=limit):
            module(torch.zeros(1))
    assert limits == [4, 1000]


def test_a_compiled_network_can_be_copied() -> None:
    model = build("compile=true")
    copied = copy.deepcopy(model)
    assert all(map(torch.equal, copied.state_dict().values(), model.state_dict().values()))


@pytest.mark.slow
def test_more_blocks_than_torch_s_default_limit_are_all_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four widths, some shifted, trained and evaluated; by default torch makes eight graphs of a function."""
    compile_module = nn.Module.compile
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    assert_same_results([2, 1, 2], "depths=[2, 2, 4, 2]", "drop_path=0.3")
    assert len(graphs) > 8


@pytest.mark.slow
def test_compiled_code_gives_the_same_results() -> None:
    """Without drop path, because compiled code draws other random numbers."""
    assert_same_results([2], "depths=[1, 1, 2, 1]", "drop_path=0")
