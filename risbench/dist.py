"""Devices and processes: the only file that touches torch.distributed.

One process by default. Under torchrun or srun each process takes its place by itself; NCCL on CUDA, gloo on CPU.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

T = TypeVar("T")


def start(precision: str = "32-true") -> Fabric:
    """Set up the device, the precision and, where a launcher started several processes, their group."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    cuda = torch.cuda.is_available()
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=local,
        num_nodes=max(1, world // local),
        strategy=DDPStrategy() if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    if world > 1:
        fabric.launch()
    return fabric


def barrier(fabric: Fabric) -> None:
    """Wait for all processes."""
    fabric.barrier()


def from_main(fabric: Fabric, value: T) -> T:
    """The main process's value, in every process."""
    return fabric.broadcast(value, src=0)


def synchronised(model: nn.Module, fabric: Fabric) -> nn.Module:
    """Let batch normalisation see the batches of all processes; only CUDA has it."""
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    return model


def same_buffers(model: nn.Module, fabric: Fabric) -> None:
    """Give every process the main one's buffers: running statistics differ between processes while training."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def device_name(fabric: Fabric) -> str:
    """What the run computed on, for the record."""
    if fabric.device.type == "cuda":
        return f"{fabric.world_size} x {torch.cuda.get_device_name(fabric.device)}"
    return f"cpu, {fabric.world_size} x {torch.get_num_threads()} threads"
