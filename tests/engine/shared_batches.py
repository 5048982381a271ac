"""Trainings of the method `plain` whose batches several processes share, in each of these processes on the CPU.

    torchrun --nproc-per-node=2 tests/engine/shared_batches.py ROOT FOLDER

ROOT holds the small data set. The runs are FOLDER/NAME/ID. Their optimiser is SGD: Adam would turn a rounding error of
a gradient near 0 into a whole step. Process N writes the rest of its results to FOLDER/N.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from risbench import methods
from risbench.engine import distributed, optim
from risbench.errors import InputError
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train

CASES = [  # batch_size, micro_batch, per_image: 10, 2 and 2 steps
    (1, 1, 1),
    *((5, micro, 1) for micro in (1, 2, 3, 4, 5)),
    *((4, micro, 2) for micro in (3, 4)),
]


def main(root: Path, folder: Path) -> None:
    """Train all cases, and one in which process 1 meets a loss that is no number."""
    with mock.patch.dict(os.environ), mock.patch.dict(optim._OPTIMIZERS, adam=torch.optim.SGD):
        for batch, micro, per_image in CASES:
            sizes = [f"train.batch_size={batch}", f"train.micro_batch={micro}", f"train.per_image={per_image}"]
            _train(root, folder / case_name(batch, micro, per_image), sizes)
        _train(root, folder / "clipped", ["train.micro_batch=2", "train.clip_norm=0.01"])
        results: dict[str, Any] = {"error": ""}
        try:
            _train(root, folder / "spoilt", ["train.micro_batch=1", "train.batch_size=4", "model.spoilt=[1, 3]"])
        except InputError as error:
            results["error"] = str(error)
    fabric = distributed.start()
    results["buffers"] = _synchronised_buffers(fabric)
    results["statistic"] = _statistic_after_a_step(fabric)
    torch.save(results, folder / f"{fabric.global_rank}.pt")


def case_name(batch: int, micro: int, per_image: int) -> str:
    """Return the name of a case."""
    return f"{batch}-{micro}-{per_image}"


def _train(root: Path, folder: Path, overrides: list[str]) -> None:
    job = Job(
        method=methods.register(str(Path(__file__).parent / "plain")),
        dataset=str(root / "small.toml"),
        data_root=str(root),
        overrides=overrides,
        splits=["val"],
    )
    train(open_run(job, folder))


def _statistic_after_a_step(fabric: Any) -> float:
    """Return a running mean that was this process's rank before a training step that changes no statistic."""
    layer = nn.BatchNorm1d(1, momentum=0.0)
    wrapped = fabric.setup_module(layer)
    statistic: Any = layer.running_mean
    statistic.fill_(fabric.global_rank)
    wrapped(torch.arange(2.0)[:, None]).sum().backward()
    return float(statistic)


def _synchronised_buffers(fabric: Any) -> dict[str, torch.Tensor]:
    """Return the buffers of a network after they were synchronised.

    Before, each process has its rank in them, but for a running mean that is the same in all.
    """
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(1000))
    network.register_buffer("table", torch.zeros(2))
    for buffer in network.buffers():
        buffer.fill_(fabric.global_rank)
    frozen = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    network[1].running_mean = frozen.clone()
    distributed.synchronise_buffers(network, fabric)
    return {**dict(network.named_buffers()), "frozen": frozen}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
