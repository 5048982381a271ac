"""A training step of a ResNet whose batch normalisation is synchronised, in each of several processes on the CPU.

    torchrun --nproc-per-node=2 tests/nn/synchronised_step.py FOLDER

Torch has the five kernels of synchronised normalisation for CUDA only: here stand the same for the CPU, and its forward
method is made to accept tensors of the CPU. All else is torch's. Process N writes FOLDER/N.pt: the step's results
without and with activation checkpointing, and the number of gathered statistics.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, distributed, nn

from risbench.nn.resnet import ResNet

IMAGES = 3  # of all processes together: their shares differ


def main() -> None:
    """Run the step twice, from the same weights."""
    _library = _allow_the_cpu()
    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    images = whole_batch().tensor_split(processes)[rank]
    results = []
    for checkpointing in (False, True):
        network = convert_sync_batchnorm(small_network())  # type: ignore[no-untyped-call]
        with mock.patch.object(distributed, "all_gather", wraps=distributed.all_gather) as gather:
            results.append(step(network, images, checkpointing))
        results[-1]["gathered"] = torch.tensor(gather.call_count)
    torch.save(results, Path(sys.argv[1]) / f"{rank}.pt")
    distributed.destroy_process_group()


def whole_batch() -> Tensor:
    """Return the images of all processes (I, 3, H, W)."""
    return torch.randn(IMAGES, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def small_network() -> Any:
    """Return the network before the step."""
    torch.manual_seed(0)
    return ResNet("resnet10t").double().train()


def step(network: Any, images: Tensor, checkpointing: bool) -> dict[str, Tensor]:
    """Return the gradients, as sums over the images, and the buffers after a step."""
    network.checkpointing = checkpointing
    x = network.embed(images)
    for number in range(4):
        x = network.stage(number, x)
    torch.autograd.backward(x.square().sum())
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return gradients | {name: buffer.clone() for name, buffer in network.named_buffers()}


def _allow_the_cpu() -> torch.library.Library:
    """Add the kernels, which go with the library that is returned, and let the forward method take the CPU."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for kernel in (_stats, _gather_stats_with_counts, _elemt, _backward_reduce, _backward_elemt):
        library.impl(f"batch_norm{kernel.__name__}", kernel, "CPU")  # type: ignore[no-untyped-call]
    forward = nn.SyncBatchNorm.forward

    def on_the_cpu(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
        with mock.patch.object(torch._C, "_get_privateuse1_backend_name", lambda: "cpu"):
            return forward(norm, x)

    nn.SyncBatchNorm.forward = on_the_cpu  # type: ignore[method-assign, assignment]
    return library


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.mean(dim=(0, 2, 3)), (x.var(dim=(0, 2, 3), unbiased=False) + eps).rsqrt()


def _gather_stats_with_counts(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Unite the statistics of the processes (P, C), and count them in the running ones."""
    total, weights = counts.sum(), counts[:, None] / counts.sum()
    united = (weights * mean).sum(dim=0)
    variance = (weights * (invstd**-2 - eps + (mean - united) ** 2)).sum(dim=0)
    running_mean.lerp_(united, momentum)
    running_var.lerp_(variance * total / (total - 1), momentum)
    return united, (variance + eps).rsqrt()


def _elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    return (x - _wide(mean)) * _wide(invstd * weight) + _wide(bias)


def _backward_reduce(
    gradient: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *_: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, product = gradient.sum(dim=(0, 2, 3)), (gradient * (x - _wide(mean))).sum(dim=(0, 2, 3))
    return total, product, product * invstd, total


def _backward_elemt(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    total: Tensor,
    product: Tensor,
    counts: Tensor,
) -> Tensor:
    share = (x - _wide(mean)) * _wide(invstd**2 * product / counts.sum())
    return (gradient - _wide(total / counts.sum()) - share) * _wide(invstd * weight)


def _wide(values: Tensor) -> Tensor:
    return values[None, :, None, None]


if __name__ == "__main__":
    main()
