"""`risbench predict` killed at random moments, and started several times at once: the file is always the same or none.

Run it alone with `pytest -m slow tests/runs/test_killed_predictions.py -s`; it prints the counts that it reached.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from risbench import methods, recipe
from risbench.data import source
from risbench.engine import checkpoint
from risbench.engine.checkpoint import Facts

KILLS, PROCESSES = 12, 3
pytestmark = pytest.mark.slow

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights: what is predicted does not matter."""
    settings, variants = recipe.load(methods.recipe_file("lts"), ["tiny"], ["text.max_tokens=15"])
    method = methods.load("lts")
    tokenizer = method.tokenizer(settings, source.open_index("mini").split("train").sent)
    facts = Facts(method="lts", variants=variants, training_data=[], seed=0, epoch=0, training_seconds=0)
    folder = tmp_path_factory.mktemp("weights") / "best"
    checkpoint.save(folder, method.build(settings, tokenizer), tokenizer, settings, facts)
    return folder


@pytest.fixture
def start(weights: Path, tmp_path: Path) -> Start:
    """Start `risbench predict` to a file in a process of its own; small batches make it last long enough."""

    def run(name: str) -> subprocess.Popen[str]:
        options = ["--checkpoint", str(weights), "--split", "val", "--output", str(tmp_path / "out" / name)]
        command = [sys.executable, "-m", "risbench", "predict", *options, "predict.images_per_batch=1"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    return run


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=600)
    return process.returncode, err


def stored_masks(folder: Path) -> int:
    """The expressions in the parts; a part may be merged and removed meanwhile."""
    with suppress(FileNotFoundError):
        return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parts/[0-9a-f]*.parquet"))
    return 0


def wait_for_masks(folder: Path, number: int, processes: Sequence[subprocess.Popen[str]]) -> None:
    while stored_masks(folder) < number and any(process.poll() is None for process in processes):
        time.sleep(0.01)


def test_kills_at_random_moments_end_in_the_same_bytes(start: Start, tmp_path: Path) -> None:
    assert finish(start("whole.parquet"))[0] == 0
    whole = (tmp_path / "out" / "whole.parquet").read_bytes()
    random.seed(0)
    kills, before = 0, 0
    for _ in range(KILLS):
        process = start("killed.parquet")
        wait_for_masks(tmp_path / "out", before + 1, [process])
        time.sleep(random.uniform(0, 0.3))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if (tmp_path / "out" / "killed.parquet").exists():
            break
        assert stored_masks(tmp_path / "out") >= before  # nothing that was stored is lost
        before = stored_masks(tmp_path / "out")
    code, err = finish(start("killed.parquet"))
    assert code == 0, err
    assert (tmp_path / "out" / "killed.parquet").read_bytes() == whole
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["killed.parquet", "whole.parquet"]
    assert kills >= 3
    print(f"{kills} kills, the last with {before} masks stored; the same {len(whole):,} bytes")


def test_of_several_processes_one_writes_the_file_and_the_others_are_refused(start: Start, tmp_path: Path) -> None:
    assert finish(start("whole.parquet"))[0] == 0
    processes = [start("shared.parquet") for _ in range(PROCESSES)]
    wait_for_masks(tmp_path / "out", 1, processes)
    processes.append(start("shared.parquet"))  # at work while another one is
    results = [finish(process) for process in processes]
    assert {code for code, _ in results} == {0, 2}
    refused = [err for code, err in results if code == 2]
    assert all("Another process is at work on" in err and err.count("\n") == 1 for err in refused)
    whole, shared = ((tmp_path / "out" / name).read_bytes() for name in ("whole.parquet", "shared.parquet"))
    assert shared == whole
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["shared.parquet", "whole.parquet"]
    print(f"{len(processes)} processes: {len(refused)} refused, the others wrote the same {len(whole):,} bytes")


def test_a_killed_score_leaves_nothing(start: Start, tmp_path: Path) -> None:
    assert finish(start("whole.parquet"))[0] == 0
    file = tmp_path / "out" / "whole.parquet"
    command = [sys.executable, "-m", "risbench", "score", str(file), "--split", "val", "--boundaries", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    whole, kills = file.read_bytes(), 0
    random.seed(1)
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        time.sleep(random.uniform(0, 4))
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert file.read_bytes() == whole and [path.name for path in file.parent.iterdir()] == [file.name]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == answer
    assert kills >= 3
    print(f"{kills} kills of score; the same answer")
