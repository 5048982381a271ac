"""Processes that share batches take the steps of one process (see shared_batches.py)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from . import shared_batches

Results = Callable[[int], Path]  # the folder of results for a number of processes

several = pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])


@pytest.fixture(scope="module")
def results(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Train on demand, one process in this one."""

    @cache
    def train(processes: int) -> Path:
        folder = tmp_path_factory.mktemp("results")
        if processes == 1:
            shared_batches.main(small_root, folder)
            return folder
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launcher, shared_batches.__file__, str(small_root), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, answer.stderr
        return folder

    return train


def trained(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the weights after the epoch and the losses of its log."""
    [run] = folder.iterdir()
    first = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0]
    return load_file(run / "checkpoints" / "last" / "weights.safetensors"), json.loads(first)["loss"]


def rest(results: Results, processes: int) -> list[dict[str, Any]]:
    return [torch.load(results(processes) / f"{rank}.pt") for rank in range(processes)]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_weights_and_losses_are_those_of_one_process_that_computes_whole_batches(
    results: Results, processes: int
) -> None:
    for batch, micro, per_image in shared_batches.CASES:
        whole = trained(results(1) / shared_batches.case_name(batch, batch, per_image))
        shared = trained(results(processes) / shared_batches.case_name(batch, micro, per_image))
        for name, weight in whole[0].items():
            assert torch.allclose(shared[0][name], weight, rtol=1e-5, atol=1e-6), (batch, micro, per_image, name)
        assert shared[1] == pytest.approx(whole[1], rel=1e-6), (batch, micro, per_image)


def test_the_steps_of_these_trainings_are_longer_than_the_tolerance(results: Results) -> None:
    """And batches of another size end elsewhere."""
    few, many = (trained(results(1) / name)[0] for name in ("1-1-1", "5-5-1"))
    assert max((few[name] - many[name]).abs().max() for name in few) > 1e-2


@several
def test_the_gradient_is_clipped_as_a_whole(results: Results, processes: int) -> None:
    alone, shared = (trained(results(number) / "clipped")[0] for number in (1, processes))
    assert all(torch.allclose(shared[name], alone[name], rtol=1e-5, atol=1e-6) for name in alone)


@several
def test_a_loss_of_one_process_that_is_not_finite_stops_all_with_its_expressions(
    results: Results, processes: int
) -> None:
    """Its third micro-batch of one expression: in the second step (4 expressions), with which no checkpoint is made."""
    errors = {answer["error"].removesuffix(" Nothing of the run is kept.") for answer in rest(results, processes)}
    assert len(errors) == 1
    pattern = (
        r"no longer finite in epoch 1, step 2 of 2 \(total nan, entropy [\d.]+, area nan\), .* sent_id \d+ of small"
    )
    assert re.search(pattern, errors.pop())
    assert not list((results(processes) / "spoilt").glob("*/checkpoints/*/*"))


@several
def test_no_step_exchanges_running_statistics(results: Results, processes: int) -> None:
    assert [answer["statistic"] for answer in rest(results, processes)] == list(range(processes))


@several
def test_running_statistics_are_averaged_and_other_buffers_copied(results: Results, processes: int) -> None:
    mean = (processes - 1) / 2
    for buffers in (answer["buffers"] for answer in rest(results, processes)):
        assert buffers["0.running_mean"].tolist() == buffers["0.running_var"].tolist() == [mean, mean]
        assert buffers["table"].tolist() == [0, 0] and buffers["0.num_batches_tracked"] == 0
        assert torch.equal(buffers["1.running_mean"], buffers["frozen"])
