"""How the steps of an epoch use the device: what they wait for, their arithmetic, and steps that a scaler skips."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision
from torch import Tensor

from risbench import methods
from risbench.engine import distributed, optim
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.train import Trainer
from risbench.errors import InputError
from risbench.runs.evaluation import evaluate
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train

PLAIN = Path(__file__).parent / "plain"

Settings = tuple[str, bool, bool]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def job(small_root: Path, small_card: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A training of the method `plain`, of two steps."""
    monkeypatch.setenv("RISBENCH_METHODS", str(PLAIN))
    name = methods.register("plain")
    return Job(method=name, dataset=str(small_card), data_root=str(small_root), splits=["val"])


def changed(job: Job, *overrides: str) -> Job:
    return job.model_copy(update={"overrides": [*job.overrides, *overrides]})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The calls in training steps that would wait for a GPU."""
    calls: Counter[str] = Counter()
    is_in_step: list[bool] = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        original = getattr(Tensor, name)

        def call(tensor: Tensor, *arguments: Any, name: str = name, original: Any = original, **more: Any) -> Any:
            calls[name] += bool(is_in_step)
            return original(tensor, *arguments, **more)

        monkeypatch.setattr(Tensor, name, call)
    step = Trainer._step

    def watched(*arguments: Any) -> Any:
        is_in_step.append(True)
        terms = step(*arguments)
        is_in_step.pop()
        return terms

    monkeypatch.setattr(Trainer, "_step", watched)
    return calls


def test_a_step_waits_for_nothing(
    job: Job, tmp_path: Path, waits: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what the optimiser does on the CPU: it counts its steps there, and is left out."""
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: None)
    train(open_run(changed(job, "train.micro_batch=2", "train.clip_norm=1.0"), tmp_path))
    assert not +waits


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[bool, set[Settings]]]:
    """The settings of float32 products in training (True) and in evaluation."""
    settings: dict[bool, set[Settings]] = {True: set(), False: set()}

    def record(module: torch.nn.Module, *_: object) -> None:
        if module.training or torch.is_inference_mode_enabled():  # not where operations are counted
            settings[module.training].add(_current())

    with torch.nn.modules.module.register_module_forward_hook(record):
        yield settings


def _current() -> Settings:
    backend = torch.backends.cudnn
    return torch.get_float32_matmul_precision(), backend.allow_tf32, backend.benchmark


def test_products_have_the_precision_of_the_recipe_in_training_and_in_evaluation(
    job: Job, tmp_path: Path, seen: dict[bool, set[Settings]]
) -> None:
    """And algorithms are chosen by trial in training alone, where all batches have one size."""
    before = _current()
    for matmul, tf32 in (("high", True), ("highest", False)):
        run = open_run(changed(job, f"train.matmul={matmul}"), tmp_path / matmul)
        checkpoint = train(run)
        assert seen == {True: {(matmul, tf32, True)}, False: {(matmul, tf32, False)}}
        seen[False].clear()
        evaluate(run, checkpoint)
        assert seen[False] == {(matmul, tf32, False)}
        seen[True].clear()
        seen[False].clear()
    assert _current() == before


def test_runs_of_one_process_keep_their_own_precision(
    job: Job, tmp_path: Path, seen: dict[bool, set[Settings]]
) -> None:
    """Though the second is opened before the first trains, and the first one fails."""
    first = open_run(changed(job, "train.matmul=medium", "model.spoilt=[0, 1]"), tmp_path / "first")
    second = open_run(job, tmp_path / "second")
    before = _current()
    with pytest.raises(InputError, match="no longer finite in epoch 1, step 1 of 2"):
        train(first)
    assert {matmul for matmul, _, _ in seen[True]} == {"medium"} and _current() == before
    seen[True].clear()
    train(second)
    assert {matmul for matmul, _, _ in seen[True]} == {"highest"}


def test_an_evaluation_may_have_another_precision(job: Job, tmp_path: Path, seen: dict[bool, set[Settings]]) -> None:
    checkpoint = train(open_run(job, tmp_path / "trained"))
    seen[False].clear()
    other = job.model_copy(
        update={"method": "", "checkpoint": str(checkpoint.folder), "overrides": ["train.matmul=high"]}
    )
    run = open_run(other, tmp_path / "evaluated")
    [record] = evaluate(run, train(run))
    assert {matmul for matmul, _, _ in seen[False]} == {"high"}
    assert record.recipe["train"]["matmul"] == "high"


def test_a_step_whose_gradient_overflows_is_skipped_by_the_scaler(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, so that the training goes on; Fabric refuses 16-mixed on the CPU by its name only."""
    precision = MixedPrecision("16-mixed", "cpu")
    monkeypatch.setattr(distributed, "start", lambda _: Fabric(accelerator="cpu", devices=1, plugins=[precision]))
    weights: list[Tensor] = []
    scales = [precision.state_dict()["scale"]]
    step = Trainer._step

    def overflowing(self: Trainer, *arguments: Any) -> Any:
        parameter = next(self.model.parameters())
        weights.append(parameter.detach().clone())
        hook = parameter.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient * (torch.inf if len(weights) == 1 else 1)
        )
        terms = step(self, *arguments)
        hook.remove()
        scales.append(precision.state_dict()["scale"])
        return terms

    monkeypatch.setattr(Trainer, "_step", overflowing)
    run = open_run(changed(job, "train.epochs=2"), tmp_path)
    train(run)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert scales[1] == scales[0] / 2
    assert Checkpoint(run.folder / "checkpoints" / "last").state()["scaler"]["scale"] == scales[-1]


@pytest.mark.slow  # test_shared_batches.py holds it in small
def test_every_process_ends_when_one_meets_a_loss_that_is_not_finite(small_root: Path, tmp_path: Path) -> None:
    """Started by hand, so that no launcher stops the others."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    where = ["--dataset", str(small_root / "small.toml"), "--data-root", str(small_root), "--runs", str(tmp_path)]
    command = [sys.executable, "-m", "risbench", "train", "--method", str(PLAIN), *where, "model.spoilt=[1, 1]"]
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **place, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    answers = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], answers
    errors = {line for answer in answers for line in answer.splitlines() if line.startswith("error: ")}
    assert errors and all(re.search(r"epoch 1, step 1 of 2 .* sent_id \d+, \d+", error) for error in errors)
    assert not list(tmp_path.glob("*/checkpoints/*/*"))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_on_cuda_no_step_but_the_first_synchronises(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = Trainer._step, []

    def watched(*arguments: Any) -> Any:
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(steps) > 1 else "default")
        try:
            return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_step", watched)
    train(open_run(changed(job, "train.epochs=2", "train.clip_norm=1.0", "train.micro_batch=2"), tmp_path))
    assert len(steps) == 4


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_on_cuda_every_precision_trains_with_clipped_gradients(job: Job, tmp_path: Path, precision: str) -> None:
    run = open_run(changed(job, f"train.precision={precision}", "train.clip_norm=1.0"), tmp_path)
    assert all(tensor.isfinite().all() for tensor in train(run).model()[0].state_dict().values())


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_one_kernel_updates_a_parameter(job: Job, tmp_path: Path, precision: str, fused: bool) -> None:
    settings = open_run(job, tmp_path).settings.train.model_copy(update={"precision": precision})
    parameters: list[dict[str, Any]] = [{"params": [torch.nn.Parameter(torch.ones(1))]}]
    made = optim.build_optimizer(parameters, settings)
    assert [group["fused"] for group in made.param_groups] == [fused]
