"""The command line itself, and the commands that examine the environment and the data."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from risbench import progress
from risbench.cli import app, commands, doctor

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _restore_detail() -> Iterator[None]:
    yield
    commands.set_detail()


def start(arguments: list[str], **options: object) -> subprocess.Popen[bytes]:
    """Start risbench in a process of its own."""
    process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, "-m", "risbench", *arguments], stderr=subprocess.PIPE, **options
    )
    return process


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runn"], "No such command 'runn'. Did you mean 'run'? See risbench --help."),
        (["data", "idx"], "No such command 'idx'. Did you mean 'index'? See risbench data --help."),
        (["run", "--metod", "lts"], "No such option: --metod (Possible options: --method, --seed). See risbench run"),
        (["run", "--seed"], "Option '--seed' requires an argument. See risbench run --help."),
        (["score"], "Missing argument 'file'. See risbench score --help."),
        (["data", "list", "x"], "Got unexpected extra argument(s) (x). See risbench data list --help."),
        (["list", "-q", "-v"], "--quiet and --verbose contradict each other"),
    ],
    ids=str,
)
def test_a_wrong_use_is_one_sentence_that_names_the_help(
    run_command: RunCommand, arguments: list[str], sentence: str
) -> None:
    code, out, err = run_command(*arguments)
    assert code == 2 and not out and err.startswith(f"error: {sentence}") and err.count("\n") == 1


@pytest.mark.parametrize(("rank", "warns"), [("0", True), ("1", False)])
def test_the_first_of_several_processes_warns_for_all(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, rank: str, warns: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    run_command("list")
    assert logging.getLogger("risbench").isEnabledFor(logging.WARNING) is warns
    assert logging.getLogger("risbench").isEnabledFor(logging.ERROR)
    run_command("list", "-v")
    assert logging.getLogger("risbench").isEnabledFor(logging.INFO)


@pytest.mark.parametrize("arguments", [["-q", "list"], ["list", "-q"], ["list", "--quiet"]], ids=" ".join)
def test_quiet_prints_results_and_errors_only(run_command: RunCommand, arguments: list[str]) -> None:
    code, out, err = run_command(*arguments)
    assert code == 0 and "method     lts" in out and not err
    assert progress.console.quiet and not logging.getLogger("risbench").isEnabledFor(logging.WARNING)
    assert "Did you mean 'run'?" in run_command("-q", "runn")[2]
    run_command("list")
    assert not progress.console.quiet and logging.getLogger("risbench").isEnabledFor(logging.WARNING)


def test_verbose_prints_what_is_done(run_command: RunCommand) -> None:
    assert run_command("list", "--verbose")[0] == 0
    assert logging.getLogger("risbench").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["segment", "a.jpg", os.fsdecode(b"caf\xe9"), "--checkpoint", "x"], "EXPRESSION 'caf\\udce9'"),
        (["segment", "a.jpg", "cup", "--word", os.fsdecode(b"\xe9"), "--checkpoint", "x"], "--word"),
        (["run", "--method", "lts", os.fsdecode(b"train.lr=\xe9")], "OVERRIDES"),
        (["run", "--method", "lts", "--data-root", os.fsdecode(b"\xe9")], "--data-root"),
        (["run", "--method", "lts", "--runs", os.fsdecode(b"\xe9")], "--runs"),
        (["score", os.fsdecode(b"\xe9.parquet"), "--split", "val"], "FILE"),
        (["table", os.fsdecode(b"\xe9")], "NAME"),
        (["data", "index", os.fsdecode(b"\xe9")], "DATASET"),
    ],
)
def test_text_that_is_not_utf_8_is_refused_at_the_entrance(
    run_command: RunCommand, arguments: list[str], name: str
) -> None:
    code, _, err = run_command(*arguments)
    assert code == 2 and err.startswith(f"error: {name}") and "is not UTF-8" in err and err.count("\n") == 1


def test_a_picture_may_have_any_name(run_command: RunCommand) -> None:
    code, _, err = run_command("segment", os.fsdecode(b"\xe9.jpg"), "a cup", "--checkpoint", "nowhere")
    assert code == 2 and "UTF-8" not in err


def test_a_document_in_a_file_is_utf_8_whatever_the_terminal() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    process = start(["table", "lts-2", "--format", "csv"], env=environment, stdout=subprocess.PIPE)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"") and "✓" in out.decode("utf-8")


def test_a_reader_that_goes_away_ends_the_command_in_silence() -> None:
    process = start(["list"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == (b"", 141)


def test_output_to_a_full_disk_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        process = start(["list"], stdout=full)
        err = process.communicate()[1].decode()
    assert process.returncode == 2 and err.startswith("error: No space left on device") and err.count("\n") == 1


@pytest.mark.parametrize("problem", ["OSError('libcudart.so.12: cannot open')", "ImportError('libtorch.so: no')"])
def test_a_torch_that_is_there_but_broken_names_the_doctor(tmp_path: Path, problem: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise {problem}")
    path = os.pathsep.join([str(tmp_path), str(Path(app.__file__).parents[2])])
    process = start(["segment", "a.jpg", "cup", "--checkpoint", "x"], env={**os.environ, "PYTHONPATH": path})
    err = process.communicate()[1].decode()
    assert process.returncode == 2 and err.count("\n") == 1
    assert err.startswith("error: import torch fails (") and err.endswith(
        "Run risbench doctor: it says how to mend it.\n"
    )


@pytest.mark.parametrize("command", ["train", "predict", "segment", "convert"])
def test_memory_that_runs_out_is_one_sentence(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """torch itself refuses the allocation, at the first use of each command's own code."""
    import torch

    def allocate(*_: object, **__: object) -> None:
        torch.empty(2**50)

    for place in ("engine.segment.draw_segmentation", "engine.convert.convert_checkpoint", "runs.opening.open_run"):
        monkeypatch.setattr(f"risbench.{place}", allocate)
    monkeypatch.setattr("risbench.runs.evaluation.predict_to_file", allocate)
    arguments = {
        "train": ["--method", "lts"],
        "predict": ["--checkpoint", "x", "--split", "val", "--output", "x.parquet"],
        "segment": ["a.jpg", "cup", "--checkpoint", "x"],
        "convert": ["lts", "a.pth", "folder"],
    }
    code, _, err = run_command(command, *arguments[command])
    assert code == 2 and err.startswith("error: Memory ran out") and err.count("\n") == 1
    assert all(key in err for key in ("train.micro_batch", "predict.images_per_batch", "image.size"))


def test_a_bug_keeps_its_traceback(run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise KeyError("counts")

    monkeypatch.setattr("risbench.datasets.load", bug)
    with pytest.raises(KeyError, match="counts"):
        run_command("data", "list")
