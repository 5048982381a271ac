"""Trainings that fail: what is refused, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from risbench.engine.train import Position, Trainer
from risbench.errors import InputError
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train


@pytest.fixture
def job(small_root: Path, small_card: Path, short_training: list[str]) -> Job:
    two = [*short_training, "train.epochs=2"]
    return Job(method="lts", dataset=str(small_card), overrides=two, data_root=str(small_root), splits=["val"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("last_epoch", [1, 2])
def test_weights_that_the_last_step_of_an_epoch_spoils_are_not_kept(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, last_epoch: int
) -> None:
    """The small data set makes two steps an epoch. The loss, which is computed before a step, stays finite."""
    steps = []
    original = torch.optim.AdamW.step

    def step(optimizer: torch.optim.AdamW, *arguments: Any) -> None:
        original(optimizer, *arguments)
        steps.append(1)
        if len(steps) == 2 * last_epoch:
            with torch.no_grad():
                parameter = optimizer.param_groups[0]["params"][0]
                parameter[(0,) * parameter.ndim] = value

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run = open_run(job, tmp_path)
    with pytest.raises(InputError, match=rf"no longer finite after epoch {last_epoch} .*Lower train.lr"):
        train(run)
    folders = [run.folder / "checkpoints" / name for name in ("best", "last")]
    assert [folder.exists() for folder in folders] == [last_epoch == 2] * 2
    for folder in folders if last_epoch == 2 else []:
        assert json.loads((folder / "checkpoint.json").read_bytes())["epoch"] == 1
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "weights.safetensors").values())


def test_a_log_on_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"log.jsonl cannot be written: No space left on device. Free space"):
        Trainer._log(trainer(tmp_path), epoch=1)


def trainer(folder: Path, epoch: int = 1) -> Any:
    """What the log of a trainer needs."""
    made = object.__new__(Trainer)
    made.folder, made.position = folder, Position(epoch=epoch)
    made.fabric = type("Fabric", (), {"is_global_zero": True})()
    return made


def test_a_log_is_cut_at_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [b'{"epoch": 1, "loss": {}}\n', b'{"epoch": 1, "val": {}}\n', b'{"epoch": 2, "loss": {}}\n']
    for end in (b"", b'{"epoch": 2, "lo', b"\0\0\0"):  # what a kill or a power cut leaves
        path.write_bytes(b"".join(lines) + end)
        Trainer._cut_log(trainer(tmp_path))
        assert path.read_bytes() == b"".join(lines[:2])


def test_a_damaged_log_is_one_sentence_and_its_cure_works(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [b'{"epoch": 1, "loss": {}}\n', b'{"epoch": 1, "\xff": {}}\n', b'{"epoch": 2, "loss": {}}\n']
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"log.jsonl, line 2 is damaged: remove that line"):
        Trainer._cut_log(trainer(tmp_path))
    path.write_bytes(lines[0] + lines[2])
    Trainer._cut_log(trainer(tmp_path))
    assert path.read_bytes() == lines[0]


def test_the_position_of_a_run_of_an_earlier_version_is_read() -> None:
    assert Position.restored({"epoch": 3, "best": 1.5, "seconds": 2.0, "lines": 6}) == Position(3, 1.5, 2.0)
