"""What several commands do with their options: open runs, choose references, find records and baselines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from risbench.errors import InputError
from risbench.runs.job import Job, comma_separated, job_from_options, parse_seeds, refuse_options

if TYPE_CHECKING:
    from risbench.runs.run import Run


def open_runs(options: dict[str, Any], resume: Path | None) -> Iterator[Run]:
    """Open the runs of a command: one for each seed, or the resumed one. `options` are the command's, by name."""
    from risbench.runs.opening import open_run

    if resume is not None:
        refuse_options(options["context"], "--resume", options.keys() - {"context", "resume", "as_json"})
        yield open_run(Job.read(resume), options["runs"], resume)
        return
    if not options["method"] and not options.get("checkpoint"):
        raise InputError("Which method? Give --method NAME (risbench list shows them), --checkpoint or --resume.")
    seeds = parse_seeds(options["seed"])
    if len(seeds) > 1 and options.get("checkpoint"):
        raise InputError("A checkpoint is trained, and its record has its seed: leave --seed out beside --checkpoint.")
    for seed in seeds:
        yield open_run(job_from_options(options).model_copy(update={"seed": seed}), options["runs"])


def check_output(path: Path, suffix: str, content: str) -> None:
    """Refuse a path that cannot be an output file, before any work."""
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"--output {path} does not name {content}: give a file that ends in {suffix}.")


def reference_names(method: str) -> list[str]:
    """Return the references that --method reference[/A,B] names, by default all."""
    from risbench.scoring import references

    return comma_separated(method.partition("/")[2]) or references.names()


def record_folders(folders: list[Path] | None) -> list[Path]:
    """Return the folders of --records, by default results/records and runs."""
    return folders or [path for path in (Path("results/records"), Path("runs")) if path.is_dir()]


def baseline_files(files: list[Path] | None) -> list[Path]:
    """Return the files of --baseline, by default all in results/baselines."""
    files = files or sorted(Path("results/baselines").glob("*.json"))
    if not files:
        raise InputError("There is no baseline in results/baselines: give --baseline NAME.json, or two runs.")
    return files
