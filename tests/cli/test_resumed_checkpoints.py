"""Resuming from checkpoints that are damaged, exchanged or another run's: refused before any epoch is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

RunCommand = Callable[..., tuple[int, str, str]]
Damage = Callable[[Path], object]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run with one finished epoch."""
    return shutil.copytree(trained.parents[1], tmp_path / "run")


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_facts(folder: Path, **values: Any) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def change_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a training state as an old checkpoint has it, without its hash."""
    state = torch.load(folder / "state.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "state.pt")
    change_facts(folder, state="")


def change_first_moment(state: dict[str, Any]) -> None:
    next(iter(state["optimizer"]["state"].values()))["exp_avg"] = torch.zeros(1, 2, 3)


STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no groups": lambda state: state["optimizer"].pop("param_groups"),
    "groups of another type": lambda state: state["optimizer"].update(param_groups=3),
    "fewer groups": lambda state: state["optimizer"].update(param_groups=[]),
    "a rate of another type": lambda state: state["optimizer"]["param_groups"][0].update(lr="fast"),
    "a moment of another shape": change_first_moment,
    "no epoch": lambda state: state["position"].pop("epoch"),
    "an epoch of another type": lambda state: state["position"].update(epoch="one"),
    "another epoch": lambda state: state["position"].update(epoch=0),
}


@pytest.mark.parametrize("change", STATES)
def test_a_training_state_of_another_structure_is_refused(run_command: RunCommand, run: Path, change: str) -> None:
    change_state(run / "checkpoints" / "last", STATES[change])
    code, _, err = run_command("train", "--resume", run)
    line = err.splitlines()[-1]
    assert code == 2 and line.startswith(f"error: {run / 'checkpoints' / 'last' / 'state.pt'} is no training state"), (
        err
    )


DAMAGES: dict[str, tuple[Damage, str]] = {
    "best damaged": (
        lambda run: flip_bit(run / "checkpoints/best/weights.safetensors"),
        "best/weights.safetensors is not the file",
    ),
    "best missing": (lambda run: shutil.rmtree(run / "checkpoints/best"), "best is not a checkpoint"),
    "best of another seed": (lambda run: change_facts(run / "checkpoints/best", seed=7), "best is another run's"),
    "best of other data": (
        lambda run: change_facts(run / "checkpoints/best", training_data=["mini"]),
        "best is another run's",
    ),
    "best of fewer images": (lambda run: change_facts(run / "checkpoints/best", limit=1), "best is another run's"),
    "last of other variants": (
        lambda run: change_facts(run / "checkpoints/last", variants=["full"]),
        "last is another run's",
    ),
    "state damaged": (lambda run: flip_bit(run / "checkpoints/last/state.pt"), "state.pt is no training state"),
    "weights damaged": (
        lambda run: flip_bit(run / "checkpoints/last/weights.safetensors"),
        "last/weights.safetensors is not the file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_before_any_epoch(run_command: RunCommand, run: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(run)
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    for command in ("train", "run"):
        code, out, err = run_command(command, "--resume", run)
        assert code == 2 and out == "" and message in err.splitlines()[-1], err
        assert "epoch" not in err
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before


def test_a_run_killed_between_the_renames_of_a_save_goes_on(run_command: RunCommand, run: Path) -> None:
    for name in ("best", "last"):
        (run / "checkpoints" / name).rename(run / "checkpoints" / f".{name}-old")
    code, out, err = run_command("train", "--resume", run)
    assert code == 0 and out.strip() == str(run / "checkpoints" / "best"), err
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "last"]


def test_an_old_state_without_a_hash_goes_on_with_a_warning(
    run_command: RunCommand, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_facts(run / "checkpoints" / "last", state="")
    assert run_command("train", "--resume", run)[0] == 0
    assert "state.pt has no hash in checkpoint.json" in caplog.text
