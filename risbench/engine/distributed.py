"""Devices and processes: the only file that touches torch.distributed.

One process by default. Under torchrun or srun each process takes its place by itself; NCCL on CUDA, gloo on CPU.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from risbench.errors import InputError

T = TypeVar("T")


def start(precision: str = "32-true") -> Fabric:
    """Set up the device, the precision and, where a launcher started several processes, their group."""
    cuda = torch.cuda.is_available()
    if precision == "16-mixed" and not cuda:
        raise InputError("train.precision=16-mixed needs CUDA, which is not here: take 32-true or bf16-mixed.")
    world, nodes, environment = _launched()
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=world // nodes,
        num_nodes=nodes,
        strategy=DDPStrategy() if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
        plugins=[environment],  # Fabric by itself takes an allocation of Slurm for a launch by srun
    )
    if world > 1:
        fabric.launch()
    return fabric


def _launched() -> tuple[int, int, ClusterEnvironment]:
    """The number of processes, that of nodes, and what knows this process's rank; (1, 1, ...) without a launcher."""
    given = os.environ
    torchrun = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= given.keys()
    if torchrun:  # first, since srun may have started it
        world = int(given["WORLD_SIZE"])
        nodes = -(-world // int(given.get("LOCAL_WORLD_SIZE", 1)))
    elif {"SLURM_STEP_ID", "SLURM_PROCID"} <= given.keys():  # srun; a batch script and salloc start no step
        world = int(given.get("SLURM_STEP_NUM_TASKS") or given.get("SLURM_NTASKS") or 1)
        nodes = int(
            given.get("SLURM_STEP_NUM_NODES") or given.get("SLURM_NNODES") or given.get("SLURM_JOB_NUM_NODES") or 1
        )
    else:
        world = nodes = 1
    if world % nodes:
        raise InputError(
            f"{world} processes cannot be spread evenly over {nodes} nodes: give the launcher the number for each node "
            "(srun --ntasks-per-node, torchrun --nproc-per-node)."
        )
    if world == 1:
        return 1, 1, LightningEnvironment()
    if torchrun:
        return world, nodes, TorchElasticEnvironment()
    # Fabric wants these to agree, but srun sets the last one only for its option --ntasks-per-node
    given.update(SLURM_NTASKS=str(world), SLURM_NNODES=str(nodes), SLURM_NTASKS_PER_NODE=str(world // nodes))
    return world, nodes, SLURMEnvironment()


def barrier(fabric: Fabric) -> None:
    """Wait for all processes."""
    fabric.barrier()


def from_main(fabric: Fabric, value: T) -> T:
    """The main process's value, in every process."""
    return fabric.broadcast(value, src=0)


def synchronised(model: nn.Module, fabric: Fabric) -> nn.Module:
    """Let batch normalisation see the batches of all processes; only CUDA has it."""
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # timm's, for torch's own drops the activations inside timm's normalisations
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
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
