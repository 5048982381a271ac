"""Running a plan: no run twice, no run lost, and mistakes refused before any work."""

from __future__ import annotations

import gc
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from filelock import FileLock
from safetensors import SafetensorError

from risbench.cli import app
from risbench.data.pretrained import Pretrained
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.train import Trainer
from risbench.errors import InputError
from risbench.runs import plan_runner
from risbench.runs.job import Job
from risbench.runs.plan_runner import Entry
from risbench.scoring import record

Plan = Callable[..., Path]


@pytest.fixture
def command() -> Any:
    return typer.main.get_command(app.app).commands["run"]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(plan: Plan) -> Path:
    return plan("--variant fusion --split val", "--split val,testA --seed 0,1")


@pytest.fixture
def plan(tmp_path: Path, small_root: Path, small_card: Path, short_training: list[str]) -> Plan:
    """Write a plan of two epochs on the small data set, with a line for each of these ends of a command."""

    def write(*lines: str) -> Path:
        path = tmp_path / "plan.txt"
        data = shlex.join(["--dataset", str(small_card), "--data-root", str(small_root)])
        begin = f"risbench run --method lts {data} {' '.join(short_training)} train.epochs=2"
        text = [f"{begin} {line}  # one" for line in lines]
        path.write_text("\n".join(["# a plan", "", *text]) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The epoch of every training step. If the list starts with -1, the process dies in the second epoch."""
    made: list[int] = []
    step = Trainer._step

    def logging_step(self: Trainer, *arguments: Any) -> Any:
        if made[:1] == [-1] and self.position.epoch == 1:
            raise KeyboardInterrupt
        made.append(self.position.epoch)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", logging_step)
    yield made


def entries(file: Path, command: Any) -> list[Entry]:
    return plan_runner.read_plan(file, command)


def folders() -> list[str]:
    return sorted(path.name for path in Path("runs").iterdir() if path.is_dir())


def test_a_killed_plan_continues_where_it_stopped(file: Path, command: Any, steps: list[int]) -> None:
    runs = entries(file, command)
    assert [(run.job.variants, run.job.seed, run.place.rpartition(" ")[2]) for run in runs] == [
        (["fusion"], 0, "3"),
        ([], 0, "4"),
        ([], 1, "4"),
    ]
    steps.append(-1)
    with pytest.raises(KeyboardInterrupt):
        plan_runner.run_plan(runs)
    before = folders()
    assert len(before) == 1 and set(steps[1:]) == {0}

    steps.clear()
    records, failures = plan_runner.run_plan(runs)
    assert not failures and [(r.variants, r.split, r.seed) for r in records] == [
        (["tiny", "fusion"], "val", 0),
        (["tiny"], "val", 0),
        (["tiny"], "testA", 0),
        (["tiny"], "val", 1),
        (["tiny"], "testA", 1),
    ]
    per_epoch = len(steps) // 5  # the first run went on with its second epoch
    assert steps == [1] * per_epoch + ([0] * per_epoch + [1] * per_epoch) * 2
    assert set(before) < set(folders()) and len(folders()) == 3

    steps.clear()
    assert plan_runner.run_plan(runs) == ([], [])
    assert not steps and len(folders()) == 3


def test_a_trained_run_is_only_evaluated_on_the_missing_splits(
    plan: Plan, tmp_path: Path, command: Any, steps: list[int]
) -> None:
    plan_runner.run_plan(entries(plan("--split val"), command))
    steps.clear()
    more = entries(plan("--split val,testB --protocol original,lts"), command)
    records, _ = plan_runner.run_plan(more)
    assert not steps and len(folders()) == 1
    assert [(r.split, r.protocol) for r in records] == [
        (split, under) for split in ("val", "testB") for under in ("original", "lts")
    ]
    assert {r.checkpoint for r in records} == {
        Checkpoint(tmp_path / "runs" / folders()[0] / "checkpoints/best").facts.sha256
    }
    assert plan_runner.run_plan(more) == ([], [])


def test_runs_that_cannot_be_continued_are_ignored(plan: Plan, tmp_path: Path, small_card: Path, command: Any) -> None:
    """An evaluation of a checkpoint, which names no method, and runs of a removed method and data set."""
    plan_runner.run_plan(entries(plan("--split val"), command))
    trained = Path("runs") / folders()[0] / "checkpoints" / "best"
    card = str(small_card)
    jobs = [
        Job(dataset=card, checkpoint=str(trained)),
        Job(dataset=card, method="gone"),
        Job(dataset="no", method="lts"),
    ]
    for number, job in enumerate(jobs):
        (tmp_path / "runs" / str(number)).mkdir()
        job.write(tmp_path / "runs" / str(number))
        shutil.copy(trained / "recipe.toml", tmp_path / "runs" / str(number))
    more = entries(plan("--split val --seed 1"), command)
    records, failures = plan_runner.run_plan(more)
    assert len(records) == 1 and not failures


def test_other_settings_are_another_run(plan: Plan, command: Any, steps: list[int]) -> None:
    runs = entries(plan("--split val"), command)
    plan_runner.run_plan(runs)
    for change in ("train.lr=2e-3", "--variant filter", "--init runs/" + folders()[0] + "/checkpoints/best"):
        steps.clear()
        records, _ = plan_runner.run_plan(entries(plan(f"--split val {change}"), command))
        assert len(records) == 1 and steps, change
    steps.clear()
    assert plan_runner.run_plan(runs) == ([], []) and not steps


def test_an_entry_that_another_process_works_on_is_skipped(file: Path, command: Any, steps: list[int]) -> None:
    from risbench.runs.opening import prepare_run

    runs = entries(file, command)[:2]
    with plan_runner._lock_entry(runs[0], prepare_run(runs[0].job, runs[0].runs)) as locked:
        assert locked
        records, _ = plan_runner.run_plan(runs)
    assert {tuple(r.variants) for r in records} == {("tiny",)}
    assert len(plan_runner.run_plan(runs)[0]) == 1  # the lock is free now
    assert not list(Path("runs").glob(".*"))


def test_one_failure_does_not_stop_the_others(plan: Plan, command: Any) -> None:
    lines = ["--split val train.lr=1e30 --seed 3", "--split val"]
    records, failures = plan_runner.run_plan(entries(plan(*lines), command))
    assert [r.seed for r in records] == [0]
    assert len(failures) == 1 and "line 3: The loss is no longer finite" in failures[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "Memory of the GPU ran out."),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "A file cannot be written"),
        (KeyError("a bug"), "KeyError: 'a bug'"),
    ],
    ids=repr,
)
def test_an_error_of_the_machine_does_not_stop_the_others(
    plan: Plan, command: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    whole = Trainer.fit

    def fit(self: Trainer, resume: bool = False) -> None:
        if self.seed == 3:
            raise error
        whole(self, resume)

    monkeypatch.setattr(Trainer, "fit", fit)
    file = plan("--split val --seed 3", "--split val")
    records, failures = plan_runner.run_plan(entries(file, command))
    assert [r.seed for r in records] == [0]
    assert len(failures) == 1 and f"line 3: {words}" in failures[0]


def test_the_same_run_with_equivalent_options_is_not_trained_again(
    plan: Plan, small_root: Path, command: Any, steps: list[int]
) -> None:
    plan_runner.run_plan(entries(plan("--split val"), command))
    steps.clear()
    for words in ("--variant tiny", "train.workers=1", f"--data-root {small_root}/small/..", "train.lr=0.001"):
        file = plan(f"--split val,testA {words}")
        _, failures = plan_runner.run_plan(entries(file, command))
        assert not steps and not failures and len(folders()) == 1, words
    assert plan_runner.run_plan(entries(file, command)) == ([], [])


def test_a_run_with_other_training_data_is_another_run(plan: Plan, command: Any) -> None:
    from risbench.runs.opening import prepare_run

    [entry] = entries(plan("--split val"), command)
    plan_runner.run_plan([entry])
    file = Path("runs") / folders()[0] / "records" / "val-original.json"
    prepared = prepare_run(entry.job, entry.runs)
    assert plan_runner._remaining_work(prepared, entry.runs).splits == []
    first = record.read(file)
    record.write(file, first.model_copy(update={"training_data": ["refcoco"]}))
    assert plan_runner._remaining_work(prepared, entry.runs).splits == ["val"]
    swin = Pretrained(part="Swin", source="timm swin.ms_in22k", training_data=("ImageNet-22k",))
    former = {**first.recipe, "train": {**first.recipe["train"], "pretraining": ["ImageNet-22k"]}}  # before 0.3
    known = {"recipe": former, "pretrained": (swin,), "training_data": [*first.training_data, "ImageNet-22k"]}
    record.write(file, first.model_copy(update=known))
    assert plan_runner._remaining_work(prepared, entry.runs).splits == []


def test_a_run_that_another_process_works_on_is_skipped(plan: Plan, command: Any) -> None:
    plan_runner.run_plan(entries(plan("--split val"), command))
    gc.collect()  # releases the locks of this process
    more = entries(plan("--split val,testA"), command)
    code = (
        "import sys, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()"
    )
    held = [sys.executable, "-c", code, str(Path("runs") / folders()[0] / ".lock")]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert plan_runner.run_plan(more) == ([], [])
        other.kill()
    assert [r.split for r in plan_runner.run_plan(more)[0]] == ["testA"]


def test_a_plan_runs_on_a_file_system_without_locks(plan: Plan, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(self: FileLock, timeout: float = -1) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    records, failures = plan_runner.run_plan(entries(plan("--split val"), command))
    assert len(records) == 1 and not failures


def test_comments_and_byte_order_marks_are_read_as_a_shell_does(plan: Plan, command: Any) -> None:
    file = plan("--split val --init /a/v#2/x")
    file.write_text("\ufeff# it's a plan\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    [entry] = entries(file, command)
    assert entry.job.init == "/a/v#2/x" and entry.job.splits == ["val"]


def test_a_partial_copy_and_missing_images_are_refused_before_any_work(
    plan: Plan, tmp_path: Path, small_root: Path, command: Any
) -> None:
    root = tmp_path / "part"
    shutil.copytree(small_root, root)
    refs = pickle.loads((root / "small" / "refs(unc).p").read_bytes())
    (root / "small" / "refs(unc).p").write_bytes(pickle.dumps(refs[:-1], protocol=2))
    for options, message in (
        (f"--data-root {root}", "--partial"),
        (f"--data-root {root} --partial --images nowhere", "There is no folder nowhere.*--images.* Nothing was run."),
    ):
        with pytest.raises(InputError, match=f"line 4: .*{message}"):
            plan_runner.run_plan(entries(plan("--split val", options), command))
    assert not Path("runs").exists() or not folders()
    images = shutil.move(root / "images" / "small", tmp_path / "elsewhere")
    line = f"--data-root {root} --partial --images {images} --split val train.epochs=1"
    (made,), failures = plan_runner.run_plan(entries(plan(line), command))
    assert made.partial and not failures


def test_no_run_starts_if_one_line_is_wrong(plan: Plan, command: Any) -> None:
    file = plan("--split val", "--split test")
    with pytest.raises(InputError, match="line 4: .*test.*val.*Nothing was run."):
        plan_runner.run_plan(entries(file, command))
    assert not Path("runs").exists() or not folders()


def test_equal_runs_of_a_plan_are_run_once_and_read_fast(
    plan: Plan, command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    monkeypatch.setattr(plan_runner, "prepare_run", lambda job, runs: checked.append(job.seed))
    twice = entries(plan("--split val", "--split val  --seed 0", "--split val", "--split val --seed 1"), command)
    assert [entry.job.seed for entry in twice] == [0, 1]
    assert [entry.place.rpartition(" ")[2] for entry in twice] == ["3", "6"]
    assert "2 runs repeat earlier ones, and are run once" in capsys.readouterr().err
    many = entries(plan(*["--split val"] * 5_000, f"--split val --seed {','.join(map(str, range(2_000)))}"), command)
    assert len(many) == 2_000
    plan_runner._check(many)
    assert checked == [0]  # seeds are checked together


def test_a_plan_goes_on_when_the_data_have_moved_and_starts_anew_when_they_have_changed(
    plan: Plan, tmp_path: Path, small_root: Path, command: Any, steps: list[int]
) -> None:
    roots = [shutil.copytree(small_root, tmp_path / name) for name in ("one", "two", "three")]
    data = [f"--split val --data-root {root} --dataset {root}/small.toml" for root in roots]
    steps.append(-1)
    with pytest.raises(KeyboardInterrupt):
        plan_runner.run_plan(entries(plan(data[0]), command))
    per_epoch = len(steps) - 1
    steps.clear()
    shutil.rmtree(roots[0])
    assert len(plan_runner.run_plan(entries(plan(data[1]), command))[0]) == 1
    assert steps == [1] * per_epoch and len(folders()) == 1
    refs = pickle.loads((roots[2] / "small" / "refs(unc).p").read_bytes())
    refs[0]["sentences"][0]["raw"] = refs[0]["sentences"][0]["sent"] = "another"
    (roots[2] / "small" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    assert len(plan_runner.run_plan(entries(plan(data[2]), command))[0]) == 1
    assert len(folders()) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("risbench train --method lts", "line 1 is not a `risbench run` command: risbench train --method lts"),
        ("rm -rf /", "is not a `risbench run` command"),
        ("risbench run --help", "is not a `risbench run` command"),
        ("risbench run --method 'lts", "No closing quotation"),
        ("risbench run --methd lts", "line 1: No such option: --methd"),
        ("risbench run --method lts --seed x", "--seed 'x' is not a list of numbers"),
        ("risbench run --method lts --runs", "--runs"),
        ("risbench run --dataset mini", "A plan trains methods"),
        ("risbench run --method reference", "A plan trains methods"),
        ("risbench run --method lts --resume runs/x", "takes no --resume"),
        ("risbench run --method lts --plan x", "takes no --plan"),
        (" ", "is empty"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, command: Any, line: str, message: str) -> None:
    (tmp_path / "plan.txt").write_text(line, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        entries(Path("plan.txt"), command)
    assert message in str(refused.value) and "plan.txt" in str(refused.value)


def test_a_plan_of_comments_has_nothing_to_do(tmp_path: Path, command: Any) -> None:
    (tmp_path / "plan.txt").write_text("# lts-2 on mini: nothing to do; recorded already: 7.\n", encoding="utf-8")
    assert plan_runner.run_plan(entries(Path("plan.txt"), command)) == ([], [])


def test_a_missing_plan_is_refused(command: Any) -> None:
    with pytest.raises(InputError, match="plan.txt cannot be read: .*risbench plan NAME > FILE"):
        entries(Path("plan.txt"), command)
