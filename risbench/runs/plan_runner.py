"""Working off a file of commands: skip what is recorded, go on with what was killed."""

from __future__ import annotations

import gc
import hashlib
import json
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import torch
import typer
from filelock import FileLock, Timeout

from risbench import methods, progress, recipe
from risbench.engine import distributed
from risbench.errors import InputError
from risbench.runs import existing
from risbench.runs import job as jobs
from risbench.runs import run as running
from risbench.runs.job import Job
from risbench.runs.run import Run
from risbench.scoring import record
from risbench.scoring.record import Record

_USAGE = cast(type[Exception], typer.BadParameter.__mro__[1])  # any error in options; typer does not export it
_RECORDS = Path("results/records")


@dataclass(frozen=True)
class Entry:
    """One run of the file: a line and a seed of it."""

    place: str  # file and line
    job: Job
    runs: Path  # folder for new runs


def read(file: Path, command: Any) -> list[Entry]:
    """Read a file of `risbench run` commands; `command` is the parser of `risbench run`.

    Comments alone are a plan with nothing to do; an empty file is a mistake.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The plan {file} cannot be read: {error}. risbench plan NAME > FILE makes one.") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        place = f"{file}, line {number}"
        command_line = "" if line.strip().startswith("#") else line
        try:
            words = list(takewhile(lambda word: not word.startswith("#"), shlex.split(command_line)))
        except ValueError as error:
            raise InputError(f"{place} cannot be read ({error}): {line.strip()!r}. Mend its quotes.") from None
        if words:
            entries += _entries(place, words, command)
    if not entries and not any(line.strip() for line in lines):
        raise InputError(f"The plan {file} is empty: it takes one `risbench run ...` on each line.")
    return entries


def _entries(place: str, words: Sequence[str], command: Any) -> list[Entry]:
    if list(words[:2]) != ["risbench", "run"] or "--help" in words:
        raise InputError(f"{place} is not a `risbench run` command: {shlex.join(words)}. Leave it out.")
    try:
        given = command.make_context("run", list(words[2:]))
        chosen = given.params
        if not chosen["method"] or chosen["method"].split("/")[0] == "reference":
            raise InputError("A plan trains methods: give --method NAME.")
        jobs.refuse_beside(given, "A line of a plan", ["checkpoint", "resume", "plan", "as_json"])
        job = jobs.job_of(chosen)
        seeds = jobs.seeds_of(chosen["seed"])
    except (InputError, _USAGE) as error:
        said = str(error) if isinstance(error, InputError) else error.format_message()  # type: ignore[attr-defined]
        raise InputError(f"{place}: {said} The line: {shlex.join(words)}") from None
    return [Entry(place, job.model_copy(update={"seed": seed}), chosen["runs"]) for seed in seeds]


def work_off(entries: Sequence[Entry]) -> tuple[list[Record], list[str]]:
    """Check all runs, then do what is left of each; return the records made, and what went wrong.

    Several processes may work off one file at once: a run that another one has in hand is left to it.
    """
    for entry in entries:
        try:
            running.prepare(entry.job, entry.runs)
        except InputError as error:
            raise InputError(f"{entry.place}: {error} Nothing was run.") from None
    records: list[Record] = []
    failures: list[str] = []
    for number, entry in enumerate(entries, start=1):
        try:
            records += _work(entry, f"[{number}/{len(entries)}] {entry.place}")
        except (InputError, OSError, RuntimeError) as error:  # such as a full disk, or a GPU without memory left
            if not isinstance(error, InputError):
                traceback.print_exc()
            failures.append(f"{entry.place}: {str(error) or type(error).__name__}")
            progress.say(failures[-1])
        gc.collect()
        torch.cuda.empty_cache()
    return records, failures


def _work(entry: Entry, label: str) -> list[Record]:
    """Do what is left of one entry."""
    run = running.prepare(entry.job, entry.runs)
    with _in_hand(entry, run) as is_mine:
        left = distributed.from_main(run.fabric, _left(run, entry.runs) if is_mine else None)  # one for all processes
        state = _State(left, label)
        if run.fabric.global_rank == 0:
            progress.say(state.text)
        if not state.splits:
            return []
        try:
            opened = running.start(entry.job, entry.runs, state.folder)
        except running.BusyError as error:
            progress.say(f"{label}: skipped. {error}")
            return []
        opened.job = opened.job.model_copy(update={"splits": state.splits})
        return opened.evaluate(opened.train(state.folder is not None))


@dataclass(frozen=True)
class _State:
    """What is to be done of an entry; None: another process does it."""

    left: tuple[list[str], Path | None] | None
    label: str

    @property
    def splits(self) -> list[str]:
        """The splits that are to be evaluated."""
        return self.left[0] if self.left else []

    @property
    def folder(self) -> Path | None:
        """The folder in which the run was begun."""
        return self.left[1] if self.left else None

    @property
    def text(self) -> str:
        """One line for people."""
        if self.left is None:
            return f"{self.label}: in the hands of another process, skipped"
        if not self.splits:
            return f"{self.label}: recorded already, skipped"
        return f"{self.label}: {f'goes on in {self.folder}' if self.folder else 'starts'}"


@contextmanager
def _in_hand(entry: Entry, run: Run) -> Iterator[bool]:
    """Hold an entry for this process and those that a launcher started with it, unless another one holds it."""
    if run.fabric.global_rank > 0:
        yield False
        return
    words = json.dumps([existing.training(entry.job, run.variants), run.settings.model_dump()], sort_keys=True)
    entry.runs.mkdir(parents=True, exist_ok=True)
    file = entry.runs / f".{hashlib.sha256(words.encode()).hexdigest()[:16]}.lock"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except NotImplementedError:  # a file system without locks: two processes on one plan are then the user's care
        yield True
        return
    try:
        yield True
    finally:
        file.unlink(missing_ok=True)  # one who waits for nothing looks into the records first
        lock.release()


def _left(run: Run, runs: Path) -> tuple[list[str], Path | None]:
    """The splits of a run that are not recorded under every protocol, and the folder where it was begun, if it was."""
    folders = [folder for folder in (_RECORDS, runs) if folder.is_dir()]
    there = {(found.split, found.protocol) for found in record.find(folders) if _is_of(found, run)}
    left = [split for split in run.splits() if not {(split, name) for name in run.job.protocols} <= there]
    return left, existing.folder(run.job, run.variants, run.settings, runs)


def _is_of(found: Record, run: Run) -> bool:
    """Whether a record is what a run would measure: its network, settings, data and seed."""
    job = run.job
    what = (found.method, found.variants, found.seed, found.index, found.partial, found.control)
    if what != (methods.folder(job.method).name, run.variants, job.seed, run.index.hash, job.partial, ""):
        return False
    initial = run.initial.facts if run.initial else None
    begins = found.weights.startswith(f"checkpoint {initial.sha256[:12] if initial else ''}")
    declared = set(run.settings.train.pretraining)
    seen = {index.card.name for index in run.training} | set(initial.training_data if initial else [])
    same_data = set(found.training_data) - declared == seen - declared
    return begins == bool(initial) and same_data and not recipe.differences(found.recipe, run.settings)
