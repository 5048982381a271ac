"""Threads of OpenMP that wait: they sleep in what `risbench` starts, and the results stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import risbench
from risbench import __main__ as entry

FOLDER = Path(risbench.__file__).parents[1]
WATCH = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Finder())
"""
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
AS_MODULE = "import runpy; sys.argv = ['risbench', 'doctor']; runpy.run_module('risbench', run_name='__main__')"
AS_SCRIPT = "sys.argv = ['risbench', 'doctor']; from risbench.__main__ import main; main()"


def run(program: str, **variables: str) -> str:
    inherited = {key: value for key, value in os.environ.items() if key not in CHOICES}
    environment = {**inherited, "PYTHONPATH": str(FOLDER), **variables}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.mark.parametrize("start", [AS_MODULE, AS_SCRIPT])
def test_the_policy_is_set_before_torch_is_imported(start: str) -> None:
    assert run(WATCH + start) == "PASSIVE 2000"


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE", "ACTIVE None"),
        ("GOMP_SPINCOUNT", "7", "None 7"),
        ("KMP_BLOCKTIME", "1", "None None"),
    ],
)
def test_what_the_user_chose_stays_alone(name: str, value: str, seen: str) -> None:
    assert run(WATCH + AS_SCRIPT, **{name: value}) == seen


def test_importing_the_package_changes_no_environment() -> None:
    program = "import os; before = dict(os.environ); import risbench, risbench.__main__; print(before == os.environ)"
    assert run(program) == "True"


def test_make_sets_it_as_the_command_does_unless_the_user_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for choice in CHOICES:
        monkeypatch.setenv(choice, "")  # so that it is restored
        monkeypatch.delenv(choice)
    assert printed_by_make() == [f"{name}={value}" for name, value in entry.WAITING.items()]
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert printed_by_make() == ["OMP_WAIT_POLICY=ACTIVE"]


def printed_by_make() -> list[str]:
    rule = f"include {FOLDER / 'Makefile'}\nshow-threads:\n\t@env | grep -E '^({'|'.join(CHOICES)})=' | sort -r\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-s", "-f", "-", "show-threads"]
    answer = subprocess.run(command, input=rule, env=environment, capture_output=True, text=True, check=True)
    return answer.stdout.split()


STEP = """
import torch, hashlib
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(28800, 8))
model(torch.randn(8, 3, 32, 32)).square().mean().backward()
content = b"".join(p.grad.numpy().tobytes() for p in model.parameters())
print(torch.get_num_threads(), hashlib.sha256(content).hexdigest())
"""


def test_neither_the_threads_nor_the_bits_depend_on_it() -> None:
    results = {run(STEP, OMP_NUM_THREADS="2", **policy) for policy in ({}, entry.WAITING)}
    assert len(results) == 1 and results.pop().startswith("2 ")
