"""Training steps of LTS's tiny network, a thread for each core, by how long OpenMP's threads spin before they sleep.

One process has the machine for itself; two share it, as beside any other work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from risbench import __main__ as entry

STEPS = 40
PROGRAM = """
import sys, torch
from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.data.text import WordTokenizer
settings, _ = recipe.load(methods.recipe_file("lts"), ["tiny"], [])
side, expressions = settings.image.size, settings.train.batch_size
torch.manual_seed(0)
model = methods.load("lts").build(settings, WordTokenizer.build(["the red cup"], 15))
words = Words(torch.ones(expressions, 6, dtype=torch.long), torch.ones(expressions, 6, dtype=torch.bool))
image = torch.arange(expressions) // 4
batch = Batch(torch.randn(expressions // 4, 3, side, side), image, words, torch.zeros(expressions, side, side))
def step():
    model.loss(batch)["total"].backward()
for _ in range(3):
    step()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    step()
"""
POLICIES = {"spinning": {}, "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"}, "as risbench": entry.WAITING}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("processes", [1, 2])
def test_training_steps(processes: int, policy: str, benchmark: BenchmarkFixture) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= POLICIES[policy] | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, str(STEPS)]
    started = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"

    benchmark.pedantic(_finish, args=(started,), rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info["steps per second of a process"] = STEPS / benchmark.stats.stats.min  # type: ignore[union-attr]


def _finish(started: list[subprocess.Popen[str]]) -> None:
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        process.communicate()  # waits, and closes the pipes
    assert [process.returncode for process in started] == [0] * len(started)
