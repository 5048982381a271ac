"""The command line itself, and the commands that examine the environment and the data."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from risbench.cli import app, doctor

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", [[], ["run"], ["table"], ["data"], ["data", "index"]], ids=" ".join)
def test_h_is_help(run_command: RunCommand, command: list[str]) -> None:
    code, out, _ = run_command(*command, "-h")
    assert code == 0 and (0, out, "") == run_command(*command, "--help")


def test_a_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"_RISBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "risbench p", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        app.app(prog_name="risbench")
    assert capsys.readouterr().out.split() == ["predict", "plan", "protocols"]


def test_data_index_and_doctor_print_their_findings(
    run_command: RunCommand, small_root: Path, small_card: Path
) -> None:
    code, out, _ = run_command("data", "index", small_card, "--data-root", small_root)
    assert code == 0 and "val: 1 images, 2 refs, 4 expressions" in out
    code, out, _ = run_command("data", "doctor", small_card, "--data-root", small_root)
    assert code == 0 and "overlapping" in out


def test_a_torchvision_of_another_torch_is_recognised(run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")
        return None

    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=broken, metadata=importlib.metadata))
    code, out, _ = run_command("doctor")
    assert code == 1
    assert "BROKEN" in out and "--force-reinstall torch torchvision" in out
