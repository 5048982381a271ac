"""What the options of a command mean: lists, seeds, the job they describe, the runs they open."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from risbench.errors import InputError
from risbench.runs.job import job_of, parts, refuse_beside, seeds_of

if TYPE_CHECKING:
    from risbench.scoring.record import Record


def open_runs(options: dict[str, Any], resume: Path | None) -> Iterable[Any]:
    """Open the runs of a command, one for each seed, or the one that is to be resumed."""
    from risbench.runs import run as running
    from risbench.runs.job import Job

    if resume is not None:
        refuse_beside(options["context"], "--resume", options.keys() - {"context", "resume", "as_json"})
        yield running.start(Job.read(resume), options["runs"], resume)
        return
    if not options["method"] and not options.get("checkpoint"):
        raise InputError("Which method? Give --method NAME (risbench list shows them), --checkpoint or --resume.")
    seeds = seeds_of(options["seed"])
    if len(seeds) > 1 and options.get("checkpoint"):
        raise InputError("A checkpoint is trained, and its record has its seed: leave --seed out beside --checkpoint.")
    for seed in seeds:
        yield running.start(job_of(options).model_copy(update={"seed": seed}), options["runs"])


def check_output(path: Path, suffix: str, what: str) -> None:
    """Refuse a path for output that cannot be one, before any work."""
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"--output {path} does not name {what}: give a file that ends in {suffix}.")


def chosen_references(method: str) -> list[str]:
    from risbench.scoring import references

    return parts(method.partition("/")[2]) or references.names()


def score_references(
    names: list[str], dataset: str, split: str, protocol: str, seed: str, where: tuple[str, str, bool], runs: Path
) -> list[Record]:
    """Score floors and ceilings; nothing is learned, so nothing needs torch."""
    from risbench.data import source
    from risbench.scoring import predictions, record, references
    from risbench.scoring import protocol as protocols
    from risbench.scoring import score as scoring

    for name in names:
        references.check(name)
    index = source.open_index(dataset, *where)
    splits = parts(split) or [name for name in index.split_names() if index.card.splits[name].evaluation]
    asked = [protocols.load(name) for name in parts(protocol)]
    scoring.check_targets(index, splits, asked)
    records = []
    for name in names:
        folder = runs / f"reference-{name}-{Path(dataset).stem}-{datetime.now():%Y%m%d-%H%M%S}"
        for part in splits:
            for number in seeds_of(seed)[: None if name == "random-object" else 1]:
                for chosen in asked:
                    found = references.predict(name, index, part, number, chosen)
                    kept = folder / f"seed{number}" if len(seeds_of(seed)) > 1 else folder
                    predictions.write(kept / "predictions" / f"{part}-{chosen.name}.parquet", found)
                    records.append(record.keep(kept, found, index, part, chosen, seed=number, weights="none"))
    return records


def record_folders(given: list[Path] | None) -> list[Path]:
    """Where records are looked for."""
    return given or [path for path in (Path("results/records"), Path("runs")) if path.is_dir()]


def baselines(given: list[Path] | None) -> list[Path]:
    """The baselines that are to be checked."""
    found = given or sorted(Path("results/baselines").glob("*.json"))
    if not found:
        raise InputError("There is no baseline in results/baselines: give --baseline NAME.json, or two runs.")
    return found


def work_off(file: Path, command: Any) -> tuple[list[Record], list[str]]:
    """Work off a plan, `command` being the parser of `risbench run`; return the records made, and what failed."""
    from risbench.runs import plan_runner

    return plan_runner.work_off(plan_runner.read(file, command))
