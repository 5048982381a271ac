"""Devices and processes: the only file that touches torch.distributed.

One process by default. torchrun and srun start several, which read their ranks from the environment. The backend is
NCCL on CUDA and gloo on the CPU.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from risbench.errors import InputError

T = TypeVar("T")

_log = logging.getLogger(__name__)
logging.getLogger("lightning_fabric").setLevel(logging.NOTSET)  # its own level is INFO, whatever -v and -q say


def start(precision: str = "32-true") -> Fabric:
    """Set up the device and the precision, and the process group if a launcher started several processes."""
    cuda = torch.cuda.is_available()
    if precision == "16-mixed" and not cuda:
        raise InputError("train.precision=16-mixed needs CUDA, which is not here: take 32-true or bf16-mixed.")
    world, nodes, environment = _launched()
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=world // nodes,
        num_nodes=nodes,
        strategy=_strategy() if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
        plugins=[environment],  # Fabric's detection takes any Slurm allocation for a launch by srun
    )
    if world > 1:
        fabric.launch()
    _log.info("Device: %s, precision %s.", device_name(fabric), precision)
    return fabric


def _strategy() -> DDPStrategy:
    """Return the exchange of gradients alone: `synchronise_buffers` exchanges the buffers, less often."""
    is_new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters  # after torch 2.6
    buffers: dict[str, Any] = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
    return DDPStrategy(**buffers)


def _launched() -> tuple[int, int, ClusterEnvironment]:
    """Return the numbers of processes and nodes and Fabric's environment; without a launcher 1, 1 and Lightning's."""
    variables = os.environ
    torchrun = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= variables.keys()
    if torchrun:  # first, since srun may have started torchrun
        world = int(variables["WORLD_SIZE"])
        nodes = -(-world // int(variables.get("LOCAL_WORLD_SIZE", 1)))
    elif {"SLURM_STEP_ID", "SLURM_PROCID"} <= variables.keys():  # srun; a batch script and salloc start no step
        world = _first_number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
        nodes = _first_number("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
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
    # Fabric compares these three, but srun sets the last one only with its option --ntasks-per-node
    variables.update(SLURM_NTASKS=str(world), SLURM_NNODES=str(nodes), SLURM_NTASKS_PER_NODE=str(world // nodes))
    return world, nodes, SLURMEnvironment()


def _first_number(*names: str) -> int:
    """Return the first of these environment variables that is set, or 1."""
    return int(next((value for name in names if (value := os.environ.get(name))), 1))


def are_several() -> bool:
    """Whether this is one of several processes that work together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def barrier(fabric: Fabric) -> None:
    """Wait for all processes."""
    fabric.barrier()


def from_main(fabric: Fabric, value: T) -> T:
    """Return the main process's value in every process."""
    return fabric.broadcast(value, src=0)


def from_all(fabric: Fabric, value: T) -> list[T]:
    """Return the values of all processes, by rank, in every process."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def synchronise_normalisation(model: nn.Module, fabric: Fabric) -> nn.Module:
    """Let batch normalisation see the batches of all processes; only CUDA supports it."""
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # timm's function, because torch's drops the activations inside timm's normalisation layers
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    return model


def synchronise_buffers(model: nn.Module, fabric: Fabric) -> None:
    """Give all processes the mean of their running statistics, and the main process's other buffers.

    While training nothing reads a running statistic, so that they are exchanged once an epoch and not in each step.
    """
    if fabric.world_size == 1:
        return
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    statistics = {id(buffer) for layer in layers for buffer in (layer.running_mean, layer.running_var)}
    for buffer in model.buffers():
        common = buffer.clone()
        torch.distributed.broadcast(common, src=0)
        if id(buffer) in statistics:
            difference = buffer - common  # 0 if they are frozen, so that they stay bit for bit what they are
            torch.distributed.all_reduce(difference)
            common += difference / fabric.world_size
        buffer.copy_(common)


@contextmanager
def arithmetic(matmul: str, fixed_sizes: bool = False) -> Iterator[None]:
    """Set how float32 is multiplied, and set it back: other runs of this process may have other settings.

    `matmul` is train.matmul; above "highest" cuDNN's convolutions take TF32 too. With `fixed_sizes` cuDNN tries its
    algorithms once for each size of input, and takes the fastest.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    _set_arithmetic(matmul, matmul != "highest", fixed_sizes)
    try:
        yield
    finally:
        _set_arithmetic(*before)


def _set_arithmetic(matmul: str, convolution_tf32: bool, benchmark: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution_tf32
    torch.backends.cudnn.benchmark = benchmark


def device_name(fabric: Fabric) -> str:
    """Return the name of the device for the record."""
    if fabric.device.type == "cuda":
        return f"{fabric.world_size} x {torch.cuda.get_device_name(fabric.device)}"
    return f"cpu, {fabric.world_size} x {torch.get_num_threads()} threads"


def count_failures(more: int) -> int:
    """Return how many processes of the run have failed, after adding `more` to them.

    They are counted where the launched processes met. Returns `more` if that place is not there, or not any more.
    """
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=2))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return int(store.add(f"risbench/failures/{attempt}", more))
    except (KeyError, ValueError, RuntimeError):
        return more
