from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from risbench.nn.checkpointing import run_block

from . import synchronised_step

Norm = Callable[[], nn.Module]

NORMS: dict[str, Norm] = {
    "batch": lambda: nn.BatchNorm2d(3),
    "batch, averaged over all steps": lambda: nn.BatchNorm2d(3, momentum=None),
    "batch, without statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "batch, not trained": lambda: nn.BatchNorm2d(3).eval(),
    "instance": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "timm's": lambda: BatchNormAct2d(3),
}
CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda norm: norm,
    "synchronised by torch": nn.SyncBatchNorm.convert_sync_batchnorm,
    "synchronised by timm": convert_sync_batchnorm,
}


class Block(nn.Module):
    """A convolution with normalisation and dropout, which counts its computations."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, kernel_size=3), norm, nn.Dropout(0.5), nn.Sigmoid())
        self.calls = 0

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x) + offset  # type: ignore[no-any-return]


def train(checkpointing: bool, norm: Norm) -> tuple[Block, list[Tensor]]:
    """Return the block after two training steps, and the results of the last."""
    torch.manual_seed(0)
    block = Block(norm())
    for _ in range(2):
        x, offset = torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(1, requires_grad=True)
        block.zero_grad()
        output = run_block(block, x, offset, checkpointing=checkpointing)
        torch.autograd.backward(output.square().sum())
    tensors = [x, offset, *block.parameters()]
    return block, [output.detach(), *(tensor.grad for tensor in tensors if tensor.grad is not None)]


@pytest.mark.parametrize("conversion", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_second_computation_changes_no_result_and_counts_the_batch_once(
    norm: Norm, conversion: Callable[[nn.Module], nn.Module]
) -> None:
    (once, expected), (twice, results) = (
        train(checkpointing, lambda: conversion(norm())) for checkpointing in (False, True)
    )
    assert (once.calls, twice.calls) == (2, 4)
    assert len(results) == 1 + 2 + len([*once.parameters()]) and all(map(torch.equal, results, expected))
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(map(torch.equal, twice.state_dict().values(), once.state_dict().values()))


@pytest.mark.slow  # in one process the first test holds it
def test_two_processes_with_synchronised_normalisation_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Their collective calls fit each other in the second computation, too: otherwise they would wait for ever."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, synchronised_step.__file__, str(tmp_path)], env=environment, check=True, timeout=120)
    processes = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = synchronised_step.step(
        synchronised_step.small_network(), synchronised_step.whole_batch(), checkpointing=False
    )
    buffers = {name for name, _ in synchronised_step.small_network().named_buffers()}
    for once, twice in processes:
        assert twice.pop("gathered") > once.pop("gathered") > 0
        assert once.keys() == twice.keys() == whole.keys()
        assert all(torch.equal(twice[name], tensor) for name, tensor in once.items())
    for name, tensor in whole.items():
        first, second = (results[1][name] for results in processes)
        assert torch.allclose(first if name in buffers else first + second, tensor, rtol=1e-9, atol=1e-9), name


def test_an_error_in_the_second_computation_leaves_the_normalisation_as_it_was() -> None:
    block = Block(nn.BatchNorm2d(3))
    output = run_block(block, torch.randn(4, 3, 8, 8), torch.zeros(1), checkpointing=True)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        torch.autograd.backward(output.sum())
    norm = block.layers[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked is not None
    assert norm.momentum == 0.1 and int(norm.num_batches_tracked) == 1
