"""Saving a checkpoint: full disks, kills between two steps, and readers beside a writer."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from risbench import methods, recipe
from risbench.data.text import WordTokenizer
from risbench.engine import checkpoint
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.errors import InputError

SETTINGS, _ = recipe.load(methods.recipe_file("lts"), ["tiny"], ["text.max_tokens=5"])
TOKENIZER = WordTokenizer.build(["left red cup"], 5)
NUM_SAVES = 60


@pytest.fixture
def model() -> Any:
    return nn.Linear(200, 200)


def save(folder: Path, model: Any, epoch: int) -> None:
    """Save weights and a state that all have the value of the epoch."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, epoch)
    names: dict[str, Any] = {"method": "lts", "variants": ["tiny"], "training_data": [], "pretrained": [], "seed": 0}
    facts = Facts(**names, epoch=epoch, training_seconds=0)
    state = {"optimizer": {}, "position": {"epoch": torch.full((20_000,), epoch)}}
    checkpoint.save(folder, model, TOKENIZER, SETTINGS, facts, state)


def epochs(folder: Path) -> set[float | None]:
    """Return the epochs that weights, facts and state of a checkpoint are of."""
    opened, model = Checkpoint(folder), nn.Linear(200, 200)
    opened.load_weights(model)
    of_weights = {opened.facts.epoch, *model.weight.flatten().tolist(), *model.bias.tolist()}
    state = opened.state()["position"]["epoch"].unique().tolist()
    assert state == [opened.facts.epoch]
    return of_weights


def test_a_reader_beside_a_writer_gets_one_epoch_whole(tmp_path: Path, model: Any) -> None:
    save(tmp_path / "last", model, 0)
    ended = threading.Event()

    def write() -> None:
        for epoch in range(1, NUM_SAVES + 1):
            save(tmp_path / "last", model, epoch)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(epochs(tmp_path / "last"))
    writer.join()
    assert ended.is_set()
    assert all(len(found) == 1 for found in seen)
    assert len({epoch for found in seen for epoch in found}) > 5
    assert epochs(tmp_path / "last") == {NUM_SAVES}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("step", range(1, 5))
def test_a_save_killed_at_any_step_is_read_and_repaired(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The steps are the renames and removals of folders: to .last-new, of the old one, of the new one, the end."""
    folder = tmp_path / "last"
    save(folder, model, 1)
    with monkeypatch.context() as patch:
        kill_before(patch, step)
        with pytest.raises(KeyboardInterrupt):
            save(folder, model, 2)
    entries = sorted(path.name for path in tmp_path.iterdir())
    expected = {2.0} if step == 4 else {1.0}
    assert epochs(folder) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == entries  # reading changes nothing
    checkpoint.repair(folder)
    assert epochs(folder) == ({2.0} if step > 2 else {1.0})
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".tmp")] == ["last"]
    save(folder, model, 3)
    assert epochs(folder) == {3.0}


def kill_before(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die before the step-th of: the rename to .last-new, both renames of the folder, the clean-up."""
    steps = iter(range(1, 99))

    def counted(name: str, target: object) -> None:
        real = getattr(target, name)

        def call(*arguments: object, **options: object) -> object:
            if not arguments or not str(arguments[0]).endswith((".tmp", "-new", "last", "-old")):
                return real(*arguments, **options)
            if name == "rmtree" and not Path(str(arguments[0])).exists():
                return real(*arguments, **options)
            if next(steps) == step:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        patch.setattr(target, name, call)

    counted("replace", os)
    counted("rename", os)
    counted("rmtree", shutil)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let files grow to a size only, as a full disk does."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("num_bytes", [10, 1000, 100_000])
def test_a_full_disk_is_one_sentence_and_the_old_checkpoint_stays(tmp_path: Path, model: Any, num_bytes: int) -> None:
    save(tmp_path / "last", model, 1)
    with largest_file(num_bytes), pytest.raises(InputError) as error:
        save(tmp_path / "last", model, 2)
    problem = f"{tmp_path / 'last'} cannot be written: {os.strerror(errno.EFBIG)}"
    assert str(error.value) == f"{problem}. Free space there, or give another place."
    assert epochs(tmp_path / "last") == {1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_disk_that_is_full_only_for_the_training_state_is_one_sentence(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save_file", lambda tensors, path: path.write_bytes(b""))
    with largest_file(50_000), pytest.raises(InputError, match="last cannot be written: File too large. Free space"):
        save(tmp_path / "last", model, 2)
    assert not list(tmp_path.iterdir())
