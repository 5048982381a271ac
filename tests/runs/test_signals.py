"""Whole commands that a signal stops: they end soon, leave nothing behind, and go on as their last line says.

tests/cli/test_signals.py holds the same in small.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SECONDS = 4.0  # twice what a command takes at most, since other tests may keep the machine busy
MOMENTS = 40


def with_default_signals() -> None:
    """Undo what a shell does for a background job, or nohup: they have its processes ignore signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Command:
    """A command of risbench in a process group of its own, as a shell starts it."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        command = [sys.executable, "-m", "risbench", *arguments]
        self.errors = folder / "errors.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                preexec_fn=with_default_signals,
            )

    def stop(self, number: int, group: bool) -> int:
        """Send a signal to the process or to its whole group; return the exit code."""
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        if self.process.poll() is None:
            (os.killpg if group else os.kill)(self.process.pid, number)
        start = time.monotonic()
        code = self.process.wait(timeout=60)
        assert time.monotonic() - start < SECONDS
        assert psutil.wait_procs(children, timeout=SECONDS)[1] == []
        return code

    def lines(self) -> list[str]:
        return self.errors.read_text(encoding="utf-8").splitlines()


def training(where: list[str], overrides: list[str], runs: str) -> list[str]:
    more = ["train.epochs=6", "train.workers=2"]
    return ["run", "--method", "lts", *where, "--split", "val", "--runs", runs, *overrides, *more]


def wait_for_epoch(runs: Path, number: int) -> None:
    for _ in range(600):
        if any(log.read_bytes().count(b"\n") >= 2 * number for log in runs.glob("*/log.jsonl")):  # training and val
            return
        time.sleep(0.1)
    raise AssertionError("the run did not reach the epoch")


@pytest.fixture(scope="module")
def where(small_root: Path) -> list[str]:
    return ["--dataset", str(small_root / "small.toml"), "--data-root", str(small_root)]


@pytest.fixture(scope="module")
def whole(where: list[str], short_training: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert Command(training(where, short_training, "runs"), folder).process.wait() == 0
    return next((folder / "runs").glob("lts-*"))


@pytest.mark.parametrize(("number", "group"), list(product(SIGNALS, [False, True])))
def test_a_stopped_run_goes_on_as_it_says_and_ends_like_a_whole_one(
    where: list[str], short_training: list[str], whole: Path, tmp_path: Path, number: int, group: bool
) -> None:
    command = Command(training(where, short_training, "runs"), tmp_path)
    wait_for_epoch(tmp_path / "runs", 2)
    time.sleep(random.Random(number).random())
    assert command.stop(number, group) == 128 + number
    last = command.lines()[-1]
    assert last.startswith("Stopped by ") and "Go on with: risbench run --resume runs/" in last
    assert not any("Traceback" in line or "ignored" in line for line in command.lines())
    assert not list(tmp_path.rglob(".*.tmp"))
    resumed = Command(shlex.split(last.partition("Go on with: risbench ")[2]), tmp_path)
    assert resumed.process.wait() == 0
    [run] = (tmp_path / "runs").glob("lts-*")
    for name in ("best", "last"):
        expected, weights = (load_file(each / "checkpoints" / name / "weights.safetensors") for each in (whole, run))
        assert all(weights[key].equal(expected[key]) for key in expected)


def test_whatever_it_is_doing_a_stopped_command_ends_with_one_sentence(
    where: list[str], short_training: list[str], whole: Path, tmp_path: Path
) -> None:
    generator = random.Random(0)
    checkpoint = ["--checkpoint", str(whole / "checkpoints" / "best")]
    predictions = str(whole / "predictions" / "val-original.parquet")
    commands = [
        training(where, short_training, "runs"),
        ["predict", *checkpoint, "--split", "val", *where, "--output", "x.parquet", "train.workers=2"],
        ["score", predictions, "--split", "val", *where],
        ["data", "make", "mini", "--data-root", "made"],
        ["data", "doctor", *where[1:2], *where[2:]],
        ["segment", str(next(Path(where[3]).rglob("*.jpg"))), "red thing", *checkpoint],
    ]
    stopped = 0
    for arguments in [generator.choice(commands) for _ in range(MOMENTS)]:
        command = Command(arguments, tmp_path)
        time.sleep(0.3 + 8 * generator.random() ** 2)
        number = generator.choice(SIGNALS)
        code = command.stop(number, generator.random() < 0.5)
        text = "\n".join(command.lines())
        assert code in (0, 128 + number) and "Traceback" not in text and "ignored" not in text, text
        assert code == 0 or command.lines()[-1].startswith("Stopped by ")
        assert not list(tmp_path.rglob(".*.tmp"))
        stopped += code != 0
    print(f"{stopped} of {MOMENTS} commands were stopped, each with one sentence")
    assert stopped > MOMENTS // 2


def test_loader_processes_end_when_their_parent_is_killed(
    where: list[str], short_training: list[str], tmp_path: Path
) -> None:
    command = Command([*training(where, short_training, "runs"), "train.epochs=1000"], tmp_path)
    wait_for_epoch(tmp_path / "runs", 1)
    children: list[psutil.Process] = []
    while not children:
        children = psutil.Process(command.process.pid).children()
    command.process.kill()
    assert psutil.wait_procs(children, timeout=30)[1] == []
