from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from risbench.nn.checkpointing import run_block


class Block(nn.Module):
    """A convolution with batch normalisation and dropout, which counts its computations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, kernel_size=3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Sigmoid())
        self.calls = 0

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x) + offset  # type: ignore[no-any-return]


def train(checkpointing: bool) -> tuple[Block, list[Tensor]]:
    """Return the block after a training step, and the results of the step."""
    torch.manual_seed(0)
    block = Block()
    x, offset = torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(1, requires_grad=True)
    output = run_block(block, x, offset, checkpointing=checkpointing)
    torch.autograd.backward(output.square().sum())
    tensors = [x, offset, *block.parameters()]
    return block, [output.detach(), *(tensor.grad for tensor in tensors if tensor.grad is not None)]


def test_a_second_computation_changes_no_result_and_counts_the_batch_once() -> None:
    (once, expected), (twice, results) = train(checkpointing=False), train(checkpointing=True)
    assert (once.calls, twice.calls) == (1, 2)
    assert len(results) == 1 + 2 + 4 and all(map(torch.equal, results, expected))
    assert all(map(torch.equal, twice.state_dict().values(), once.state_dict().values()))


def test_an_error_in_the_second_computation_leaves_the_normalisation_as_it_was() -> None:
    block = Block()
    output = run_block(block, torch.randn(4, 3, 8, 8), torch.zeros(1), checkpointing=True)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        torch.autograd.backward(output.sum())
    norm = block.layers[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked is not None
    assert norm.momentum == 0.1 and int(norm.num_batches_tracked) == 1
