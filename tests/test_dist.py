"""Two processes on the CPU (torchrun, gloo) against one, each with one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

SHORT = [
    "train.batch_size=4",
    "train.per_image=1",
    "train.schedule=step",
    "train.decay=0.1",
    "train.lr=1e-3",
    "train.epochs=2",
    "train.milestones=[]",
    "image.size=64",
    "predict.images_per_batch=1",
]


def risbench(processes: int, arguments: list[str]) -> None:
    """Run the command line in this many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "risbench", *arguments]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.fixture(scope="module")
def where(small_root: Path) -> list[str]:
    return ["--dataset", str(small_root / "small.toml"), "--data-root", str(small_root)]


@pytest.fixture(scope="module")
def trained_by_two(where: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    risbench(2, ["train", "--method", "lts", *where, "--runs", str(runs), *SHORT])
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
