"""What several commands do with their options: open runs, choose references, find records and baselines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from risbench import methods
from risbench.cli import signals
from risbench.errors import InputError
from risbench.runs.job import PLACES, Job, comma_separated, job_from_options, parse_seeds, refuse_options

if TYPE_CHECKING:
    from risbench.runs.run import Run
    from risbench.scoring.record import Record

_TABLE_FORMATS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html", ".json": "json"}  # by suffix
_PLACES = [name for name in PLACES if name != "method_path"]  # options that go with --resume


def open_runs(options: dict[str, Any], resume: Path | None) -> Iterator[Run]:
    """Open the runs of a command, one after the other. `options` are the command's, by name."""
    from risbench.runs.opening import open_run

    jobs = _jobs(options, resume)
    for number, job in enumerate(jobs, start=1):
        run = open_run(job, options["runs"], resume)
        if resume is None:
            _propose_resume(run, options, [later.seed for later in jobs[number:]])
        yield run


def describe_runs(options: dict[str, Any], resume: Path | None) -> list[dict[str, Any]]:
    """Check the runs of a command, and return what would be done."""
    from risbench.runs.dry_run import describe_run
    from risbench.scoring import record

    runs: Path = options["runs"]
    records = record.find(record.default_folders(runs))
    evaluates = "split" in options  # train does not
    return [describe_run(job, runs, records, resume, evaluates) for job in _jobs(options, resume)]


def _jobs(options: dict[str, Any], resume: Path | None) -> list[Job]:
    """Return the jobs of a command: one for each seed, or that of the resumed run."""
    if resume is not None:
        allowed = {"context", "resume", "as_json", "dry_run", "method", *_PLACES}
        refuse_options(options["context"], "--resume", options.keys() - allowed)
        return [_resumed_job(resume, options)]
    if not options["method"] and not options.get("checkpoint"):
        others = "--checkpoint or --resume" if "checkpoint" in options else "or --resume"
        raise InputError(f"Which method? Give --method NAME (risbench list shows them), {others}.")
    seeds = parse_seeds(options["seed"])
    if "split" not in options and len(comma_separated(options["protocol"])) > 1:  # train
        raise InputError(f"Training validates under one protocol, not {options['protocol']}: give one --protocol.")
    if options.get("checkpoint") and options["context"].get_parameter_source("seed").name == "COMMANDLINE":
        raise InputError("A checkpoint is trained, and its record has its seed: leave --seed out beside --checkpoint.")
    job = job_from_options(options)
    return [job.model_copy(update={"seed": seed}) for seed in seeds]


def _propose_resume(run: Run, options: dict[str, Any], later: list[int]) -> None:
    """Set what is printed when a signal stops the run; `later` are the seeds that follow it."""
    method = ["--method", options["method"]] if methods.is_path(options["method"]) else []
    then = f", then the same command with --seed {','.join(map(str, later))}" if later else ""
    signals.propose(["risbench", options["context"].info_name, "--resume", str(run.folder), *method], then)


def _places(options: dict[str, Any]) -> dict[str, str]:
    """Return the options on the command line that say where something is."""
    sources = {name: options["context"].get_parameter_source(name) for name in _PLACES if options.get(name)}
    return {name: options[name] for name, source in sources.items() if source.name == "COMMANDLINE"}


def _resumed_job(folder: Path, options: dict[str, Any]) -> Job:
    """Read the job of a run, and give it the places that are among the options.

    One is --method, which a method needs that is known by its path only.
    """
    method = options["method"]
    name = methods.register(method) if method else ""
    job = Job.read(folder)
    if name and job.method not in ("", name):
        raise InputError(f"{folder} is a run of {job.method}, not of {name}: leave --method out, or give its folder.")
    places = _places(options)
    for option in places.keys() & {"init", "checkpoint"}:
        if not getattr(job, option):
            raise InputError(f"The run {folder} was begun without --{option}: leave that out.")
    if "dataset" in places and not (job.dataset.endswith(".toml") and places["dataset"].endswith(".toml")):
        raise InputError(f"The run {folder} is of {job.dataset}: give --dataset only for a card that has moved.")
    places |= {"method_path": str(Path(method).resolve())} if methods.is_path(method) else {}
    return job.model_copy(update={"method": name or job.method, **places})


def check_output(path: Path, suffix: str, content: str) -> None:
    """Refuse a path that cannot be an output file, before any work."""
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"--output {path} does not name {content}: give a file that ends in {suffix}.")


def table_format(path: Path, format_: str) -> str:
    """Return the format of a file of tables: the chosen one, or the one that its suffix names, before any work."""
    if path.is_dir():
        raise InputError(f"--output {path} is a folder: give a file in it, such as {path / 'table.md'}.")
    if format_ != "terminal":
        return format_
    if path.suffix.lower() not in _TABLE_FORMATS:
        known = ", ".join(_TABLE_FORMATS)
        raise InputError(f"--output {path} does not name a format: give a file that ends in {known}, or --format.")
    return _TABLE_FORMATS[path.suffix.lower()]


def reference_names(method: str, protocols: Iterable[str]) -> list[str]:
    """Return the references that --method reference[/A,B] names, by default all that these protocols tell apart."""
    from risbench.scoring import protocol, references

    no_target_rule = any(protocol.load(name).score.no_target != "refused" for name in protocols)
    return comma_separated(method.partition("/")[2]) or references.names(no_target_rule)


def record_folders(folders: list[Path] | None) -> list[Path]:
    """Return the folders of --records, by default results/records and runs."""
    from risbench.scoring import record

    return folders or record.default_folders(Path("runs"))


def recorded_name(dataset: str, records: Iterable[Record]) -> str | None:
    """Return the name under which records hold a data set that is given by its name or card; None for no data set."""
    from risbench import datasets

    if not dataset.endswith(".toml"):
        return dataset or None
    name = datasets.load(dataset).name
    if all(record.dataset != name for record in records):
        cure = f"risbench run --dataset {dataset} makes one, and --records names another folder."
        raise InputError(f"No record is of {name}, the data set of {dataset}: {cure}")
    return name


def baseline_files(files: list[Path] | None) -> list[Path]:
    """Return the files of --baseline, by default all in results/baselines."""
    files = files or sorted(Path("results/baselines").glob("*.json"))
    if not files:
        raise InputError("There is no baseline in results/baselines: give --baseline NAME.json, or two runs.")
    return files
