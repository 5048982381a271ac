"""On a CUDA device, over every folder in methods/: the numbers of the CPU, and steps that never wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor

from risbench.api import Batch, Method
from risbench.engine import distributed
from risbench.gate.contract_case import Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]
MATMUL = {"highest": 1e-4, "high": 0.02}  # train.matmul: the largest difference of a probability from the CPU's


@pytest.fixture(scope="module")
def case(method: str) -> Case:
    return Case(method)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_cuda(batch: Batch) -> Batch:
    moved: Batch = move_data_to_device(batch, torch.device("cuda"))
    return moved


@torch.inference_mode()
def predicted_on_cuda(case: Case) -> Tensor:
    model = deepcopy(case.evaluated).cuda()
    probability: Tensor = model.predict(on_cuda(case.batch)).probability
    return probability.float().cpu()


@pytest.mark.parametrize("matmul", MATMUL)
def test_the_probabilities_are_the_cpu_s(case: Case, matmul: str) -> None:
    with distributed.arithmetic(matmul):
        probability = predicted_on_cuda(case)
    torch.testing.assert_close(probability, case.predict(case.batch).probability, rtol=0, atol=MATMUL[matmul])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_moves_no_probability_far(case: Case, dtype: torch.dtype) -> None:
    with torch.autocast("cuda", dtype):
        probability = predicted_on_cuda(case)
    torch.testing.assert_close(probability, case.predict(case.batch).probability, rtol=0, atol=0.05)


def test_no_step_but_the_first_waits(case: Case) -> None:
    if not case.trains:
        pytest.skip("this method refuses to train")
    model = case.build().cuda()
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=1e-3, fused=True)
    batch = on_cuda(case.batch)
    losses = [train_on(model, batch, optimizer)]
    with waiting_is_an_error():
        losses += [train_on(model, batch, optimizer) for _ in range(2)]
    assert all(loss.isfinite() for loss in losses)


def train_on(model: Method, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    total: Tensor = model.loss(batch)["total"]
    torch.autograd.backward(total)
    optimizer.step()
    return total.detach()
