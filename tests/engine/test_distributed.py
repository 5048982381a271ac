"""Launchers, and two processes on the CPU (torchrun, gloo) against one process, each with one thread."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from risbench.cli.processes import have_failed, is_first_failure
from risbench.engine import distributed
from risbench.errors import InputError
from risbench.nn.darknet import Darknet


def test_synchronised_normalisation_keeps_the_activations() -> None:
    """timm's layers normalise and activate in one; in evaluation a converted network needs no other process."""
    torch.manual_seed(0)
    network = Darknet().eval()
    image = torch.randn(1, 3, 32, 32)
    fabric = SimpleNamespace(world_size=2, device=torch.device("cuda"))
    with torch.inference_mode():
        expected = network.stage(0, network.embed(image))
        converted: Any = distributed.synchronise_normalisation(network, cast(Any, fabric))
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())
        assert torch.allclose(converted.stage(0, converted.embed(image)), expected, atol=1e-6)


def risbench(processes: int, arguments: list[str]) -> None:
    """Run the command line in this many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "risbench", *arguments]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


LAUNCHERS = ("SLURM_", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_", "MASTER_")
JOB = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_NTASKS": "4"}
BATCH = {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # of the script itself
STEP = {**BATCH, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0"}
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def launched_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], tuple[int, int, int]]:
    """Return processes, nodes and rank for some environment variables."""

    def ask(variables: dict[str, str]) -> tuple[int, int, int]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
        monkeypatch.setattr(os, "environ", {**inherited, **variables})
        world, nodes, environment = distributed._launched()
        environment.validate_settings(num_devices=world // nodes, num_nodes=nodes)
        return world, nodes, environment.global_rank()

    return ask


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, 1, 0)),
        (JOB, (1, 1, 0)),  # salloc
        (BATCH, (1, 1, 0)),
        ({**BATCH, "SLURM_JOB_NAME": "interactive"}, (1, 1, 0)),
        (STEP, (4, 2, 3)),
        ({**STEP, "SLURM_NTASKS_PER_NODE": "2"}, (4, 2, 3)),
        ({**STEP, "SLURM_JOB_NAME": "interactive"}, (4, 2, 3)),  # srun under salloc
        ({key: value for key, value in STEP.items() if key != "SLURM_NNODES"}, (4, 2, 3)),
        ({**STEP, "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "4"}, (1, 1, 0)),  # srun -n 1
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, (1, 1, 0)),  # salloc's interactive step
        (TORCHRUN, (4, 2, 3)),
        ({**STEP, **TORCHRUN, "SLURM_NTASKS": "2"}, (4, 2, 3)),  # srun torchrun
    ],
)
def test_only_a_launcher_makes_several_processes(
    launched_with: Callable[[dict[str, str]], tuple[int, int, int]],
    variables: dict[str, str],
    expected: tuple[int, int, int],
) -> None:
    assert launched_with(variables) == expected


def test_processes_that_cannot_be_spread_over_the_nodes_are_refused(
    launched_with: Callable[[dict[str, str]], tuple[int, int, int]],
) -> None:
    with pytest.raises(InputError, match="5 processes .* over 2 nodes.*--ntasks-per-node"):
        launched_with({**STEP, "SLURM_NTASKS": "5"})


def test_an_allocation_alone_is_one_process_with_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in BATCH.items():
        monkeypatch.setenv(key, value)
    assert distributed.start().world_size == 1


def test_half_precision_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="16-mixed needs CUDA"):
        distributed.start("16-mixed")


@pytest.fixture(scope="module")
def where(small_root: Path) -> list[str]:
    return ["--dataset", str(small_root / "small.toml"), "--data-root", str(small_root)]


@pytest.fixture(scope="module", params=["lts", "lavt", "coupalign", "magnet"])
def trained_by_two(
    where: list[str],
    short_training: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    more = [*short_training, "train.epochs=2", "predict.images_per_batch=1"]
    risbench(2, ["train", "--method", request.param, *where, "--runs", str(runs), *more])
    [run] = runs.iterdir()
    return run


def test_two_processes_train_one_run(trained_by_two: Path) -> None:
    lines = (trained_by_two / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 1, 2, 2]
    assert load_file(trained_by_two / "checkpoints" / "last" / "weights.safetensors")


def test_two_processes_give_the_rows_of_one(trained_by_two: Path, where: list[str], tmp_path: Path) -> None:
    checkpoint = ["--checkpoint", str(trained_by_two / "checkpoints" / "best"), "--split", "testA,testB"]
    tables = []
    for processes in (1, 2):
        runs = tmp_path / str(processes)
        risbench(processes, ["run", *checkpoint, *where, "--runs", str(runs), "predict.images_per_batch=1"])
        [run] = runs.iterdir()
        tables.append(
            [
                pq.read_table(run / kind / f"{split}-original.parquet")
                for kind in ("rows", "predictions")
                for split in ("testA", "testB")
            ]
        )
    for one, two in zip(*tables, strict=True):
        assert one.equals(two)


def test_of_several_processes_the_first_that_fails_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    assert not have_failed()
    assert [is_first_failure(), is_first_failure()] == [True, False]
    assert have_failed()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not have_failed()


def test_a_process_alone_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert is_first_failure() and is_first_failure() and not have_failed()


@pytest.mark.slow  # the tests above hold it in small
@pytest.mark.parametrize("damaged", [1, 2, 3])
def test_an_error_of_one_process_ends_all_with_one_sentence(
    small_root: Path, short_training: list[str], tmp_path: Path, damaged: int
) -> None:
    """A training image that is cut off; which process reads it follows from the seed."""
    root = shutil.copytree(small_root, tmp_path / "root")
    [image] = (root / "images" / "small").glob(f"*{damaged:012d}.*")
    image.write_bytes(image.read_bytes()[:-200])
    where = ["--dataset", str(root / "small.toml"), "--data-root", str(root), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "risbench"]
    answer = subprocess.run(
        [*command, "train", "--method", "lts", *where, *short_training], capture_output=True, text=True, timeout=120
    )
    errors = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert answer.returncode != 0 and len(errors) == 1 and image.name in errors[0]
    assert answer.stderr.count("Traceback (most recent call last)") == 1  # torchrun's own
