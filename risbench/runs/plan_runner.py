"""Run the commands of a plan file: skip what is recorded, and continue what was killed."""

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
from typing import Any

import torch

from risbench import files, methods, progress, recipe
from risbench.data import pretrained
from risbench.data.pretrained import training_data
from risbench.engine import distributed
from risbench.errors import InputError
from risbench.failures import translate
from risbench.runs import existing, locks
from risbench.runs.duration import estimate_duration
from risbench.runs.evaluation import evaluate
from risbench.runs.job import USAGE_ERROR, Job, job_from_options, parse_seeds, refuse_options
from risbench.runs.locks import BusyError
from risbench.runs.opening import open_run, prepare_run
from risbench.runs.run import Run
from risbench.runs.training import train
from risbench.scoring import record
from risbench.scoring.record import Record


@dataclass(frozen=True)
class Entry:
    """One run of a plan: a line of the file with one of its seeds."""

    place: str  # file and line
    job: Job
    runs: Path  # folder for new runs


@dataclass(frozen=True)
class _Remaining:
    """The remaining work of an entry."""

    splits: list[str]  # to be evaluated
    folder: Path | None  # of the existing run, if there is one


def read_plan(file: Path, command: Any) -> list[Entry]:
    """Read a file of `risbench run` commands; `command` is the parser of `risbench run`.

    A file of comments is a plan with nothing to do; a run that several lines name is kept once. Raises InputError for
    an empty file and for any other line.
    """
    try:
        lines = files.read_bytes(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The plan {file} cannot be read: {error}. risbench plan NAME > FILE makes one.") from None
    entries: dict[str, Entry] = {}
    read: set[str] = set()
    num_repeated = 0
    with progress.bar("Reading the plan", len(lines)) as step:
        for number, line in enumerate(lines, start=1):
            place = f"{file}, line {number}"
            words = [] if line in read else _words(place, line)
            num_repeated += line in read
            if words:
                read.add(line)
                for entry in _read_command(place, words, command):
                    key = f"{entry.runs} {entry.job.model_dump_json()}"
                    num_repeated += key in entries
                    entries.setdefault(key, entry)
            step()
    if num_repeated:
        progress.print_line(f"{file}: {num_repeated:,} runs repeat earlier ones, and are run once.")
    if not entries and not any(line.strip() for line in lines):
        raise InputError(f"The plan {file} is empty: it takes one `risbench run ...` on each line.")
    return list(entries.values())


def _words(place: str, line: str) -> list[str]:
    """Split a line as a shell does, without its comment."""
    command_line = "" if line.strip().startswith("#") else line
    try:
        return list(takewhile(lambda word: not word.startswith("#"), shlex.split(command_line)))
    except ValueError as error:
        raise InputError(f"{place} cannot be read ({error}): {line.strip()!r}. Mend its quotes.") from None


def _read_command(place: str, words: Sequence[str], command: Any) -> list[Entry]:
    """Return one entry for each seed of a command."""
    if list(words[:2]) != ["risbench", "run"] or {"--help", "-h"} & set(words):
        raise InputError(f"{place} is not a `risbench run` command: {shlex.join(words)}. Leave it out.")
    try:
        context = command.make_context("run", list(words[2:]))
        options = context.params
        if not options["method"] or options["method"].split("/")[0] == "reference":
            raise InputError("A plan trains methods: give --method NAME.")
        refuse_options(context, "A line of a plan", ["checkpoint", "resume", "plan", "as_json", "dry_run"])
        job = job_from_options({**options, "method": _method(options["method"])})
        seeds = parse_seeds(options["seed"])
    except (InputError, USAGE_ERROR) as error:
        message = str(error) if isinstance(error, InputError) else error.format_message()  # type: ignore[attr-defined]
        raise InputError(f"{place}: {message} The line: {shlex.join(words)}") from None
    return [Entry(place, job.model_copy(update={"seed": seed}), options["runs"]) for seed in seeds]


def _method(method: str) -> str:
    """Return the name of the method of a line; the line may come from elsewhere, so its path is not followed."""
    name = methods.from_file(method, "The line", cure="RISBENCH_METHODS=PATH")
    if methods.is_path(method) and methods.folder(name) != Path(method).resolve():
        raise InputError(
            f"The method {name} is in {methods.folder(name)} here: write --method {name} instead of a path."
        )
    return name


def run_plan(entries: Sequence[Entry]) -> tuple[list[Record], list[str]]:
    """Check all entries, then run the remaining work of each; return the new records and the failures.

    Several processes may run one plan at once: each skips the entries that another one works on.
    """
    _check(entries)
    records: list[Record] = []
    failures: list[str] = []
    for number, entry in enumerate(entries, start=1):
        try:
            records += _run_entry(entry, f"[{number}/{len(entries)}] {entry.place}")
        except Exception as error:  # whatever stops one run, a full disk or a bug, does not stop the others
            failure = translate(error)
            if distributed.are_several():  # the other processes may wait in the middle of this run
                raise (InputError(f"{entry.place}: {failure}") if failure else error) from None
            if failure is None:
                traceback.print_exc()
            failures.append(f"{entry.place}: {failure or f'{type(error).__name__}: {error}'}")
            progress.print_line(failures[-1])
        gc.collect()
        torch.cuda.empty_cache()
    return records, failures


def describe_plan(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Check all entries, and return what `run_plan` would do with each; nothing is written."""
    _check(entries)
    begun: dict[str, str] = {}  # places of earlier entries that train, by the digest of their training
    descriptions = []
    for entry in entries:
        run = prepare_run(entry.job, entry.runs)
        files.check_writable(entry.runs)
        remaining, digest = _remaining_work(run, entry.runs), _digest(entry, run)
        status, is_begun = _status(remaining), False
        if remaining.splits and remaining.folder is None:
            is_begun = digest in begun
            status = f"continues what {begun[digest]} starts" if is_begun else status
            begun.setdefault(digest, entry.place)
        job = entry.job.model_copy(update={"splits": remaining.splits})
        trained = is_begun or existing.is_trained(entry.job, entry.runs)
        estimate = estimate_duration(job, record.find(record.default_folders(entry.runs)), trained)
        descriptions.append(
            {
                "place": entry.place,
                "status": status,
                "evaluated": remaining.splits,
                "folder": str(remaining.folder) if remaining.folder else None,
                "seconds": round(estimate.seconds) if estimate else None,
                "estimated_from": estimate.basis if estimate else None,
            }
        )
    return descriptions


def _check(entries: Sequence[Entry]) -> None:
    """Check the runs that differ by more than their seeds. Raises InputError for the first that cannot run."""
    different: dict[str, Entry] = {}
    for entry in entries:
        different.setdefault(entry.job.model_dump_json(exclude={"seed"}), entry)
    with progress.bar("Checking the plan", len(different)) as step:
        for entry in different.values():
            try:
                prepare_run(entry.job, entry.runs)
            except InputError as error:
                raise InputError(f"{entry.place}: {error} Nothing was run.") from None
            step()


def _run_entry(entry: Entry, label: str) -> list[Record]:
    run = prepare_run(entry.job, entry.runs)
    with _lock_entry(entry, run) as locked:
        # the main process decides for all
        remaining = distributed.from_main(run.fabric, _remaining_work(run, entry.runs) if locked else None)
        if run.fabric.is_global_zero:
            progress.print_line(f"{label}: {_status(remaining)}")
        if remaining is None or not remaining.splits:
            return []
        try:
            opened = open_run(entry.job, entry.runs, remaining.folder)
        except BusyError as error:
            progress.print_line(f"{label}: skipped. {error}")
            return []
        opened.job = opened.job.model_copy(update={"splits": remaining.splits})
        return evaluate(opened, train(opened))


def _status(remaining: _Remaining | None) -> str:
    """Describe the remaining work of an entry; None: another process has locked it."""
    if remaining is None:
        return "another process works on it, skipped"
    if not remaining.splits:
        return "recorded already, skipped"
    return f"continues in {remaining.folder}" if remaining.folder else "starts"


@contextmanager
def _lock_entry(entry: Entry, run: Run) -> Iterator[bool]:
    """Lock an entry, unless another process holds it; yield whether it is locked. Only the main process locks."""
    if not run.fabric.is_global_zero:
        yield False
        return
    with locks.locked(entry.runs / f".{_digest(entry, run)[:16]}.lock") as locked:
        yield locked  # whoever locks the entry next looks for its records first


def _digest(entry: Entry, run: Run) -> str:
    """Return a hash of the training of an entry, whichever splits it is evaluated on."""
    inputs = run.inputs()
    splits = {f"{index.card.name} {name}" for index, name in run.training_splits()}
    images = {name: value for name, value in inputs.images.items() if name in splits}
    data = [inputs.indices, inputs.weights, inputs.pretrained, images]
    key = [existing.training_key(entry.job, run.variants), run.settings.model_dump(), data]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _remaining_work(run: Run, runs: Path) -> _Remaining:
    """Find the splits that are not recorded under every protocol, and the existing folder of the run."""
    results = record.find(record.default_folders(runs))
    recorded = {(result.split, result.protocol) for result in results if _is_result_of(run, result)}
    splits = [split for split in run.splits() if not {(split, name) for name in run.job.protocols} <= recorded]
    return _Remaining(splits, existing.find_folder(run.job, run.variants, run.settings, runs, run.inputs()))


def _is_result_of(run: Run, result: Record) -> bool:
    """Whether a record has the network, settings, data and seed of a run."""
    job = run.job
    initial = run.initial_checkpoint.facts if run.initial_checkpoint else None
    key = (result.method, result.variants, result.seed, result.index, result.control)
    if key != (job.method, run.variants, job.seed, run.index.hash, ""):
        return False
    training_limit = job.limit or (initial.limit if initial else 0)
    part = (result.partial, result.limit, result.training_limit)
    if part != (run.index.partial or training_limit > 0, job.limit, training_limit):
        return False
    begun_with = {one.source for one in result.pretrained if one.source.startswith("checkpoint ")}
    names = {index.card.name for index in run.training_indices} | {*training_data(result.pretrained)}
    has_initial = begun_with == ({initial.as_pretrained().source} if initial else set())
    if not has_initial or names != {*result.training_data} or _differs(result, run):
        return False
    methods.warn_of_other_code(result.method, result.code, f"The record of {result.split} under {result.protocol}")
    return True


def _differs(result: Record, run: Run) -> bool:
    """Whether settings differ; before 0.3 recipes declared training data that weights say themselves."""
    different = recipe.differences(result.recipe, run.settings)
    if {*different.get(pretrained.KEY, [])} <= {*training_data(result.pretrained)}:
        different.pop(pretrained.KEY, None)
    return bool(different)
