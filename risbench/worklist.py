"""Working off a file of commands: skip what is recorded, go on with what was killed."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import typer
from filelock import FileLock, Timeout

from risbench import dist, methods, options, progress, recipe, record
from risbench import run as running
from risbench.errors import InputError
from risbench.job import Job
from risbench.record import Record
from risbench.run import Run

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
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The plan {file} cannot be read: {error}. risbench plan NAME > FILE makes one.") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        place = f"{file}, line {number}"
        try:
            words = shlex.split(line, comments=True)
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
        options.refuse_beside(given, "A line of a plan", ["checkpoint", "resume", "plan", "as_json"])
        job = options.job_of(chosen)
        seeds = options.seeds_of(chosen["seed"])
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
        run = running.prepare(entry.job, entry.runs)
        with _in_hand(entry, run) as is_mine:
            todo = dist.from_main(run.fabric, _left(run, entry.runs) if is_mine else None)  # one for all processes
            state = _State(todo, f"[{number}/{len(entries)}] {entry.place}")
            if run.fabric.global_rank == 0:
                progress.say(state.text)
            if not state.splits:
                continue
            try:
                opened = running.start(entry.job, entry.runs, state.folder)
                opened.job = opened.job.model_copy(update={"splits": state.splits})
                records += opened.evaluate(opened.train(state.folder is not None))
            except InputError as error:
                failures.append(f"{entry.place}: {error}")
                progress.say(failures[-1])
    return records, failures


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
    words = json.dumps(_training(entry.job), sort_keys=True)
    entry.runs.mkdir(parents=True, exist_ok=True)
    file = entry.runs / f".{hashlib.sha256(words.encode()).hexdigest()[:16]}.lock"
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
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
    return left, _begun(run, runs)


def _is_of(found: Record, run: Run) -> bool:
    """Whether a record is what a run would measure: its network, settings, data and seed."""
    job = run.job
    same = (found.variants, found.seed, found.index, found.partial, found.control) == (
        run.variants,
        job.seed,
        run.index.hash,
        job.partial,
        "",
    )
    begun = run.initial.facts.sha256[:12] if run.initial else ""
    begins = found.weights.startswith(f"checkpoint {begun}") if begun else not found.weights.startswith("checkpoint ")
    named = found.method == methods.folder(job.method).name
    return same and named and begins and not recipe.differences(found.recipe, run.settings)


def _begun(run: Run, runs: Path) -> Path | None:
    """The newest folder of a run that was asked for in the same words, but for what is evaluated."""
    wanted = _training(run.job)
    for folder in sorted(runs.glob("*/run.toml"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            job = Job.read(folder.parent)
            settings = recipe.validate(recipe.read(folder.parent / "recipe.toml"), str(folder.parent))
        except InputError:  # of another version, or killed while it was made
            continue
        if _training(job) == wanted and settings == run.settings:
            return folder.parent
    return None


def _training(job: Job) -> dict[str, Any]:
    """What of a job decides what is trained: all but the splits and the protocols after the first, which validates."""
    return {**job.model_dump(exclude={"splits"}), "protocols": job.protocols[0]}
