"""Working off a plan: nothing twice, nothing lost, and what is wrong is said before any work."""

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

from risbench.cli import app as cli
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
    return typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(plan: Plan) -> Path:
    return plan("--variant fusion --split val", "--split val,testA --seed 0,1")


@pytest.fixture
def plan(tmp_path: Path, small_root: Path, small_card: Path, short: list[str]) -> Plan:
    """Write a plan of two epochs on the small data set, with a line for each of these ends of a command."""

    def written(*lines: str) -> Path:
        path = tmp_path / "plan.txt"
        data = shlex.join(["--dataset", str(small_card), "--data-root", str(small_root)])
        begin = f"risbench run --method lts {data} {' '.join(short)} train.epochs=2"
        text = [f"{begin} {line}  # one" for line in lines]
        path.write_text("\n".join(["# a plan", "", *text]) + "\n", encoding="utf-8")
        return path

    return written


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The epoch of every step of training that is made; the process dies in a step that `steps` holds as -1 before."""
    made: list[int] = []
    step = Trainer._step

    def counted(self: Trainer, *given: Any) -> dict[str, float]:
        if made[:1] == [-1] and self.position.epoch == 1:
            raise KeyboardInterrupt
        made.append(self.position.epoch)
        return step(self, *given)

    monkeypatch.setattr(Trainer, "_step", counted)
    yield made


def entries(file: Path, command: Any) -> list[Entry]:
    return plan_runner.read(file, command)


def folders() -> list[str]:
    return sorted(path.name for path in Path("runs").iterdir() if path.is_dir())


def test_a_killed_plan_goes_on_where_it_stopped(file: Path, command: Any, steps: list[int]) -> None:
    runs = entries(file, command)
    assert [(run.job.variants, run.job.seed, run.place.rpartition(" ")[2]) for run in runs] == [
        (["fusion"], 0, "3"),
        ([], 0, "4"),
        ([], 1, "4"),
    ]
    steps.append(-1)
    with pytest.raises(KeyboardInterrupt):
        plan_runner.work_off(runs)
    begun = folders()
    assert len(begun) == 1 and set(steps[1:]) == {0}

    steps.clear()
    records, failures = plan_runner.work_off(runs)
    assert not failures and [(r.variants, r.split, r.seed) for r in records] == [
        (["tiny", "fusion"], "val", 0),
        (["tiny"], "val", 0),
        (["tiny"], "testA", 0),
        (["tiny"], "val", 1),
        (["tiny"], "testA", 1),
    ]
    per_epoch = len(steps) // 5  # the first run went on with its second epoch
    assert steps == [1] * per_epoch + ([0] * per_epoch + [1] * per_epoch) * 2
    assert set(begun) < set(folders()) and len(folders()) == 3

    steps.clear()
    assert plan_runner.work_off(runs) == ([], [])
    assert not steps and len(folders()) == 3


def test_a_trained_run_is_only_evaluated_on_what_is_missing(
    plan: Plan, tmp_path: Path, command: Any, steps: list[int]
) -> None:
    plan_runner.work_off(entries(plan("--split val"), command))
    steps.clear()
    more = entries(plan("--split val,testB --protocol original,lts"), command)
    records, _ = plan_runner.work_off(more)
    assert not steps and len(folders()) == 1
    assert [(r.split, r.protocol) for r in records] == [
        (split, under) for split in ("val", "testB") for under in ("original", "lts")
    ]
    assert {r.checkpoint for r in records} == {
        Checkpoint(tmp_path / "runs" / folders()[0] / "checkpoints/best").facts.sha256
    }
    assert plan_runner.work_off(more) == ([], [])


def test_runs_that_cannot_be_gone_on_with_are_passed_over(
    plan: Plan, tmp_path: Path, small_card: Path, command: Any
) -> None:
    """An evaluation of a checkpoint, which names no method, and runs of a method and of a data set that are gone."""
    plan_runner.work_off(entries(plan("--split val"), command))
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
    records, failures = plan_runner.work_off(more)
    assert len(records) == 1 and not failures


def test_other_settings_are_another_run(plan: Plan, command: Any, steps: list[int]) -> None:
    runs = entries(plan("--split val"), command)
    plan_runner.work_off(runs)
    for change in ("train.lr=2e-3", "--variant filter", "--init runs/" + folders()[0] + "/checkpoints/best"):
        steps.clear()
        records, _ = plan_runner.work_off(entries(plan(f"--split val {change}"), command))
        assert len(records) == 1 and steps, change
    steps.clear()
    assert plan_runner.work_off(runs) == ([], []) and not steps


def test_what_another_process_has_in_hand_is_left_to_it(file: Path, command: Any, steps: list[int]) -> None:
    from risbench.runs import run as running

    runs = entries(file, command)[:2]
    with plan_runner._in_hand(runs[0], running.prepare(runs[0].job, runs[0].runs)) as is_mine:
        assert is_mine
        records, _ = plan_runner.work_off(runs)
    assert {tuple(r.variants) for r in records} == {("tiny",)}
    assert len(plan_runner.work_off(runs)[0]) == 1  # now it is free
    assert not list(Path("runs").glob(".*"))


def test_one_failure_does_not_stop_the_others(plan: Plan, command: Any) -> None:
    lines = ["--split val train.lr=1e30 --seed 3", "--split val"]
    records, failures = plan_runner.work_off(entries(plan(*lines), command))
    assert [r.seed for r in records] == [0]
    assert len(failures) == 1 and "line 3: The loss is no longer finite" in failures[0]


def test_an_error_of_the_machine_does_not_stop_the_others(
    plan: Plan, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer.fit

    def fit(self: Trainer, resume: bool = False) -> None:
        if self.seed == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(self, resume)

    monkeypatch.setattr(Trainer, "fit", fit)
    file = plan("--split val --seed 3", "--split val")
    records, failures = plan_runner.work_off(entries(file, command))
    assert [r.seed for r in records] == [0]
    assert len(failures) == 1 and "line 3: CUDA out of memory" in failures[0]


def test_the_same_run_in_other_words_is_not_trained_again(
    plan: Plan, small_root: Path, command: Any, steps: list[int]
) -> None:
    plan_runner.work_off(entries(plan("--split val"), command))
    steps.clear()
    for words in ("--variant tiny", "train.workers=1", f"--data-root {small_root}/small/..", "train.lr=0.001"):
        file = plan(f"--split val,testA {words}")
        _, failures = plan_runner.work_off(entries(file, command))
        assert not steps and not failures and len(folders()) == 1, words
    assert plan_runner.work_off(entries(file, command)) == ([], [])


def test_a_run_that_saw_other_data_is_another_run(plan: Plan, command: Any) -> None:
    from risbench.runs import run as running

    [entry] = entries(plan("--split val"), command)
    plan_runner.work_off([entry])
    file = Path("runs") / folders()[0] / "records" / "val-original.json"
    prepared = running.prepare(entry.job, entry.runs)
    assert plan_runner._left(prepared, entry.runs)[0] == []
    record.write(file, record.read(file).model_copy(update={"training_data": ["refcoco"]}))
    assert plan_runner._left(prepared, entry.runs)[0] == ["val"]


def test_a_run_in_which_another_process_works_is_left_to_it(plan: Plan, command: Any) -> None:
    plan_runner.work_off(entries(plan("--split val"), command))
    gc.collect()  # what this process holds
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
        assert plan_runner.work_off(more) == ([], [])
        other.kill()
    assert [r.split for r in plan_runner.work_off(more)[0]] == ["testA"]


def test_a_file_system_without_locks_is_worked_on_all_the_same(
    plan: Plan, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(self: FileLock, timeout: float = -1) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    records, failures = plan_runner.work_off(entries(plan("--split val"), command))
    assert len(records) == 1 and not failures


def test_comments_and_byte_order_marks_are_read_as_a_shell_does(plan: Plan, command: Any) -> None:
    file = plan("--split val --init /a/v#2/x")
    file.write_text("\ufeff# it's a plan\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    [entry] = entries(file, command)
    assert entry.job.init == "/a/v#2/x" and entry.job.splits == ["val"]


def test_a_partial_copy_is_refused_without_its_option_and_images_that_are_not_there_before_any_work(
    plan: Plan, tmp_path: Path, small_root: Path, command: Any
) -> None:
    root = tmp_path / "part"
    shutil.copytree(small_root, root)
    refs = pickle.loads((root / "small" / "refs(unc).p").read_bytes())
    (root / "small" / "refs(unc).p").write_bytes(pickle.dumps(refs[:-1], protocol=2))
    for options, said in (
        (f"--data-root {root}", "--partial"),
        (f"--data-root {root} --partial --images nowhere", "There is no folder nowhere.*--images.* Nothing was run."),
    ):
        with pytest.raises(InputError, match=f"line 4: .*{said}"):
            plan_runner.work_off(entries(plan("--split val", options), command))
    assert not Path("runs").exists() or not folders()
    images = shutil.move(root / "images" / "small", tmp_path / "elsewhere")
    line = f"--data-root {root} --partial --images {images} --split val train.epochs=1"
    (made,), failures = plan_runner.work_off(entries(plan(line), command))
    assert made.partial and not failures


def test_nothing_is_run_where_one_line_is_wrong(plan: Plan, command: Any) -> None:
    file = plan("--split val", "--split test")
    with pytest.raises(InputError, match="line 4: .*test.*val.*Nothing was run."):
        plan_runner.work_off(entries(file, command))
    assert not Path("runs").exists() or not folders()


@pytest.mark.parametrize(
    ("line", "said"),
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
def test_what_is_no_plan_is_refused(tmp_path: Path, command: Any, line: str, said: str) -> None:
    (tmp_path / "plan.txt").write_text(line, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        entries(Path("plan.txt"), command)
    assert said in str(refused.value) and "plan.txt" in str(refused.value)


def test_a_plan_of_comments_has_nothing_to_do(tmp_path: Path, command: Any) -> None:
    (tmp_path / "plan.txt").write_text("# lts-2 on mini: nothing to do; recorded already: 7.\n", encoding="utf-8")
    assert plan_runner.work_off(entries(Path("plan.txt"), command)) == ([], [])


def test_a_plan_that_is_not_there_is_refused(command: Any) -> None:
    with pytest.raises(InputError, match="plan.txt cannot be read: .*risbench plan NAME > FILE"):
        entries(Path("plan.txt"), command)
